"""`accord data check`: exit code 0 when every row can be used, else 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.cli import main
from recipes.tiny_runs import completions, pairs, write_rows


def test_a_good_file(tmp_path: Path, capsys):
    assert main(["data", "check", write_rows(tmp_path / "pairs.jsonl", pairs())]) == 0
    out = capsys.readouterr().out
    assert "preference" in out and "12 rows" in out and "accord reward" in out


def test_a_bad_row(tmp_path: Path, capsys):
    rows = [*completions(3), {"prompt": "a", "completion": ""}]
    assert main(["data", "check", write_rows(tmp_path / "rows.jsonl", rows)]) == 1
    assert "rows.jsonl:4" in " ".join(capsys.readouterr().out.split())


def test_token_lengths_of_a_model(base, tmp_path: Path, capsys):
    assert main(["data", "check", write_rows(tmp_path / "rows.jsonl", completions()), "--model", str(base)]) == 0
    assert "tokens" in capsys.readouterr().out


def test_no_file(tmp_path: Path, capsys):
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl does not exist" in capsys.readouterr().err


def test_no_action():
    with pytest.raises(SystemExit, match="2"):
        main(["data"])
