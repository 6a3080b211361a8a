"""Bytes of a recipe on a device, by role and phase, and its peak.

The phases are those of the loop: `load` the weights, `rollout` (sample), `score` (frozen passes), `update` (forward, backward,
step). What stays through all phases is counted in each; the peak is the phase with the largest sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from accord.config import Recipe, RolloutRecipe
from accord.forecast.devices import Device
from accord.forecast.passes import Passes
from accord.forecast.residents import Learner, Residents, Term, residents
from accord.forecast.workload import Workload, workload

MIB = 2**20
PROCESS = 450 * MIB
"""What a process takes on CPU before a model is loaded: Python, torch, transformers, peft, datasets and the rest; measured
(docs/forecast.md)."""
RECORDING = 50 * MIB
"""What a run with rollouts takes besides, once it has written some as parquet; measured likewise."""
CONTEXT = 512 * MIB
"""What an accelerator's driver and its libraries take of it (an assumption, not measured here)."""
FRAGMENTATION = 0.05
"""Of what comes and goes on an accelerator: PyTorch's caching allocator keeps pieces that do not fit (an assumption)."""
PHASES = ("load", "rollout", "score", "update")


@dataclass(frozen=True)
class Forecast:
    """What a recipe needs of each device."""

    kind: str
    device: Device
    phases: Mapping[str, tuple[Term, ...]]
    """The terms that are alive at the worst moment of each phase, in the order of the loop."""
    work: Workload
    notes: tuple[str, ...] = ()
    """What a person should know: guesses, and devices that stay idle."""
    facts: Mapping[str, str] = field(default_factory=dict)

    def total(self, phase: str) -> int:
        """Bytes of a phase; 0 of one that the recipe does not have."""
        return sum(term.bytes for term in self.phases.get(phase, ()))

    @property
    def peak_phase(self) -> str:
        """The phase that needs most; the first of several."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes that the recipe needs at most."""
        return self.total(self.peak_phase)

    @property
    def fits(self) -> bool:
        """Whether each device has as much."""
        return self.peak <= self.device.bytes

    def of(self, phase: str, what: str | None = None, role: str | None = None) -> int:
        """Bytes of some terms of a phase."""
        terms = self.phases.get(phase, ())
        return sum(t.bytes for t in terms if what in (None, t.what) and role in (None, t.role))


def forecast(recipe: Recipe, device: Device, longest: int | None = None) -> Forecast:
    """What a recipe needs of a device. Reads each model's config.json, and nothing else.

    Args:
        recipe: of any kind.
        device: to run on.
        longest: tokens of the longest row or prompt, where that is known.

    Raises:
        ModelError: a model is not there, or its shape is not known.
    """
    ranks = device.count if recipe.placement.type == "torchrun" else 1
    held = residents(recipe, device.cpu)
    bounds = [tokens for tokens in (longest, _positions(recipe, held)) if tokens is not None]
    work = workload(recipe, ranks, min(bounds, default=None), shares=shares_prefixes(recipe, held.learners))
    passes = Passes(recipe, held, work, device)
    process = PROCESS + (RECORDING if work.rows else 0)
    base = [Term("all", "process", process if device.cpu else CONTEXT)]
    here = held.offloaded if device.cpu else []
    weights = [*base, *held.weights, *here]
    steady = [*weights, *held.optimizer]
    phases: dict[str, tuple[Term, ...]] = {"load": tuple(_loading(base, held, device))}
    if work.rows:
        phases["rollout"] = _with(steady, passes.rollout(), device)
    scored = passes.score()
    if scored or (held.offloaded and not device.cpu):
        scored += [] if device.cpu else _largest(held.offloaded)
        # DPO asks its reference before the first step, when there is no state of the optimiser yet.
        before = [*weights, *held.once] if recipe.algorithm.type == "dpo" else steady
        phases["score"] = _with(before, scored, device)
    update = [_with(steady, terms, device) for terms in passes.update(ranks)]
    phases["update"] = max(update, key=lambda terms: sum(term.bytes for term in terms))
    return Forecast(recipe.algorithm.type, device, phases, work, tuple(_notes(recipe, held, device)), held.facts)


def _positions(recipe: Recipe, held: Residents) -> int | None:
    """Most tokens of an example's row that the model has positions for; rollouts that are longer are refused."""
    if isinstance(recipe, RolloutRecipe) or held.positions is None:
        return None
    return held.positions - max(x.adapter.virtual + x.adapter.prefix if x.adapter else 0 for x in held.learners)


def shares_prefixes(recipe: Recipe, learners: Iterable[Learner]) -> bool:
    """Whether what sequences begin with alike is computed once; as `accord.model.forward.why_whole` says."""
    virtual = any(x.adapter is not None and (x.adapter.virtual or x.adapter.prefix) for x in learners)
    packed = all(x.shape.reads == "packed" for x in learners)
    return recipe.model.share_prefixes and packed and not virtual


def _with(steady: Iterable[Term], passing: Iterable[Term], device: Device) -> tuple[Term, ...]:
    """What stays and what comes and goes, with what the allocator wastes."""
    passing = [term for term in passing if term.bytes]
    if not device.cpu:
        waste = int(FRAGMENTATION * sum(term.bytes for term in passing))
        passing = [*(term for term in passing if term.what != "fragmentation"), Term("all", "fragmentation", waste)]
    return (*steady, *passing)


def _largest(terms: list[Term]) -> list[Term]:
    """Of weights that come one role at a time, the most."""
    return [max(terms, key=lambda term: term.bytes)] if terms else []


def _loading(base: list[Term], held: Residents, device: Device) -> list[Term]:
    """All weights, and on CPU what the last checkpoint adds while it is converted: its file is in memory, too."""
    terms = [*base, *held.weights, *held.once, *(held.offloaded if device.cpu else [])]
    if not device.cpu:
        return terms
    done = sum(term.bytes for term in base)
    most = 0
    for load in held.loads:
        done += load.bytes
        most = max(most, done + load.mapped)
    extra = most - sum(term.bytes for term in terms)
    return [*terms, Term("all", "checkpoint file", extra)] if extra > 0 else terms


def _notes(recipe: Recipe, held: Residents, device: Device) -> list[str]:
    notes = list(held.notes)
    if device.count > 1 and recipe.placement.type != "torchrun":
        notes.append(
            f"placement.type: {recipe.placement.type} uses one of the {device.count} devices; torchrun shares each batch over "
            "all, and each holds the whole model"
        )
    return notes
