"""Puts the page together and writes it."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from accord.report.charts import BOTTOM, HEIGHT, TOP
from accord.report.panels import draw, to_look_at
from accord.report.read import RunData, read_run, shown
from accord.report.samples import extremes, pair_up, shorten
from accord.report.verdict import is_complete, tiles, verdict

REPORT_FILE = "report.html"


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path; it needs no network and no other file.

    Works while the run is still going, and for one that was killed.

    Raises:
        RunError: there is no run in the directory.
    """
    run = read_run(Path(run_dir))
    target = run.path / REPORT_FILE
    aside = target.with_suffix(".tmp")
    aside.write_text(render(run), encoding="utf-8")
    aside.replace(target)  # Complete or absent, also when a browser reloads it meanwhile.
    return target


def render(run: RunData) -> str:
    """The page as text."""
    highest, lowest = extremes(run.last)
    return _templates().get_template("report.html.j2").render(
        run=run,
        title=run.path.resolve().name,
        model=_model(run),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=verdict(run),
        tiles=tiles(run),
        look=to_look_at(run),
        charts=draw(run),
        pairs=pair_up(run.first, run.last),
        highest=highest,
        lowest=lowest,
        environment=_flat(run.environment),
        commands=commands(run),
    )  # fmt: skip


def commands(run: RunData) -> list[tuple[str, str]]:
    """What to type next: go on if there is something left, then use what was made."""
    folder, model = shlex.quote(str(run.path)), shlex.quote(str(run.path / "model"))
    config = shlex.quote(str(run.path / "config.yaml"))
    resume = [("Go on with this run", f"accord {run.kind} {config} --resume")]
    method, term = _adapter_option(run), "--reward"
    if (run.config.get("algorithm") or {}).get("level") == "step":
        term = "--reward.0.process min --reward.0.model"
    use = {
        "classify": [],
        "sft": [
            ("Talk to the model", f"accord chat {model}"),
            ("Teach it from a reward", f"accord ppo --model.path {model}{method} --reward REWARD --data.path PROMPTS.jsonl "
             "--output runs/ppo"),
        ],
        "reward": [
            ("Use it as the reward", f"accord ppo --model.path POLICY {term} {model} --data.path PROMPTS.jsonl "
             "--output runs/ppo"),
        ],
    }.get(run.kind, [("Talk to the model", f"accord chat {model}")])  # fmt: skip
    again = [("Make this page again", f"accord report {folder}")]
    return [*([] if is_complete(run) else resume), *use, *again]


def _adapter_option(run: RunData) -> str:
    """What a command must be given that goes on from the run's adapter: it goes on by its own method alone."""
    adapter = run.config.get("adapter")
    method = adapter.get("method", "lora") if isinstance(adapter, dict) else "lora"
    return "" if method == "lora" else f" --adapter.method {shlex.quote(str(method))}"


def _model(run: RunData) -> str:
    model = run.config.get("model")
    return str(model.get("path") or "") if isinstance(model, dict) else ""


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as `a.b: value` rows."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{above}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return rows


def _code(text: str) -> Markup:
    """Escaped text in which `words in backquotes` are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("accord.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(shorten=shorten, code=_code)
    templates.globals.update(number=shown, top=TOP, bottom=HEIGHT - BOTTOM)
    return templates
