"""What a person sees, with and without a terminal."""

from __future__ import annotations

import io
import os
import pty
import select

import pytest

from accord.training.console import COLUMNS, HEADER_EVERY, Console
from accord.training.metrics import METRICS

PPO = {"env/reward_mean": -0.1234, "objective/kl": 1.5, "objective/entropy": 2.25, "ppo/policy/clipfrac": 0.05,
       "sampling/length_mean": 61.2, "tokens/per_second": 1234.5, "time/iteration": 4.2}  # fmt: skip


def run(kind: str = "ppo", total: int = 3, metrics: dict[str, float] = PPO, **options) -> list[str]:
    out = io.StringIO()
    with Console(kind, total, file=out, **options) as console:
        for _ in range(total):
            console.phase("rollout", 4)
            console.advance(4, tokens=100)
            console.iteration(metrics)
    return out.getvalue().splitlines()


def test_lines_without_terminal_are_plain_and_aligned() -> None:
    lines = run()
    assert lines[0].split() == ["iteration", "score", "KL", "entropy", "clipped", "length", "tok/s", "seconds"]
    assert lines[1].split() == ["1/3", "-0.123", "1.50", "2.25", "0.0500", "61.2", "1,234", "4.20"]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in "".join(lines) and "\r" not in "".join(lines)


def test_missing_and_not_finite_figures_keep_the_columns() -> None:
    lines = run(metrics={"objective/kl": float("nan")}, total=1)
    assert lines[1].split() == ["1/1", "-", "nan", "-", "-", "-", "-", "-"]
    assert len(lines[0]) == len(lines[1])


def test_quiet_prints_nothing() -> None:
    out = io.StringIO()
    with Console("sft", 1, quiet=True, file=out) as console:
        console.header({"model": "gpt2"})
        console.phase("update", 2)
        console.advance()
        console.iteration({"sft/loss": 1.0})
        console.note("careful")
        console.summary([("model", "runs/sft/model")])
    assert out.getvalue() == ""


def test_log_every_keeps_first_and_last() -> None:
    lines = run(total=10, log_every=4)
    assert [line.split()[0] for line in lines[1:]] == ["1/10", "4/10", "8/10", "10/10"]


def test_header_is_repeated() -> None:
    lines = run(total=HEADER_EVERY + 1)
    assert [index for index, line in enumerate(lines) if "score" in line] == [0, HEADER_EVERY + 1]


def test_evaluations_are_never_left_out() -> None:
    out = io.StringIO()
    with Console("reward", 10, log_every=5, file=out) as console:
        console.iteration({"reward/loss": 0.6})
        console.iteration({"reward/loss": 0.6, "eval/loss": 0.65, "eval/accuracy": 0.7})
    assert "2  held-out rows: loss 0.650   accuracy 0.700" in out.getvalue()


def test_resumed_run_counts_on() -> None:
    out = io.StringIO()
    with Console("sft", 5, file=out) as console:
        console.start(3)
        console.iteration({"sft/loss": 1.0})
    assert "resumed after iteration 3 of 5" in out.getvalue()
    assert "4/5" in out.getvalue()


def test_header_and_summary_align_and_take_text_literally() -> None:
    out = io.StringIO()
    long_path = "runs/" + "x" * 200
    with Console("ppo", 1, file=out) as console:
        console.header({"model": "a[bold]b", "output": long_path})
        console.summary([("model", long_path), ("next step", "accord chat m")])
    lines = out.getvalue().splitlines()
    assert lines[0] == "accord ppo"
    assert "  model   a[bold]b" in lines
    assert f"  output  {long_path}" in lines, "a path is never broken over lines"
    assert f"  model      {long_path}" in lines
    assert "  next step  accord chat m" in lines


def test_terminal_has_bars_with_the_phase() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal, Console("ppo", 2, file=terminal) as console:
        console.phase("rollout", 8)
        console.advance(3, tokens=90)
        console._bars.refresh()
        console.iteration(PPO)
        console._bars.refresh()
    seen = ""
    while select.select([leader], [], [], 5.0)[0] and "1/2 iterations" not in seen:
        seen += os.read(leader, 1 << 16).decode()  # one read may bring a part
    os.close(leader)
    assert "3/8 responses" in seen
    assert "tok/s" in seen
    assert "1/2 iterations" in seen
    assert "left" in seen


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_are_documented_metrics(kind: str) -> None:
    assert all(column.metric in METRICS for column in COLUMNS[kind])
