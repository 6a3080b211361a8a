"""The one loop. It knows sources, algorithms, learners and engines by their protocols, and no algorithm by name."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import torch

from accord.algorithms import Algorithm, Metrics
from accord.batch import TokenBatch
from accord.config import Recipe
from accord.errors import AccordWarning, ConfigError, RunError, TrainingError
from accord.model.device import PeakMemory
from accord.model.scorer import Scorer
from accord.rollout.protocol import Engine
from accord.training.card import write_run_card
from accord.training.console import Console
from accord.training.disk import writing
from accord.training.evaluate import with_perplexity
from accord.training.learner import Learner
from accord.training.run import Run, RunDirectory, read_metrics
from accord.training.seeds import seed_everything
from accord.training.sinks import METRICS_FILE, Sink, open_sinks
from accord.training.state import checkpoints, read_newest, steps_of, write_checkpoint
from accord.training.stream import order_seed


class Source(Protocol):
    """Gives the items of an iteration: a batch of examples, or freshly collected rollouts."""

    def collect(self, iteration: int, console: Console) -> tuple[list[Any], Metrics]:
        """Items of iteration `iteration` (from 0) and metrics of getting them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the data; see `Stream`."""
        ...

    def record(self, items: Sequence[Any], batch: TokenBatch, iteration: int, folder: Path) -> None:
        """Write down what was collected, if it is worth it."""
        ...


@dataclass
class Parts:
    """What a recipe builds and the loop runs."""

    kind: str
    """The training command."""
    recipe: Recipe
    algorithm: Algorithm
    learner: Learner
    scorer: Scorer
    source: Source
    iterations: int
    steps_per_iteration: int
    save: Callable[[Path], None]
    """Writes the model to a folder."""
    engine: Engine | None = None
    evaluate: Callable[[], Metrics] | None = None
    begin: Callable[[Console], Mapping[str, str]] | None = None
    """What has to be computed with the weights as they are at the start, before a checkpoint takes their place; gives facts for
    the header."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """For the header."""
    next_steps: Sequence[tuple[str, str]] = ()
    """For the summary."""
    notes: Sequence[str] = ()
    """What a person should know about the data before the run starts."""
    longest: int | None = None
    """Tokens of the longest row to learn from, or of the longest prompt."""
    forecast_bytes: int | None = None
    """Memory that the run is expected to take, where that is known."""


def run_loop(
    parts: Parts,
    directory: RunDirectory,
    write_report: Callable[[Path], Any],
    *,
    resume: bool = False,
    quiet: bool = False,
    started: float | None = None,
) -> Run:
    """Run a recipe from its start or its newest whole checkpoint to its end, and write model and report.

    Args:
        parts: what to run.
        directory: where.
        write_report: given the directory.
        resume: go on from the newest checkpoint.
        quiet: print nothing.
        started: `time.perf_counter()` when the command was given, to log how long it took to the first iteration.

    Raises:
        AccordError: see the parts; whatever was learnt up to the newest checkpoint is kept.
    """
    recipe = parts.recipe
    memory = PeakMemory(parts.learner.roles.device)
    memory.lap("load")
    first_rank = parts.learner.ranks.first
    console = Console(parts.kind, parts.iterations, quiet=quiet or not first_rank, log_every=recipe.train.log_every)
    facts = parts.facts if parts.begin is None else {**parts.facts, **_begin(parts.begin, console)}
    begun, notes = _restore(parts, directory) if resume else (0, [])
    if resume and first_rank:
        with writing("the recipe", directory.path):
            directory.write_recipe()
            directory.forget_rollouts(begun)
    config = recipe.model_dump(mode="json")
    sinks = open_sinks(recipe.train.sinks, directory.path, config, begun if resume else None) if first_rank else []
    start = {} if started is None else {"time/start": time.perf_counter() - started}
    if start:
        facts = {**facts, "ready": f"{start['time/start']:.1f} s after the start"}
    with console, _stop_signals(), _warnings_shown(console):
        console.header({**facts, "output": str(directory.path), "seed": str(recipe.seed)})
        for note in (*notes, *recipe.warnings(), *parts.notes):
            console.note(note)
        console.start(begun)
        try:
            for iteration in range(begun, parts.iterations):
                metrics = _iterate(parts, iteration, directory, console, memory)
                metrics |= start if iteration == begun else {}
                _log(metrics, iteration + 1, sinks, console)
                if _due(recipe.train.checkpoint_every, iteration, parts.iterations) and first_rank:
                    _checkpoint(parts, directory, iteration + 1)
                parts.learner.ranks.barrier()
        except KeyboardInterrupt:
            go_on = f"Go on with: accord {parts.kind} --output {quote(str(directory.path))} --resume"
            raise RunError(f"stopped. {go_on if read_metrics(directory.path) else 'Nothing was learnt yet'}") from None
        finally:
            for sink in sinks:
                sink.close()
        if first_rank:
            with writing("the model", directory.model):
                parts.save(directory.model)
                write_run_card(parts, directory)
            with writing("the report", directory.path):
                write_report(directory.path)
            console.summary(_summary(parts, directory, memory))
    return Run(directory.path, read_metrics(directory.path))


def _begin(begin: Callable[[Console], Mapping[str, str]], console: Console) -> Mapping[str, str]:
    with console, _stop_signals(), _warnings_shown(console):
        return begin(console)


def _iterate(parts: Parts, iteration: int, directory: RunDirectory, console: Console, memory: PeakMemory) -> Metrics:
    """Collect, prepare, learn, hand over the weights."""
    started = time.perf_counter()
    seed_everything(parts.recipe.seed, iteration)
    items, metrics = parts.source.collect(iteration, console)
    memory.lap("rollout" if parts.engine is not None else "data")
    console.phase("update", parts.steps_per_iteration)
    try:
        batch, learnt = learn(
            items, parts.algorithm, parts.learner, parts.scorer, parts.recipe.seed, iteration, console.advance, memory
        )
    except TrainingError as error:
        raise TrainingError(f"{error}; {_way_on(parts.learner.steps, directory)}") from error
    metrics |= with_perplexity(learnt)
    if parts.engine is not None:
        parts.engine.load(None, iteration + 1)
        every = getattr(parts.recipe.train, "rollouts_every", 0)
        if every and (iteration % every == 0 or iteration + 1 == parts.iterations):
            parts.source.record(items, batch, iteration + 1, directory.rollouts)
    if parts.evaluate is not None and _due(parts.recipe.train.eval_every, iteration, parts.iterations):
        console.phase("eval", 1)
        metrics |= parts.evaluate()
        memory.lap("eval")
    return metrics | {
        "step": float(parts.learner.steps),
        "time/iteration": time.perf_counter() - started,
        "memory/peak_gib": memory.highest,
        **{f"memory/{phase}_gib": memory.phases[phase] for phase in PHASES if phase in memory.phases},
        **({} if parts.forecast_bytes is None else {"memory/forecast_gib": parts.forecast_bytes / 2**30}),
    }


PHASES = ("load", "rollout", "score", "update")
"""Those whose peak memory is logged: a forecast names the same."""


def learn(
    items: Sequence[Any],
    algorithm: Algorithm,
    learner: Learner,
    scorer: Scorer,
    seed: int,
    iteration: int,
    progress: Callable[[int, int], None] | None = None,
    memory: PeakMemory | None = None,
) -> tuple[TokenBatch, Metrics]:
    """Prepare one iteration's items and take its optimiser steps.

    Args:
        items: examples or scored rollouts.
        algorithm, learner, scorer: see there.
        seed: of the run; the order of minibatches follows from it and the iteration.
        iteration: from 0.
        progress: called with (steps, tokens) after each step.
        memory: notes the peaks of the phases `score` and `update`.

    Returns:
        The prepared batch and the metrics of preparation and steps.
    """
    scoring = time.perf_counter()
    batch, metrics = algorithm.prepare(items, scorer)
    if memory is not None:
        memory.lap("score")
    updating = time.perf_counter()
    generator = torch.Generator().manual_seed(order_seed(seed, iteration))
    steps: list[Metrics] = []
    minibatches = algorithm.minibatches(batch, generator)
    for minibatch in minibatches:
        steps.append(learner.update(minibatch))
        if progress is not None:
            progress(1, minibatch.tokens)
        if algorithm.enough(steps[-1]):
            left = sum(1 for _ in minibatches)
            learner.steps += left  # the learning rate follows its schedule all the same
            metrics["ppo/steps_left_out"] = float(left)
            break
    # Preparation knows only this rank's greatest values; those of steps are reduced already.
    greatest = [name for name in metrics if name.endswith("_max")]
    metrics |= {name: float(learner.ranks.max(torch.tensor(metrics[name]))) for name in greatest}
    seconds = time.perf_counter() - updating
    tokens = sum(step["tokens/seen"] for step in steps)
    if memory is not None:
        memory.lap("update")
    return batch, metrics | average(steps) | {
        "tokens/total": tokens,
        "tokens/per_second": tokens / max(seconds, 1e-9),
        "time/score": updating - scoring,
        "time/update": seconds,
    }


SUMMED = ("tokens/trained", "tokens/computed", "optim/steps_taken", "ppo/steps_skipped")


def average(steps: Sequence[Metrics]) -> Metrics:
    """One row from the metrics of an iteration's steps: the mean over the steps that have it; counts are summed, `_max` is
    the greatest, and learning rates are those of the last step. A step that had nothing to learn from measured nothing: its
    sums are 0, and only its counts are taken."""
    row: Metrics = {}
    for name in sorted({name for step in steps for name in step}):
        if name in SUMMED:
            row[name] = sum(step.get(name, 0.0) for step in steps)
            continue
        values = [step[name] for step in steps if name in step and step.get("tokens/trained") != 0]
        if not values:
            continue
        if name.endswith("_max"):
            row[name] = max(values)
        elif name.startswith("optim/learning_rate"):
            row[name] = values[-1]
        elif name != "tokens/seen":
            row[name] = sum(values) / len(values)
    return row


def _due(every: int, iteration: int, total: int) -> bool:
    return iteration + 1 == total or (every > 0 and (iteration + 1) % every == 0)


def _log(metrics: Metrics, iteration: int, sinks: Sequence[Sink], console: Console) -> None:
    row = {"iteration": float(iteration), **metrics}
    for sink in sinks:
        sink.log(row, iteration)
    console.iteration(row)


def _checkpoint(parts: Parts, directory: RunDirectory, iteration: int) -> None:
    learner = parts.learner
    state = {
        "steps": learner.steps,
        "learner": learner.state_dict(),
        "algorithm": parts.algorithm.state_dict(),
        "data": parts.source.fingerprint,
    }
    write_checkpoint(directory.checkpoints, iteration, learner.tensors(), state, parts.recipe.train.keep)


def _restore(parts: Parts, directory: RunDirectory) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint; returns the iterations done, and what a person should know."""
    checkpoint, damaged = read_newest(directory.checkpoints)
    notes = [f"{line}; falling back to the one before" for line in damaged]
    if checkpoint is None:
        return 0, ["no checkpoint was written yet, so the run starts from its beginning"]
    if checkpoint.iteration > parts.iterations:
        raise ConfigError(
            f"the run in {directory.path} has done {checkpoint.iteration} iterations, and this recipe ends after "
            f"{parts.iterations}: what was learnt is not taken back; give as many or more, or another `output`"
        )
    data = parts.source.fingerprint
    if checkpoint.state.get("data", data) != data:
        notes.append(
            "the data is not what the run began with (as many rows, the same, in the same order): rows may be seen twice in "
            "a pass, or not at all, and rows that were learnt may be held out"
        )
    parts.learner.load_tensors(checkpoint.tensors, checkpoint.state["steps"], checkpoint.state.get("learner"))
    parts.algorithm.load_state_dict(checkpoint.state["algorithm"])
    if parts.engine is not None:
        parts.engine.load(None, checkpoint.iteration)
    return checkpoint.iteration, [*notes, f"resumed from {checkpoint.path.name}"]


def _way_on(steps: int, directory: RunDirectory) -> str:
    """What lets a run go on after a step that was not finite: weights that gave it lie in the newest checkpoint if nothing was
    learnt since, and would give it again."""
    newest, before = [*reversed(checkpoints(directory.checkpoints)), None, None][:2]
    if newest is None or steps_of(newest) != steps:
        return "then go on with --resume"
    where = f"from {before.name}" if before is not None else "from the beginning"
    return (
        f"then go on with --resume. Nothing was learnt since {newest}, so its weights are those that gave this: unless it was "
        f"the scores, move that folder away first, and the run goes on {where}"
    )


def _summary(parts: Parts, directory: RunDirectory, memory: PeakMemory) -> list[tuple[str, str]]:
    lines = [("model", str(directory.model)), ("report", str(directory.path / "report.html"))]
    lines += [("metrics", str(directory.path / METRICS_FILE)), *_memory(parts, memory)]
    return [*lines, *parts.next_steps]


def _memory(parts: Parts, memory: PeakMemory) -> list[tuple[str, str]]:
    """What the run took, beside what it was expected to take."""
    peaks = ", ".join(f"{phase} {memory.phases[phase]:.2f}" for phase in PHASES if phase in memory.phases)
    line = f"peak {memory.highest:.2f} GiB ({peaks})"
    if parts.forecast_bytes is not None:
        told = parts.forecast_bytes / 2**30
        line += f"; the forecast was {told:.2f} GiB ({told / memory.highest - 1:+.0%})"
    return [("memory", line)]


@contextmanager
def _stop_signals() -> Iterator[None]:
    """A polite kill (SIGTERM) ends the run as Ctrl-C does: with word of how to go on."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_shown(console: Console) -> Iterator[None]:
    """Our own warnings appear among the lines of the run, others as Python shows them."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, AccordWarning):
            console.note(str(message))
        else:
            before(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
