"""Examples and rollouts of an iteration, shared between ranks; what is written of rollouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from accord.algorithms.rollouts import rollout_batch
from accord.data import EncodedPrompt
from accord.rollout.collect import Collection
from accord.training.console import Console
from accord.training.parallel import Ranks
from accord.training.sources import Examples, Rollouts, rollout_columns, write_rollouts
from accord.training.stream import Stream
from accord.types import Rollout


def rollout(i: int, length: int, **more) -> Rollout:
    return Rollout((5, 6), tuple(range(7, 7 + length)), (-0.5,) * length, "stop", f"p{i}", f"r{i}", version=3, **more)


def made() -> list[Rollout]:
    return [
        rollout(0, 2, score=1.5, scores={"a": 1.0, "b": None}),
        rollout(1, 3, score=-0.25, scores={"a": 2.0, "b": 4.0}),
    ]


def columns(rollouts: list[Rollout]):
    return rollout_columns(rollouts, rollout_batch(rollouts), 1)


def test_one_row_a_response(tmp_path: Path):
    batch = rollout_batch(made())
    old_T = torch.tensor([0, 0, -0.5, -0.25, 0, 0, -1.0, -1.0, -1.0])
    batch = batch.with_streams(old_logprobs_T=old_T, ref_logprobs_T=old_T * 2)
    path = write_rollouts(rollout_columns(made(), batch, 7), 7, tmp_path / "rollouts")
    assert path.name == "iteration-000007.parquet"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert parquet.read_table(path).to_pylist() == [
        {
            "iteration": 7,
            "prompt": "p0",
            "response": "r0",
            "score": 1.5,
            "finish_reason": "stop",
            "length": 2,
            "version": 3,
            "kl": 0.75,
            "score/a": 1.0,
            "score/b": None,
        },
        {
            "iteration": 7,
            "prompt": "p1",
            "response": "r1",
            "score": -0.25,
            "finish_reason": "stop",
            "length": 3,
            "version": 3,
            "kl": 3.0,
            "score/a": 2.0,
            "score/b": 4.0,
        },
    ]


def test_without_a_reference_there_is_no_kl(tmp_path: Path):
    assert "kl" not in parquet.read_table(write_rollouts(columns(made()), 1, tmp_path)).column_names


def test_writing_again_replaces(tmp_path: Path):
    write_rollouts(columns(made()), 1, tmp_path)
    write_rollouts(columns(made()[:1]), 1, tmp_path)
    assert parquet.read_table(tmp_path / "iteration-000001.parquet").num_rows == 1


class Collector:
    """Answers each prompt with its number in the iteration, so that one sees which rank got what."""

    samples = 1

    def collect(self, prompts, iteration, progress, numbers) -> Collection:
        made = [rollout(n, 2, score=float(n), group=n) for n, _ in zip(numbers, prompts, strict=True)]
        return Collection(made, 2.0, 0.5)


PROMPTS = [EncodedPrompt((i,), f"p{i}") for i in range(9)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_share_an_iteration_and_nothing_is_lost(size):
    console = Console("ppo", 1, quiet=True)
    everything = Rollouts(Stream(PROMPTS, 5, 0), Collector(), Ranks()).collect(2, console)[0]
    shares = [Rollouts(Stream(PROMPTS, 5, 0), Collector(), Ranks(i, size)).collect(2, console)[0] for i in range(size)]
    assert sorted(r.group for share in shares for r in share) == [r.group for r in everything] == [0, 1, 2, 3, 4]
    items = [Examples(Stream(list(range(9)), 5, 0), Ranks(i, size)).collect(2, console)[0] for i in range(size)]
    assert sorted(x for share in items for x in share) == sorted(Stream(list(range(9)), 5, 0).batch(2))


def test_metrics_of_collecting():
    _, metrics = Rollouts(Stream(PROMPTS, 5, 0), Collector(), Ranks()).collect(0, Console("ppo", 1, quiet=True))
    assert metrics == {
        "time/rollout": 2.0,
        "time/reward": 0.5,
        "sampling/tokens_per_second": 5.0,
        "sampling/lag": 0.0,
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_writes_what_all_have(rank, tmp_path: Path):
    class TwoRanks(Ranks):
        def gather(self, item):
            return [columns(made()[:1]), columns(made()[1:])]

    Rollouts(Stream(PROMPTS, 5, 0), Collector(), TwoRanks(rank, 2)).record(
        made()[rank:][:1], rollout_batch(made()), 1, tmp_path
    )
    if rank:
        assert list(tmp_path.iterdir()) == []
    else:
        table = parquet.read_table(tmp_path / "iteration-000001.parquet")
        assert table.to_pydict()["prompt"] == ["p0", "p1"] and table.num_columns == 9
