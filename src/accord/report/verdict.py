"""The run in a few plain sentences, and in a few large figures."""

from __future__ import annotations

from dataclasses import dataclass

from accord.report.read import RunData, mean, shown
from accord.training.metrics import duration

WINDOW = 10
"""Rows at most that are averaged for "at the start" and "at the end"."""
NOTHING = 0.1
"""A change of less than this share of the scores' standard deviation is called none."""


PREFERENCES = (
    ("Held-out accuracy", "eval/rewards/accuracies", ""),
    ("Accuracy", "rewards/accuracies", ""),
    ("Margin", "rewards/margins", ""),
)
"""Figures of what learns from pairs, as `tiles` reads them."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One large figure."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A metric at the start and at the end."""

    first: float
    last: float
    window: int

    def words(self, noun: str, noise: float) -> str:
        """`the score rose from 0.1 to 0.9`, or that it hardly moved."""
        if self.window == 0:
            return f"the {noun} was {shown(self.last)}"
        difference = self.last - self.first
        if abs(difference) <= noise:
            return f"the {noun} hardly moved ({shown(self.first)} to {shown(self.last)})"
        verb = "rose" if difference > 0 else "fell"
        return f"the {noun} {verb} from {shown(self.first)} to {shown(self.last)}"


def change(run: RunData, name: str) -> Change | None:
    """How a metric went, each end averaged over a tenth of the rows; window 0 means that there is one row only."""
    values = run.values(name)
    if not values:
        return None
    if len(values) == 1:
        return Change(values[0], values[0], 0)
    window = min(WINDOW, max(1, len(values) // 10))
    return Change(mean(values[:window]) or 0.0, mean(values[-window:]) or 0.0, window)


def verdict(run: RunData) -> list[str]:
    """Sentences: what came of it, how far it went, what it took."""
    if not run.rows:
        return ["No iteration was finished: there are no metrics yet."]
    return [*_outcome(run), *_extent(run)]


LABELLED_TILES = (
    ("Margin", "rewards/margins", ""),
    ("Chosen", "rewards/chosen", ""),
    ("Rejected", "rewards/rejected", ""),
)


def tiles(run: RunData) -> list[Tile]:
    """The figures to remember."""
    figures = {
        "ppo": (("Score", "env/reward_mean", ""), ("KL", "objective/kl", "nats"),
                ("Response length", "sampling/length_mean", "tokens")),
        "sft": (("Loss", "sft/loss", "nats per token"), ("Held-out loss", "eval/loss", "nats per token")),
        "classify": (("Held-out accuracy", "eval/accuracy", ""), ("Accuracy", "classify/accuracy", "")),
        "kto": LABELLED_TILES,
        "bco": LABELLED_TILES,
        "reward": (("Held-out accuracy", "eval/accuracy", ""), ("Accuracy", "reward/accuracy", ""),
                   ("Margin", "reward/margin", "")),
        **dict.fromkeys(("dpo", "orpo", "simpo", "cpo"), PREFERENCES),
    }.get(run.kind, ())  # fmt: skip
    result = []
    for label, name, unit in figures:
        if (moved := change(run, name)) is not None:
            start = f"from {shown(moved.first)}" if moved.window else ""
            result.append(Tile(label, shown(moved.last), f"{start} {unit}".strip()))
    if run.rows:
        result.append(Tile("Iterations", f"{_finished(run):,}", _of_planned(run)))
    seconds = sum(run.values("time/iteration"))
    if seconds:
        result.append(Tile("Time", duration(seconds), f"{duration(seconds / len(run.rows))} an iteration"))
    if memory := run.values("memory/peak_gib"):
        result.append(Tile("Peak memory", f"{shown(max(memory))} GiB"))
    return result


def planned(run: RunData) -> int | None:
    """Iterations that the recipe asks for, where it says so."""
    train = run.config.get("train")
    wanted = (train.get("iterations") or train.get("steps")) if isinstance(train, dict) else None
    return int(wanted) if isinstance(wanted, int) else None


def kl_target(run: RunData) -> float | None:
    """The divergence that the controller steers to, where there is one."""
    algorithm = run.config.get("algorithm")
    kl = algorithm.get("kl") if isinstance(algorithm, dict) else None
    target = kl.get("target") if isinstance(kl, dict) else None
    return float(target) if isinstance(target, int | float) else None


def is_complete(run: RunData) -> bool:
    """Whether nothing is left to do, as far as the recipe says."""
    wanted = planned(run)
    return bool(run.rows) and (wanted is None or _finished(run) >= wanted)


def _finished(run: RunData) -> int:
    return int(run.rows[-1]["iteration"])


def _of_planned(run: RunData) -> str:
    wanted = planned(run)
    return f"of {wanted:,}" if wanted else ""


def _outcome(run: RunData) -> list[str]:
    sentences = []
    score, kl = change(run, "env/reward_mean"), change(run, "objective/kl")
    if score:
        noise = NOTHING * (mean(run.values("env/reward_std")) or 0.0)
        sentences.append(score.words("mean score", noise))
    if kl and run.kind != "kto":  # there it is measured on answers to other prompts
        sentences.append(f"the policy is {shown(kl.last)} nats per response away from the reference{_target(run)}")
    if loss := change(run, f"{run.kind}/loss"):
        sentences.append(loss.words("training loss", 0.01 * abs(loss.first)))
    if held_out := change(run, "eval/loss"):
        sentences.append(held_out.words("held-out loss", 0.01 * abs(held_out.first)))
    accuracy, where = change(run, "eval/accuracy"), "held-out"
    if accuracy is None:
        accuracy, where = change(run, f"{run.kind}/accuracy"), "training"
    for name, pairs in (("eval/rewards/accuracies", "held-out"), ("rewards/accuracies", "training")):
        if accuracy is None and (preferred := change(run, name)) is not None:
            accuracy, where = preferred, pairs
    if accuracy and run.kind in ("kto", "bco"):
        sentences.append(f"its reward puts {accuracy.last:.0%} of {where} rows on the right side")
    elif accuracy and run.kind == "classify":
        sentences.append(f"it classifies {accuracy.last:.0%} of {where} texts or words right")
    elif accuracy and change(run, "reward/margin") is None:
        sentences.append(f"it judges {accuracy.last:.0%} of {where} steps as their labels do")
    elif accuracy:
        sentences.append(f"it scores the chosen answer higher in {accuracy.last:.0%} of {where} pairs")
    return [_sentence(sentence) for sentence in sentences]


def _target(run: RunData) -> str:
    target = kl_target(run)
    return "" if target is None else f" (target {shown(target)})"


def _extent(run: RunData) -> list[str]:
    finished, wanted = _finished(run), planned(run)
    rows = "1 iteration" if finished == 1 else f"{finished:,} iterations"
    seconds, memory = sum(run.values("time/iteration")), run.values("memory/peak_gib")
    took = f", {duration(seconds)}" if seconds else ""
    needed = f", {shown(max(memory))} GiB of memory at the peak" if memory else ""
    sentences = [_sentence(f"it took {rows}{took}{needed}")]
    if wanted and finished < wanted:
        sentences.append(f"The recipe asks for {wanted:,} iterations, so {wanted - finished:,} are still to come.")
    return sentences


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
