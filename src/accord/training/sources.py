"""Where the loop's items come from: a stream of examples, or a collector of rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from accord.algorithms import Metrics
from accord.batch import TokenBatch
from accord.data import EncodedPrompt
from accord.ops.masking import sum_per_sequence
from accord.rollout.collect import Collector
from accord.training.console import Console
from accord.training.parallel import Ranks
from accord.training.stream import Stream
from accord.types import Rollout

T = TypeVar("T")


class Examples(Generic[T]):
    """Batches of examples that are there already.

    Args:
        stream: of examples.
        ranks: that share each batch.
        arrange: done to a whole batch before it is shared, so that it does not depend on the number of ranks.
    """

    def __init__(self, stream: Stream[T], ranks: Ranks, arrange: Callable[[Sequence[T]], list[T]] = list) -> None:
        self.stream, self.ranks, self.arrange = stream, ranks, arrange

    def collect(self, iteration: int, console: Console) -> tuple[list[T], Metrics]:
        """This rank's examples of one iteration."""
        started = time.perf_counter()
        items = self.ranks.share(self.arrange(self.stream.batch(iteration)))
        return items, {"time/data": time.perf_counter() - started}

    def record(self, items: Sequence[T], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """Examples are in the data already."""


class Rollouts:
    """Rollouts sampled from the policy as it is now."""

    def __init__(self, stream: Stream[EncodedPrompt], collector: Collector, ranks: Ranks) -> None:
        self.stream, self.collector, self.ranks = stream, collector, ranks

    def collect(self, iteration: int, console: Console) -> tuple[list[Rollout], Metrics]:
        """This rank's rollouts of one iteration."""
        numbered = self.ranks.share(list(enumerate(self.stream.batch(iteration))))
        numbers, prompts = [number for number, _ in numbered], [prompt for _, prompt in numbered]
        console.phase("rollout", len(prompts) * self.collector.samples)
        done = self.collector.collect(prompts, iteration, console.advance, numbers)
        tokens = sum(len(rollout.response_ids) for rollout in done.rollouts)
        metrics = {
            "time/rollout": done.rollout_seconds,
            "time/reward": done.reward_seconds,
            "sampling/tokens_per_second": tokens / max(done.rollout_seconds, 1e-9),
            "sampling/lag": 0.0,
        }
        return done.rollouts, metrics

    def record(self, items: Sequence[Rollout], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """One parquet file an iteration, of all ranks."""
        parts = self.ranks.gather(rollout_columns(items, batch, iteration))
        if self.ranks.first:
            columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
            write_rollouts(columns, iteration, folder)


def rollout_columns(rollouts: Sequence[Rollout], batch: TokenBatch, iteration: int) -> dict[str, list[Any]]:
    """What was sampled and how it was scored: one row a response, `score/<label>` for each reward source, and the KL to the
    reference in nats (k1, summed over the response) where the algorithm measured it."""
    columns: dict[str, list[Any]] = {
        "iteration": [iteration] * len(rollouts),
        "prompt": [rollout.prompt_text for rollout in rollouts],
        "response": [rollout.response_text for rollout in rollouts],
        "score": [rollout.score for rollout in rollouts],
        "finish_reason": [rollout.finish_reason for rollout in rollouts],
        "length": [len(rollout.response_ids) for rollout in rollouts],
        "version": [rollout.version for rollout in rollouts],
    }
    if batch.old_logprobs_T is not None and batch.ref_logprobs_T is not None:
        columns["kl"] = sum_per_sequence(batch.old_logprobs_T - batch.ref_logprobs_T, batch).tolist()
    for label in rollouts[0].scores:
        columns[f"score/{label}"] = [rollout.scores[label] for rollout in rollouts]
    return columns


def write_rollouts(columns: Mapping[str, list[Any]], iteration: int, folder: Path) -> Path:
    """Write an iteration's rollouts as parquet, complete or not at all."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"iteration-{iteration:06d}.parquet"
    aside = path.with_suffix(".partial")
    parquet.write_table(pyarrow.table(dict(columns)), aside)
    aside.replace(path)
    return path
