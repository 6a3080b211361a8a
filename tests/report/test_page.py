"""The page as a whole: complete, self-contained, and made from whatever a run left behind."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from accord.errors import RunError
from accord.report import write_report
from accord.report.page import commands
from accord.report.panels import PANELS
from accord.report.read import read_run
from accord.report.verdict import verdict
from accord.training.metrics import METRICS
from report.synthetic import make_run, write_rollouts, write_rows

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects headings and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
        if self.open and self.open[-1] == "h3":
            self.titles.append(data.strip())


def page(run_dir: Path) -> tuple[str, Outline]:
    target = write_report(run_dir)
    assert target == run_dir / "report.html"
    assert not (run_dir / "report.tmp").exists()
    text = target.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    return text, outline


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_page_needs_no_network(tmp_path: Path, kind: str) -> None:
    text, outline = page(make_run(tmp_path / "run", kind, 30))
    assert not re.search(r"(src|href|action|data)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert "<script src" not in text and "@import" not in text and "url(" not in text
    assert not {"link", "img", "iframe", "object"} & set(outline.tags)


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_every_panel_with_metrics_is_drawn(tmp_path: Path, kind: str) -> None:
    _, outline = page(make_run(tmp_path / "run", kind, 30))
    expected = [panel.title for section in PANELS[kind].values() for panel in section]
    assert [title for title in outline.titles if title in expected] == expected
    assert outline.tags.count("svg") == len(expected)


def test_panels_name_documented_metrics() -> None:
    panels = [panel for sections in PANELS.values() for section in sections.values() for panel in section]
    names = [name for panel in panels for name, _ in panel.metrics if not name.endswith("/")]
    assert set(names) <= set(METRICS)
    assert {panel.spread for panel in panels} - {None} <= set(METRICS)


def test_verdict_says_what_happened(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 2, planned=5)
    row = {"env/reward_std": 1.0, "objective/kl": 5.0, "time/iteration": 30.0, "memory/peak_gib": 2.0}
    write_rows(
        run_dir, [{"iteration": 1, "env/reward_mean": -0.5, **row}, {"iteration": 2, "env/reward_mean": 1.5, **row}]
    )
    assert " ".join(verdict(read_run(run_dir))) == (
        "The mean score rose from −0.500 to 1.50. The policy is 5.00 nats per response away from the reference "
        "(target 6.00). It took 2 iterations, 1 min 00 s, 2.00 GiB of memory at the peak. "
        "The recipe asks for 5 iterations, so 3 are still to come."
    )


def test_small_change_is_called_none(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 2)
    rows = [{"iteration": i, "env/reward_mean": 0.5 + i / 100, "env/reward_std": 1.0} for i in (1, 2)]
    write_rows(run_dir, rows)
    assert verdict(read_run(run_dir))[0] == "The mean score hardly moved (0.510 to 0.520)."


def test_unfinished_run_is_told_how_to_resume(tmp_path: Path) -> None:
    text, _ = page(make_run(tmp_path / "short", "ppo", 3, planned=10))
    assert "config.yaml --resume" in text
    text, _ = page(make_run(tmp_path / "done", "ppo", 3))
    assert "--resume" not in text


def test_samples_are_side_by_side_and_escaped(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 5, rollouts=False)
    evil = "<script>alert(1)</script> & <b>"
    rows = [
        {"iteration": i, "prompt": evil, "response": f"{evil} {i}", "score": float(i), "finish_reason": "stop",
         "kl": 0.5, "length": 4, "version": i, "score/a<b": 0.25, "score/c": None} for i in (1, 5)
    ]  # fmt: skip
    write_rollouts(run_dir, 1, rows[:1])
    write_rollouts(run_dir, 5, rows[1:])
    text, outline = page(run_dir)
    assert "<script>alert" not in text and "<b> " not in text
    visible = " ".join("".join(outline.text).split())
    assert f"{evil} 1" in visible and f"{evil} 5" in visible
    assert visible.count(evil) == 3, "the shared prompt is shown once"
    assert "a<b 0.250" in visible and "c none" in visible
    assert "start, iteration 1 score 1.00 KL 0.500 4 tokens" in visible


def test_no_metrics_yet(tmp_path: Path) -> None:
    text, outline = page(make_run(tmp_path / "run", "ppo", 0))
    assert "No iteration was finished" in text
    assert "svg" not in outline.tags


def test_only_config(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "sft", 3)
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "environment.json").unlink()
    assert "No iteration was finished" in page(run_dir)[0]


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_one_iteration(tmp_path: Path, kind: str) -> None:
    text, outline = page(make_run(tmp_path / "run", kind, 1))
    assert "It took 1 iteration," in text
    assert "circle" in outline.tags and "polyline" not in outline.tags


def test_no_rollouts(tmp_path: Path) -> None:
    text, _ = page(make_run(tmp_path / "run", "ppo", 5, rollouts=False))
    assert "<h2>Samples" not in text and "Highest and lowest" not in text


def test_values_that_are_not_finite_are_gaps_and_are_said(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "sft", 3)
    write_rows(run_dir, [{"iteration": i, "sft/loss": None if i == 4 else 2.0 / i} for i in range(1, 5)])
    text, _ = page(run_dir)
    assert "<code>sft/loss</code> was not finite in 1 of the last 1 rows: lower the learning rate" in text
    write_rows(run_dir, [{"iteration": 1, "sft/loss": None}])
    assert page(run_dir)[1].tags.count("svg") == 0


def test_metric_outside_its_range_comes_with_advice(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 3)
    assert "Worth a look" not in page(run_dir)[0]
    write_rows(run_dir, [{"iteration": 1, "ppo/policy/clipfrac": 0.6, "ppo/steps_skipped": 2.0}])
    text, _ = page(run_dir)
    assert "<code>ppo/policy/clipfrac</code> ended at 0.600" in text and "lower the learning rate" in text
    assert "<code>ppo/steps_skipped</code> ended at 2.00" in text, "also without a chart of its own"


def test_ten_thousand_iterations_stay_small(tmp_path: Path) -> None:
    target = write_report(make_run(tmp_path / "run", "ppo", 10_000))
    assert target.stat().st_size < 2_000_000


def test_what_a_kill_left_behind_is_left_out_and_said(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 4)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "env')
    (run_dir / "rollouts" / "iteration-000005.parquet").write_bytes(b"PAR1 torn")
    text, _ = page(run_dir)
    assert "1 line(s) of metrics.jsonl could not be read" in text
    assert "rollouts/iteration-000005.parquet could not be read" in text
    assert "end, iteration 4" in text


def test_later_row_of_an_iteration_counts(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "sft", 1)
    write_rows(
        run_dir,
        [{"iteration": 1, "sft/loss": 9.0}, {"iteration": 2, "sft/loss": 2.0}, {"iteration": 1, "sft/loss": 1.0}],
    )
    assert read_run(run_dir).points("sft/loss") == [(1, 1.0), (2, 2.0)]


def test_recipe_without_panels_gets_a_chart_for_each_metric(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "sft", 1)
    (run_dir / "config.yaml").write_text("algorithm: {type: new}\n")
    write_rows(run_dir, [{"iteration": i, "new/margin": i / 2, "sft/loss": 1.0} for i in (1, 2)])
    assert page(run_dir)[1].titles[:2] == ["new/margin", "sft/loss"]


def test_recipe_and_environment_are_shown(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ppo", 2)
    environment = json.loads((run_dir / "environment.json").read_text())
    visible = "".join(page(run_dir)[1].text)
    assert (run_dir / "config.yaml").read_text() in visible
    assert "versions.torch" in visible and environment["versions"]["torch"] in visible


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run in .*it has no config\.yaml"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="not valid YAML"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ("algorithm: {type: sft}\nadapter: {method: ia3}", "--adapter.method ia3 --reward REWARD"),
        ("algorithm: {type: sft}\nadapter: {method: lora}", "/model --reward REWARD"),
        ("algorithm: {type: sft}\nadapter: null", "/model --reward REWARD"),
        ("algorithm: {type: reward, level: step}", "--reward.0.process min --reward.0.model"),
        ("algorithm: {type: reward, level: response}", "--model.path POLICY --reward "),
    ],
)
def test_what_to_type_next_fits_the_model(config: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    assert any(command in line for _, line in commands(read_run(tmp_path)))


def test_nobody_talks_to_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("algorithm: {type: classify}")
    assert not any("accord chat" in line for _, line in commands(read_run(tmp_path)))
