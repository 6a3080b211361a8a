"""What a person sees while a run learns: a header, live bars, one aligned line an iteration, and where things are.

On a terminal the bars stay below the lines. Without one (a file, a pipe, a job's log) there are the lines alone, with
no control codes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Self

from rich.console import Console as Screen
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from accord.training.metrics import duration, number

HEADER_EVERY = 20
"""Lines between repetitions of the column names."""
RECENT = 20
"""Iterations that the estimate of the time left looks back on."""
UNITS = {"rollout": "responses", "reward": "responses", "score": "batches", "update": "minibatches", "eval": "batches"}
"""What each phase counts."""
UNITS["reference"] = "batches"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of an iteration's line."""

    title: str
    metric: str
    width: int = 9

    def cell(self, metrics: Mapping[str, float]) -> str:
        """The figure, right-aligned; a dash where the iteration has none."""
        return (number(metrics[self.metric]) if self.metric in metrics else "-").rjust(self.width)


SPEED = (Column("tok/s", "tokens/per_second"), Column("seconds", "time/iteration"))
LABELLED = (
    Column("margin", "rewards/margins"),
    Column("chosen", "rewards/chosen"),
    Column("rejected", "rewards/rejected"),
)
ROLLOUTS = (
    Column("score", "env/reward_mean"),
    Column("KL", "objective/kl"),
    Column("entropy", "objective/entropy"),
    Column("clipped", "ppo/policy/clipfrac"),
    Column("length", "sampling/length_mean"),
    *SPEED,
)
REJECTION = (
    Column("score", "env/reward_mean"),
    Column("kept", "rejection/score_kept"),
    Column("loss", "sft/loss"),
    Column("KL", "objective/kl"),
    Column("length", "sampling/length_mean"),
    *SPEED,
)
DISTILL = (
    Column("divergence", "distill/divergence", 11),
    Column("length", "sampling/length_mean"),
    Column("ended", "sampling/finished_fraction"),
    *SPEED,
)
ONLINE_DPO = (
    Column("score", "env/reward_mean"),
    Column("loss", "dpo/loss"),
    Column("accuracy", "rewards/accuracies"),
    Column("KL", "objective/kl"),
    Column("length", "sampling/length_mean"),
    *SPEED,
)
LOSS = (Column("loss", "sft/loss"), *SPEED)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "sft": (Column("loss", "sft/loss"), Column("perplexity", "sft/perplexity", 11), *SPEED),
    "reward": (
        Column("loss", "reward/loss"),
        Column("accuracy", "reward/accuracy"),
        Column("margin", "reward/margin"),
        *SPEED,
    ),
    "classify": (Column("loss", "classify/loss"), Column("accuracy", "classify/accuracy"), *SPEED),
    "ppo": ROLLOUTS,
    "rloo": ROLLOUTS,
    "grpo": ROLLOUTS,
    "reinforce": ROLLOUTS,
    "online_dpo": ONLINE_DPO,
    "csft": LOSS,
    "distill": DISTILL,
    "rejection": REJECTION,
    "remax": ROLLOUTS,
    **{
        kind: (
            Column("loss", f"{kind}/loss"),
            Column("accuracy", "rewards/accuracies"),
            Column("margin", "rewards/margins"),
            Column("chosen", "logps/chosen"),
            *SPEED,
        )
        for kind in ("dpo", "orpo", "simpo", "cpo")
    },
    "kto": (
        Column("loss", "kto/loss"),
        Column("accuracy", "kto/accuracy"),
        *LABELLED,
        Column("KL", "objective/kl"),
        *SPEED,
    ),
    "bco": (Column("loss", "bco/loss"), Column("accuracy", "bco/accuracy"), *LABELLED, *SPEED),
}
"""The figures that matter for each recipe; the rest is in `metrics.jsonl` and the report."""


class _Remark(ProgressColumn):
    """The end of a bar: time left of the whole run, tokens per second of a phase."""

    def render(self, task: Task) -> Text:
        tokens, seconds = task.fields["tokens"], task.elapsed
        if tokens and seconds:
            return Text(f"{number(tokens / seconds)} tok/s")
        return Text(task.fields["remark"])


class Console:
    """The display of one run; use it as a context manager around the loop."""

    def __init__(
        self, kind: str, total: int, quiet: bool = False, log_every: int = 1, file: IO[str] | None = None
    ) -> None:
        self.kind, self.total, self.log_every = kind, total, max(1, log_every)
        self.columns = COLUMNS.get(kind, SPEED)
        self.done = 0
        self._lines = 0
        self._tokens = 0
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._mark = time.monotonic()
        self._screen = Screen(file=file, quiet=quiet, highlight=False, markup=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", markup=False),
            _Remark(),
            console=self._screen,
            transient=True,
            refresh_per_second=4,
            disable=quiet or not self._screen.is_terminal,
        )
        self._all = self._bars.add_task(kind, total=total, unit="iterations", tokens=0, remark="")
        self._phase = self._bars.add_task("", total=1, unit="", tokens=0, remark="", visible=False)

    def __enter__(self) -> Self:
        self._mark = time.monotonic()
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def header(self, facts: Mapping[str, str]) -> None:
        """Say what runs: model, device, trainable parameters, rows, output, seed."""
        self._print(Text(f"accord {self.kind}", style="bold"))
        self._pairs(list(facts.items()))
        self._print()

    def start(self, iteration: int) -> None:
        """Say that a resumed run goes on after this iteration."""
        self.done = iteration
        self._bars.update(self._all, completed=iteration)
        self._mark = time.monotonic()
        if iteration:
            self._print(Text(f"resumed after iteration {iteration} of {self.total}", style="dim"))

    def phase(self, name: str, total: int) -> None:
        """Begin a part of the iteration, such as `rollout`, with so many things to do."""
        self._tokens = 0
        unit, title = UNITS.get(name, ""), f"  {name}"
        # A reset forgets all fields, so each is given again.
        self._bars.reset(
            self._phase, total=max(total, 1), visible=True, description=title, unit=unit, tokens=0, remark=""
        )

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """Count things of the phase that are done, and the tokens in them."""
        self._tokens += tokens
        self._bars.update(self._phase, advance=n, tokens=self._tokens)

    def iteration(self, metrics: Mapping[str, float]) -> None:
        """Count an iteration and print its line; lines between `log_every` are left out, evaluations never."""
        now = time.monotonic()
        self._seconds.append(now - self._mark)
        self._mark = now
        self.done += 1
        left = sum(self._seconds) / len(self._seconds) * (self.total - self.done)
        self._bars.update(self._all, completed=self.done, remark=f"{duration(left)} left")
        self._bars.update(self._phase, visible=False)
        if self.done % self.log_every == 0 or self.done in (1, self.total):
            self._line(metrics)
        held_out = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        if held_out:
            figures = "   ".join(f"{name.removeprefix('eval/')} {number(value)}" for name, value in held_out.items())
            self._print(Text(f"{self.done:>{self._width}}  held-out rows: {figures}", style="cyan"))

    def note(self, text: str) -> None:
        """Say something that the user should know, such as a warning."""
        self._print(Text(f"note: {text}", style="yellow"))

    def summary(self, lines: Sequence[tuple[str, str]]) -> None:
        """End of the run: what is where, and what to do next."""
        self._bars.stop()
        self._print()
        self._pairs(lines)

    @property
    def _width(self) -> int:
        return max(len("iteration"), 2 * len(str(self.total)) + 1)

    def _line(self, metrics: Mapping[str, float]) -> None:
        if self._lines % HEADER_EVERY == 0:
            titles = "".join(column.title.rjust(column.width + 1) for column in self.columns)
            self._print(Text("iteration".rjust(self._width) + titles, style="dim"))
        self._lines += 1
        figures = "".join(" " + column.cell(metrics) for column in self.columns)
        self._print(Text(f"{self.done}/{self.total}".rjust(self._width) + figures))

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        width = max((len(key) for key, _ in pairs), default=0)
        for key, value in pairs:
            self._print(Text.assemble((f"  {key:<{width}}  ", "dim"), value))

    def _print(self, text: Text | str = "") -> None:
        # Soft wrap: a path or command stays one piece that can be copied.
        self._screen.print(text, soft_wrap=True)
