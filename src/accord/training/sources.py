"""Where the loop's items come from: a stream of examples, or a collector of rollouts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from accord.algorithms import Metrics
from accord.batch import TokenBatch
from accord.data import EncodedPrompt
from accord.ops.advantages import SAME_SCORE
from accord.ops.masking import sum_per_sequence
from accord.rollout.collect import Collection, Collector
from accord.training.console import Console
from accord.training.disk import writing
from accord.training.parallel import Ranks
from accord.training.stream import Stream
from accord.types import Rollout

T = TypeVar("T")

OTHER_ORDER = 1 << 24
"""Added to the seed for the prompts that take the place of dropped ones, which come in an order of their own."""


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

    @property
    def fingerprint(self) -> str:
        """Of the data; see `Stream`."""
        return self.stream.fingerprint

    def record(self, items: Sequence[T], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """Examples are in the data already."""


class Rollouts:
    """Rollouts sampled from the policy as it is now.

    Args:
        stream: prompts of each iteration.
        collector: answers and scores them.
        ranks: processes that share an iteration.
        rounds: how often further prompts are sampled in place of groups that teach nothing; 0 keeps all groups.
        compared: reward sources whose scores are compared, each by itself; `None`: the score is.
    """

    def __init__(
        self,
        stream: Stream[EncodedPrompt],
        collector: Collector,
        ranks: Ranks,
        rounds: int = 0,
        compared: Sequence[str] | None = None,
    ) -> None:
        self.stream, self.collector, self.ranks, self.rounds = stream, collector, ranks, rounds
        self.compared = compared
        self._others = Stream(stream.items, stream.batch_size, stream.seed + OTHER_ORDER)

    def collect(self, iteration: int, console: Console) -> tuple[list[Rollout], Metrics]:
        """This rank's rollouts of one iteration."""
        numbered = self.ranks.share(list(enumerate(self.stream.batch(iteration))))
        parts = [self._sample(numbered, iteration, console)]
        rollouts, counts = self._refill(parts, iteration, console) if self.rounds else (parts[0].rollouts, {})
        seconds = sum(part.rollout_seconds for part in parts)
        tokens = sum(len(one.response_ids) for part in parts for one in part.sampled())
        metrics = {
            "time/rollout": seconds,
            "time/reward": sum(part.reward_seconds for part in parts),
            "sampling/tokens_per_second": tokens / max(seconds, 1e-9),
            **lag_metric(rollouts, iteration),
        }
        drafts = [part.drafts for part in parts if part.drafts is not None]
        if drafts:
            drafted, accepted = self.ranks.sum(torch.tensor(drafts, dtype=torch.float64).sum(0)).tolist()
            if drafted:
                metrics["sampling/accepted_fraction"] = accepted / drafted
        # Every rank has the same sources, and a source always counts the same events.
        counted = {name for part in parts for name in part.reward_counts}
        for name in sorted(counted):
            count = sum(part.reward_counts.get(name, 0) for part in parts)
            metrics[f"env/reward_count/{name}"] = float(self.ranks.sum(torch.tensor(float(count))))
        return rollouts, metrics | counts

    @property
    def fingerprint(self) -> str:
        """Of the data; see `Stream`."""
        return self.stream.fingerprint

    def _sample(self, numbered: Sequence[tuple[int, EncodedPrompt]], iteration: int, console: Console) -> Collection:
        numbers, prompts = [number for number, _ in numbered], [prompt for _, prompt in numbered]
        console.phase("rollout", len(prompts) * self.collector.samples)
        return self.collector.collect(prompts, iteration, console.advance, numbers)

    def _refill(self, parts: list[Collection], iteration: int, console: Console) -> tuple[list[Rollout], Metrics]:
        """Sample other prompts in place of groups of one score, until every rank has as many as it had prompts (DAPO,
        arXiv:2503.14476, section 3.2). What is added to `parts` follows from seed and iteration, so a resumed run does the same.
        """
        useful, equal = split_groups(parts[0].rollouts, self.compared)
        wanted, rounds = len(useful) + len(equal), 1
        for extra in range(self.rounds):
            missing = wanted - len(useful)
            if float(self.ranks.max(torch.tensor(float(missing)))) == 0:
                break
            rounds += 1
            first = self.stream.batch_size * (extra + 1)  # groups have numbers of their own
            batch = self._others.batch(iteration * self.rounds + extra)
            numbered = self.ranks.share(list(enumerate(batch, first)))[:missing]
            if numbered:
                parts.append(self._sample(numbered, iteration, console))
                more, no_use = split_groups(parts[-1].rollouts, self.compared)
                useful, equal = useful + more, equal + no_use
        filled = useful + equal[: wanted - len(useful)]
        dropped = torch.tensor(float(len(useful) + len(equal) - wanted))
        return [rollout for group in filled for rollout in group], {
            "sampling/rounds": float(rounds),
            "sampling/groups_dropped": float(self.ranks.sum(dropped)),
        }

    def record(self, items: Sequence[Rollout], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """One parquet file an iteration, of all ranks."""
        parts = self.ranks.gather(rollout_columns(items, batch, iteration))
        if self.ranks.first:
            columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
            write_rollouts(columns, iteration, folder)


class OnAndOffPolicy:
    """Rollouts in some iterations, given responses in the others (Agarwal et al. 2023, arXiv:2306.13649, algorithm 1).

    Args:
        rollouts: the policy's own.
        given: responses from the data.
        share: probability that an iteration is on-policy.
        seed: of the run; which iterations are on-policy follows from it and the iteration's number.
        ranks: processes that share an iteration.
    """

    def __init__(self, rollouts: Rollouts, given: Stream[Rollout], share: float, seed: int, ranks: Ranks) -> None:
        self.rollouts, self.given, self.share, self.seed, self.ranks = rollouts, given, share, seed, ranks

    def collect(self, iteration: int, console: Console) -> tuple[list[Rollout], Metrics]:
        """This rank's rollouts, or given responses, of one iteration."""
        if random.Random(f"{self.seed}/{iteration}").random() < self.share:
            items, metrics = self.rollouts.collect(iteration, console)
            return items, metrics | {"distill/on_policy": 1.0}
        return self.ranks.share(self.given.batch(iteration)), {"distill/on_policy": 0.0}

    @property
    def fingerprint(self) -> str:
        """Of prompts and given responses."""
        return f"{self.rollouts.fingerprint}, {self.given.fingerprint}"

    def record(self, items: Sequence[Rollout], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """As `Rollouts` does."""
        self.rollouts.record(items, batch, iteration, folder)


def lag_metric(rollouts: Sequence[Rollout], version: int) -> Metrics:
    """`sampling/lag`: by how many versions the rollouts are older than the policy that learns from them, in the mean.

    Args:
        rollouts: any; responses from the data (version -1) were sampled by no version and do not count.
        version: of the policy now: how many iterations, or steps of a session, it has learnt.
    """
    versions = [rollout.version for rollout in rollouts if rollout.version >= 0]
    return {"sampling/lag": version - sum(versions) / len(versions)} if versions else {}


def split_groups(
    rollouts: Sequence[Rollout], compared: Sequence[str] | None = None
) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
    """Groups whose scores differ, and groups of one score; in the order in which they come.

    Args:
        rollouts: scored.
        compared: reward sources; a group then differs where the scores of any of them do, among the responses to which it
            applies.
    """
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout)
    useful: list[list[Rollout]] = []
    equal: list[list[Rollout]] = []
    for group in groups.values():
        rows = (
            [[r.total_score for r in group]] if compared is None else [[r.scores[c] for r in group] for c in compared]
        )
        (useful if any(_differ(row) for row in rows) else equal).append(group)
    return useful, equal


def _differ(scores: Sequence[float | None]) -> bool:
    known = [score for score in scores if score is not None]
    return bool(known) and max(known) - min(known) > SAME_SCORE


def rollout_columns(rollouts: Sequence[Rollout], batch: TokenBatch, iteration: int) -> dict[str, list[Any]]:
    """What was sampled and how it was scored: one row a response, `score/<label>` for each reward source, and the KL to the
    reference in nats (k1, summed over the response) where the algorithm measured it."""
    columns: dict[str, list[Any]] = {
        "iteration": [iteration] * len(rollouts),
        "prompt": [rollout.prompt_text for rollout in rollouts],
        "response": [rollout.response_text for rollout in rollouts],
        "score": [None if rollout.score is None else rollout.total_score for rollout in rollouts],
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
    """Write an iteration's rollouts as parquet, complete or not at all.

    Raises:
        RunError: they cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    path = folder / f"iteration-{iteration:06d}.parquet"
    aside = path.with_suffix(".partial")
    with writing(f"the rollouts of iteration {iteration}", folder):
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(dict(columns)), aside)  # which removes what it cannot finish
        aside.replace(path)
    return path
