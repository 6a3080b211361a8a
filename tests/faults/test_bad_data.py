"""Rows that cannot be used: named with file, line and reason, and nothing runs; or left out, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.tiny_runs import completions, pairs, prompts, write_rows

FAULTS = {
    "broken_line": ("sft", completions, '{"prompt": "the film", "comple', "is not valid JSON"),
    "missing_column": ("sft", completions, '{"prompt": "the film"}', "completion"),
    "empty_response": ("sft", completions, '{"prompt": "the film", "completion": ""}', "completion"),
    "too_long": (
        "sft",
        completions,
        json.dumps({"prompt": "odd " * 80, "completion": " good"}),
        "limit 64 (data.max_tokens)",
    ),
    "same_pair": (
        "reward",
        pairs,
        '{"prompt": "a", "chosen": " odd", "rejected": " odd"}',
        "are the same, so the pair says nothing",
    ),
    "empty_rejected": ("reward", pairs, '{"prompt": "a", "chosen": " odd", "rejected": ""}', "rejected"),
    "long_prompt": ("ppo", prompts, json.dumps({"prompt": "odd " * 80}), "limit 58 (data.max_tokens)"),
    "empty_prompt": ("ppo", prompts, '{"prompt": ""}', "prompt"),
}


def spoilt(fault: str, tmp_path: Path) -> tuple[str, str, str]:
    """A file whose row 3 is bad; its command, its path, and the reason to be told."""
    kind, rows, line, reason = FAULTS[fault]
    path = Path(write_rows(tmp_path / "feedback.jsonl", rows(8)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    if fault == "long_prompt":
        reason = "limit 58 (data.max_prompt_tokens, or data.max_tokens - rollout.max_new_tokens)"
    return kind, str(path), reason


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_stops_the_run_with_file_line_and_reason(fault, accord_command, tmp_path: Path):
    kind, path, reason = spoilt(fault, tmp_path)
    outcome = accord_command(kind, {"data": {"path": path}})
    assert outcome.code == 1
    assert "feedback.jsonl:3: " in outcome.error and reason in outcome.error
    assert "1 of " in outcome.error and "data.on_bad_row: skip" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_skipped_rows_are_counted_in_the_header(fault, accord_command, tmp_path: Path):
    """Invariant 7: rows in = rows used + rows rejected."""
    kind, path, _ = spoilt(fault, tmp_path)
    outcome = accord_command(kind, {"data": {"path": path, "on_bad_row": "skip"}})
    assert outcome.code == 0, outcome.error
    words = " ".join(outcome.out.split())
    assert "8 of 9 rows" in words and "1 rejected" in words
    assert (tmp_path / "run" / "report.html").is_file()


def test_no_row_left_is_an_error_even_when_skipping(accord_command, tmp_path: Path):
    path = write_rows(tmp_path / "none.jsonl", [{"prompt": "a", "completion": ""}])
    outcome = accord_command("sft", {"data": {"path": path, "on_bad_row": "skip"}})
    assert outcome.code == 1 and "none.jsonl:1" in outcome.error


def test_a_file_that_is_not_there_names_the_one_that_is(accord_command, tmp_path: Path):
    write_rows(tmp_path / "feedback.jsonl", completions())
    outcome = accord_command("sft", {"data": {"path": str(tmp_path / "fedback.jsonl")}})
    assert outcome.code == 1 and f"did you mean {tmp_path / 'feedback.jsonl'}?" in outcome.error


def test_data_of_another_kind_says_what_it_is(accord_command, tmp_path: Path):
    path = write_rows(tmp_path / "prompts.jsonl", prompts())
    outcome = accord_command("reward", {"data": {"path": path}})
    assert outcome.code == 1
    assert "needs two answers to one prompt: columns `prompt`, `chosen`, `rejected`" in outcome.error


def test_holding_everything_out(accord_command):
    outcome = accord_command("sft", {"data": {"eval_fraction": 0.99}})
    assert outcome.code == 2 and "data.eval_fraction" in outcome.error
