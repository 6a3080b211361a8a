"""Examples and rollouts of an iteration, shared between ranks; what is written of rollouts."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from accord.algorithms.rollouts import rollout_batch
from accord.data import EncodedPrompt
from accord.rollout.collect import Collection
from accord.training.console import Console
from accord.training.parallel import Ranks
from accord.training.sources import Examples, Rollouts, lag_metric, rollout_columns, split_groups, write_rollouts
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


def test_the_score_of_a_row_is_with_those_of_its_tokens():
    first, second = made()
    assert columns([dataclasses.replace(first, token_scores=(0.5, -3.0)), second])["score"] == [-1.0, -0.25]
    unscored = dataclasses.replace(second, score=None)
    assert rollout_columns([first, unscored], rollout_batch([first, unscored], scored=False), 1)["score"] == [1.5, None]


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
    _, metrics = Rollouts(Stream(PROMPTS, 5, 0), Collector(), Ranks()).collect(5, Console("ppo", 1, quiet=True))
    assert metrics == {
        "time/rollout": 2.0,
        "time/reward": 0.5,
        "sampling/tokens_per_second": 5.0,
        "sampling/lag": 2.0,  # version 3 sampled
    }


def test_greedy_responses_were_sampled_too():
    """Two samples of two tokens and one greedy response of five to each of two prompts, in two seconds."""
    beside = [rollout(n, 5, score=0.0, group=n) for n in range(2)]
    made = [dataclasses.replace(rollout(n, 2, score=0.0, group=n), greedy=beside[n]) for n in (0, 0, 1, 1)]
    collector = Collector()
    collector.collect = lambda *_: Collection(made, 2.0, 0.5)
    _, metrics = Rollouts(Stream(PROMPTS, 2, 0), collector, Ranks()).collect(5, Console("ppo", 1, quiet=True))
    assert metrics["sampling/tokens_per_second"] == (4 * 2 + 2 * 5) / 2


def test_lag_is_the_mean_over_what_was_sampled():
    rollouts = [dataclasses.replace(rollout(0, 2), version=version) for version in (4, 4, 1, -1)]
    assert lag_metric(rollouts, 4) == {"sampling/lag": 1.0}
    assert lag_metric(rollouts[3:], 4) == {}, "the data's own responses have no lag"


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


# --- dynamic sampling ------------------------------------------------------------------------------------------------


class Graded:
    """Two responses to each prompt; those of prompts below `hard` have one score, of others two."""

    samples = 2

    def __init__(self, hard: int) -> None:
        self.hard, self.asked = hard, []

    def collect(self, prompts, iteration, progress, numbers) -> Collection:
        self.asked.append((iteration, [(n, prompt.text) for n, prompt in zip(numbers, prompts, strict=True)]))
        spread = [float(int(prompt.text[1:]) >= self.hard) for prompt in prompts]
        rollouts = [
            dataclasses.replace(rollout(n, 2, score=s * one, group=n), prompt_text=prompt.text)
            for n, prompt, one in zip(numbers, prompts, spread, strict=True)
            for s in (0.0, 1.0)
        ]
        return Collection(rollouts, 1.0, 0.25)


def dynamic(hard: int, rounds: int, rank: int = 0, size: int = 1, together=None) -> tuple[Rollouts, Graded]:
    ranks, collector = Ranks(rank, size), Graded(hard)
    if together is not None:
        ranks.max, ranks.sum = together
    return Rollouts(Stream(PROMPTS, 4, 0), collector, ranks, rounds), collector


QUIET = Console("grpo", 1, quiet=True)


def test_groups_of_one_score_give_way_to_other_prompts():
    source, collector = dynamic(hard=5, rounds=10)
    for iteration in range(4):
        items, metrics = source.collect(iteration, QUIET)
        assert [int(r.prompt_text[1:]) >= 5 for r in items] == [True] * 8
        assert len({r.group for r in items}) == 4
        asked = [prompts for i, prompts in collector.asked if i == iteration]
        assert metrics["sampling/rounds"] == len(asked)
        assert metrics["sampling/groups_dropped"] == sum(map(len, asked)) - 4
        assert metrics["time/rollout"] == len(asked) and metrics["time/reward"] == 0.25 * len(asked)
        numbers = [n for prompts in asked for n, _ in prompts]
        assert len(set(numbers)) == len(numbers), "each draw has a seed of its own"
    assert len({tuple(prompts) for _, prompts in collector.asked}) == len(collector.asked)


def test_what_is_missing_after_the_last_round_is_filled_up():
    items, metrics = dynamic(hard=99, rounds=2)[0].collect(0, QUIET)
    assert len(items) == 8 and metrics["sampling/rounds"] == 3 and metrics["sampling/groups_dropped"] == 8


def test_a_group_may_be_judged_by_each_of_its_sources():
    """Where each source is normalised by itself, two that cancel out in the sum teach all the same."""

    def group(number: int, *scores: tuple[float | None, ...]) -> list[Rollout]:
        return [
            rollout(
                number, 2, score=sum(x or 0.0 for x in pair), group=number, scores=dict(zip("abw", pair, strict=True))
            )
            for pair in scores
        ]

    cancelling, equal = group(1, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), group(2, (1.0, 0.5, 3.0), (1.0, 0.5, 9.0))
    missing = group(3, (None, 0.5, 0.0), (None, 0.5, 0.0))
    rarely, differing = group(4, (2.0, 0.5, 0.0), (None, 0.5, 0.0)), group(5, (2.0, None, 0.0), (2.5, 0.5, 0.0))
    groups = [cancelling, equal, missing, rarely, differing]
    everything = [one for group in groups for one in group]
    assert split_groups(everything, ("a", "b")) == ([cancelling, differing], [equal, missing, rarely])
    assert split_groups(everything) == ([equal, rarely, differing], [cancelling, missing])


def test_without_groups_to_drop_it_is_the_plain_source():
    plain = Rollouts(Stream(PROMPTS, 4, 0), Graded(0), Ranks()).collect(1, QUIET)
    items, metrics = dynamic(hard=0, rounds=5)[0].collect(1, QUIET)
    assert items == plain[0] and metrics == plain[1] | {"sampling/rounds": 1.0, "sampling/groups_dropped": 0.0}


def test_what_is_sampled_follows_from_the_iteration_alone():
    once, collector = dynamic(hard=6, rounds=4)
    for iteration in (0, 1, 2):
        last = once.collect(iteration, QUIET)
    resumed, again = dynamic(hard=6, rounds=4)
    assert resumed.collect(2, QUIET) == last
    assert again.asked == [entry for entry in collector.asked if entry[0] == 2]


def test_ranks_agree_on_the_rounds_and_each_fills_its_share():
    def work(rank, together):
        return dynamic(5, 10, rank, 2, together)[0].collect(3, QUIET)

    results = on_ranks(2, work)
    assert results[0][1]["sampling/rounds"] == results[1][1]["sampling/rounds"] > 1
    assert results[0][1]["sampling/groups_dropped"] == results[1][1]["sampling/groups_dropped"] > 0
    for items, _ in results:
        assert len(items) == 4 and all(int(r.prompt_text[1:]) >= 5 for r in items)
    assert not {r.group for r in results[0][0]} & {r.group for r in results[1][0]}


def on_ranks(size, work):
    """`work(rank, (max, sum))` in a thread each, whose collectives wait for all."""
    barrier, given, results = threading.Barrier(size, timeout=20), [None] * size, [None] * size

    def run(rank):
        def collective(reduce):
            def together(tensor):
                given[rank] = tensor
                barrier.wait()
                result = reduce(torch.stack(given))
                barrier.wait()
                return result

            return together

        results[rank] = work(rank, (collective(lambda t: t.amax(0)), collective(lambda t: t.sum(0))))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert None not in results
    return results


def test_right_drafts_are_a_share_of_all_rounds_and_ranks():
    class Guessing(Collector):
        drafts: tuple[int, int] | None = (10, 4)

        def collect(self, *arguments) -> Collection:
            return dataclasses.replace(super().collect(*arguments), drafts=self.drafts)

    collector, ranks = Guessing(), Ranks()
    source = Rollouts(Stream(PROMPTS, 4, 0), collector, ranks)
    console = Console("ppo", 1, quiet=True)
    assert source.collect(0, console)[1]["sampling/accepted_fraction"] == 0.4
    ranks.sum = lambda tensor: tensor + torch.tensor([10.0, 0.0], dtype=torch.float64) if tensor.ndim else tensor
    assert source.collect(0, console)[1]["sampling/accepted_fraction"] == 0.2
    collector.drafts = (0, 0)
    ranks.sum = lambda tensor: tensor
    assert "sampling/accepted_fraction" not in source.collect(0, console)[1], (
        "nothing was drafted, so nothing was wrong"
    )
    collector.drafts = None
    assert "sampling/accepted_fraction" not in source.collect(0, console)[1]
