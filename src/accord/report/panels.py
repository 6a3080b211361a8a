"""Which curves a practitioner looks at for each recipe, in the order in which they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.report.charts import Rule, Series, line_chart
from accord.report.read import RunData, mean, shown
from accord.report.verdict import kl_target
from accord.training.metrics import Metric, describe

TAIL = 0.1
"""Share of the run, at its end, that is judged against the healthy range."""
COLOURS = 5
"""Series a chart can tell apart."""
SOURCES = "env/reward/"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: its title, and metrics with their labels. A name that ends in `/` stands for all metrics below it."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    spread: str | None = None
    """Metric that gives the half-width of the band around the first line."""


@dataclass(frozen=True, slots=True)
class Legend:
    """A label, its colour's number, and the last value."""

    label: str
    colour: int
    value: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A panel, drawn."""

    title: str
    unit: str
    svg: str
    legend: list[Legend]
    metrics: list[Metric]


def one(title: str, name: str, label: str | None = None) -> Panel:
    """A panel with a single line."""
    return Panel(title, ((name, label or title.lower()),))


GRADIENT = Panel("Gradient norm", (("optim/grad_norm", "norm"), ("optim/grad_norm_critic", "critic")))
OPTIMISER = (one("Learning rate", "optim/learning_rate"), GRADIENT)
SPEED = (
    Panel("Throughput", (("tokens/per_second", "all tokens"), ("sampling/tokens_per_second", "sampling"))),
    Panel(
        "Time of an iteration",
        (("time/rollout", "rollout"), ("time/reward", "reward"), ("time/score", "score"), ("time/update", "update"),
         ("time/data", "data")),
    ),
    one("Peak memory", "memory/peak_gib"),
)  # fmt: skip
LABELLED = (
    Panel("Mean rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
    Panel("Margin", (("rewards/margins", "training"), ("eval/rewards/margins", "held out"))),
    Panel("Log-probability", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
)
PANELS: dict[str, dict[str, tuple[Panel, ...]]] = {
    "sft": {
        "What it learns": (
            Panel("Loss", (("sft/loss", "training"), ("eval/loss", "held out"))),
            Panel("Perplexity", (("sft/perplexity", "training"), ("eval/perplexity", "held out"))),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    },
    "reward": {
        "What it learns": (
            Panel("Loss", (("reward/loss", "training"), ("eval/loss", "held out"))),
            Panel("Accuracy", (("reward/accuracy", "training"), ("eval/accuracy", "held out"))),
            Panel("Margin", (("reward/margin", "training"), ("eval/margin", "held out"))),
            Panel("Mean scores", (("reward/chosen_mean", "chosen"), ("reward/rejected_mean", "rejected"))),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    },
    "classify": {
        "What it learns": (
            Panel("Loss", (("classify/loss", "training"), ("eval/loss", "held out"))),
            Panel("Accuracy", (("classify/accuracy", "training"), ("eval/accuracy", "held out"))),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    },
    "kto": {
        "What it learns": (
            Panel("Loss", (("kto/loss", "training"), ("eval/loss", "held out"))),
            Panel("Accuracy", (("kto/accuracy", "training"), ("eval/accuracy", "held out"))),
            *LABELLED,
            one("KL term", "objective/kl", "z"),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    },
    "bco": {
        "What it learns": (
            Panel("Loss", (("bco/loss", "training"), ("eval/loss", "held out"))),
            Panel("Accuracy", (("bco/accuracy", "training"), ("eval/accuracy", "held out"))),
            *LABELLED,
            one("Reward shift", "bco/shift", "delta"),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    },
    "ppo": {
        "What it learns": (
            Panel("Score", (("env/reward_mean", "mean, band: one standard deviation"),), spread="env/reward_std"),
            Panel("Score by source", ((SOURCES, ""),)),
            one("KL to the reference", "objective/kl", "KL"),
            one("KL coefficient", "objective/kl_coef", "coefficient"),
            one("Entropy", "objective/entropy"),
            Panel("Response length", (("sampling/length_mean", "mean"), ("sampling/length_max", "longest"))),
            one("Responses that ended by themselves", "sampling/finished_fraction", "share"),
        ),
        "How it learns": (
            one("Policy loss", "ppo/loss/policy"),
            one("Value loss", "ppo/loss/value"),
            one("Explained variance of the values", "ppo/val/var_explained", "share"),
            Panel("Clipped fraction", (("ppo/policy/clipfrac", "policy"), ("ppo/val/clipfrac", "value"))),
            one("Change of the policy by an update", "ppo/policy/approxkl", "KL to the old policy"),
            Panel("Probability ratio", (("ppo/policy/ratio_mean", "mean"), ("ppo/policy/ratio_max", "largest"))),
            Panel("Score and penalty", (("ppo/mean_scores", "score"), ("ppo/mean_non_score_reward", "KL penalty"))),
            Panel("Returns and values", (("ppo/returns/mean", "returns"), ("ppo/val/mean", "values"))),
            *OPTIMISER,
        ),
        "How fast, and how faithful": (
            Panel(
                "Mismatch of trainer and sampler",
                (("sampling/logprob_difference_max", "largest"), ("sampling/logprob_difference_mean", "mean")),
            ),
            *SPEED,
        ),
    },
}  # fmt: skip
PANELS |= {
    kind: {
        "What it learns": (
            Panel("Loss", ((f"{kind}/loss", "training"), ("eval/loss", "held out"))),
            Panel("Accuracy", (("rewards/accuracies", "training"), ("eval/rewards/accuracies", "held out"))),
            Panel("Margin", (("rewards/margins", "training"), ("eval/rewards/margins", "held out"))),
            Panel("Rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
            Panel("Log-probabilities", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
            Panel("Likelihood of the chosen", ((f"{kind}/nll", "training"), ("eval/nll", "held out"))),
        ),
        "How it learns": OPTIMISER,
        "How fast": SPEED,
    }
    for kind in ("dpo", "orpo", "simpo", "cpo")
}
"""Recipe -> section -> panels. A panel is drawn when at least one of its metrics was logged."""


def draw(run: RunData) -> dict[str, list[Chart]]:
    """The charts of a run by section; a recipe without panels of its own gets one for each metric."""
    sections = PANELS.get(run.kind) or {"Metrics": _all_panels(run)}
    drawn = {title: [chart for panel in panels if (chart := _chart(run, panel))] for title, panels in sections.items()}
    return {title: charts for title, charts in drawn.items() if charts}


def to_look_at(run: RunData) -> list[str]:
    """Advice for every metric, drawn or not, that ended outside its healthy range."""
    metrics = [metric for name in run.names() if (metric := describe(name))]
    return [advice for metric in metrics if (advice := _advice(run, metric))]


def _all_panels(run: RunData) -> tuple[Panel, ...]:
    return tuple(one(name, name, name) for name in run.names() if name not in ("iteration", "step"))


def _expand(run: RunData, panel: Panel) -> list[tuple[str, str]]:
    """The panel's metrics that were logged; a folder of metrics becomes its members, if there are several."""
    logged = run.names()
    found: list[tuple[str, str]] = []
    for name, label in panel.metrics:
        if name.endswith("/"):
            members = [(member, member.removeprefix(name)) for member in logged if member.startswith(name)]
            found += members if len(members) > 1 else []
        elif name in logged:
            found.append((name, label))
    return found[:COLOURS]


def _chart(run: RunData, panel: Panel) -> Chart | None:
    found = _expand(run, panel)
    spread = run.points(panel.spread) if panel.spread else None
    series = [Series(label, run.points(name), None if index else spread) for index, (name, label) in enumerate(found)]
    svg = line_chart(panel.title, series, _rules(run, found)) if series else None
    if svg is None:
        return None
    # Several reward sources share one description.
    metrics = list({metric.meaning: metric for name, _ in found if (metric := describe(name))}.values())
    legend = [
        Legend(label, colour, shown(run.values(name)[-1]) if run.values(name) else "not finite")
        for colour, (name, label) in enumerate(found, 1)
    ]
    unit = next((metric.unit for metric in metrics if metric.unit), "")
    return Chart(panel.title, unit, svg, legend, metrics)


def _rules(run: RunData, found: Sequence[tuple[str, str]]) -> list[Rule]:
    """Healthy bounds of a single line, and the KL target."""
    names = [name for name, _ in found]
    rules = []
    if "objective/kl" in names and (target := kl_target(run)) is not None:
        rules.append(Rule(target, f"target {shown(target)}"))
    metric = describe(names[0]) if len(names) == 1 else None
    if metric and metric.high is not None:
        rules.append(Rule(metric.high, f"healthy below {shown(metric.high)}"))
    if metric and metric.low is not None:
        rules.append(Rule(metric.low, f"healthy above {shown(metric.low)}"))
    return rules


def _advice(run: RunData, metric: Metric) -> str | None:
    """What to do, when the last tenth of the run was outside the metric's healthy range or not finite."""
    points = run.points(metric.name)
    tail = points[-max(1, round(len(points) * TAIL)) :]
    values = [value for _, value in tail if value is not None]
    if lost := len(tail) - len(values):
        return (
            f"`{metric.name}` was not finite in {lost} of the last {len(tail)} rows: lower the learning rate, and look "
            "for odd rows or scores."
        )
    average = mean(values)
    if average is None or not metric.is_outside(average):
        return None
    return f"`{metric.name}` ended at {shown(average)}; healthy is: {_lower(metric.healthy)} {metric.outside}"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
