"""`accord data check`: exit code 0 when every row can be used, else 1. `accord data stackexchange`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.cli import main
from data.stackexchange_posts import answer, dump, question
from recipes.tiny_runs import completions, pairs, write_rows


def test_a_good_file(tmp_path: Path, capsys):
    assert main(["data", "check", write_rows(tmp_path / "pairs.jsonl", pairs())]) == 0
    out = capsys.readouterr().out
    assert "preference" in out and "12 rows" in out and "accord reward" in out


def test_the_command_it_names_can_be_pasted(tmp_path: Path, capsys):
    (tmp_path / "my data").mkdir()
    path = write_rows(tmp_path / "my data" / "pairs.jsonl", pairs())
    assert main(["data", "check", path]) == 0
    assert f"--data.path '{path}'" in capsys.readouterr().out.replace("\n", "")


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


def test_a_dump_becomes_pairs_and_everything_is_counted(tmp_path: Path, capsys):
    pytest.importorskip("markdownify")
    dump(tmp_path / "Posts.xml", [question(1), answer(2, 1, 5), answer(3, 1, -1), question(4), answer(5, 9, 1)])
    out = tmp_path / "pairs.jsonl"
    words = ["data", "stackexchange", str(tmp_path / "Posts.xml"), "--processes", "1"]
    assert main([*words, "--output", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "1 rows (pairs): " in told
    assert "left out 1 it has fewer than 2 answers" in told and "left out 1 its question is not in the dump" in told
    assert json.loads(out.read_text())["margin"] == 4 and "--no-margin" in told
    assert main([*words, "--output", str(tmp_path / "b.jsonl"), "--no-margin"]) == 0
    assert "margin" not in json.loads((tmp_path / "b.jsonl").read_text())
    assert main(["data", "check", str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-pairs", "0"], 2, "max_pairs must be 1 or more"),
        (["--format", "pairs", "--min-answers", "1"], 2, "pairs need min_answers of 2"),
        ([], 1, "Posts.xml cannot be read: No such file"),
    ],
)
def test_a_dump_that_cannot_be_converted(words, code, said, tmp_path: Path, capsys):
    pytest.importorskip("markdownify")
    path, out = str(tmp_path / "Posts.xml"), str(tmp_path / "out.jsonl")
    assert main(["data", "stackexchange", path, "--output", out, *words]) == code
    assert said in capsys.readouterr().err
