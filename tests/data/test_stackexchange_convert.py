"""From a dump to a file: nothing lost, complete or absent, the same with any number of processes, readable by the recipes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from accord.config import DataConfig
from accord.data import read_records
from accord.data import stackexchange_convert as module
from accord.data.stackexchange import StackExchangeOptions, in_test, score
from accord.data.stackexchange_convert import StackExchangeReport, convert_stackexchange
from accord.errors import ConfigError, DataError
from accord.types import Example, PreferencePair, Prompt
from data.stackexchange_posts import answer, dump, question, row

pytest.importorskip("markdownify")

ROWS = [
    question(1, accepted=5),
    question(2),
    question(3, ClosedDate="2020"),
    answer(4, 1, 3),
    answer(5, 1, 3),
    answer(6, 2, 9),
    question(7),
    answer(8, 7, 0),
    answer(9, 7, 0),
    answer(10, 3, 1),
    answer(11, 3, 0),
    answer(12, 1, -2, "<p> </p>"),
    answer(13, 99, 2),
    question(14, body=""),
    answer(15, 14, 1),
    answer(16, 14, 5),
    row(Id=17, PostTypeId=6),
    row(Id="x", PostTypeId=1),
    answer(18, 1, -2),
    question(19, DeletionDate="2020"),
]


def convert(path: Path, out: Path, **options: Any) -> tuple[StackExchangeReport, list[dict[str, Any]]]:
    report = convert_stackexchange(path, out, StackExchangeOptions(**options))
    for tally in (report.rows, report.questions, report.answers, report.pairs):
        assert tally.adds_up, tally
    return report, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_used_or_reported(tmp_path: Path):
    report, rows = convert(dump(tmp_path / "Posts.xml", ROWS), tmp_path / "out.jsonl")
    assert [(r["chosen"], r["rejected"], r["margin"]) for r in rows] == [
        (" answer 5", " answer 4", 1),
        (" answer 4", " answer 18", 3),
        (" answer 5", " answer 18", 4),
    ]
    assert report.written == 3
    assert (report.rows.total, report.rows.used) == (20, 18)
    assert report.rows.left_out == {
        "it is a nomination of a moderator": 1,
        "has Id '…'; it must be a whole number": 1,
    }
    assert (report.questions.total, report.questions.used) == (6, 1)
    assert report.questions.left_out == {
        "it has fewer than 2 answers": 1,
        "all its answers have the same score": 1,
        "it is closed": 1,
        "it is deleted": 1,
        "its text is empty": 1,
    }
    assert (report.answers.total, report.answers.used) == (12, 3)
    assert report.answers.left_out == {
        "its question is left out": 7,
        "its question is not in the dump": 1,
        "its text is empty": 1,
    }
    assert (report.pairs.total, report.pairs.used) == (3, 3)
    assert report.rows.used == report.questions.total + report.answers.total


def test_closed_questions_when_asked_for(tmp_path: Path):
    report, rows = convert(dump(tmp_path / "Posts.xml", ROWS), tmp_path / "out.jsonl", keep_closed=True)
    assert {r["question_id"] for r in rows} == {1, 3} and "it is deleted" in report.questions.left_out


def many(path: Path, questions: int = 300, seed: int = 3) -> Path:
    """Questions with up to 8 answers, ids in a random order of posts."""
    generator = random.Random(seed)
    asked = [question(id) for id in range(1, questions + 1)]
    answers = [
        answer(
            1000 + k, generator.randrange(1, questions + 1), generator.randrange(-3, 60), "" if k % 31 == 0 else None
        )
        for k in range(4 * questions)
    ]
    return dump(path, asked + answers)


def naive(path: Path, options: StackExchangeOptions) -> set[tuple[int, str, str, int]]:
    """All pairs, from the whole dump in memory."""
    from xml.etree import ElementTree

    posts = [element.attrib for element in ElementTree.parse(path).getroot()]
    pairs = set()
    answers = [p for p in posts if p["PostTypeId"] == "2" and p["Body"]]
    for a in answers:
        for b in answers:
            margin = score(int(a["Score"]), False) - score(int(b["Score"]), False)
            if a["ParentId"] == b["ParentId"] and margin > 0:
                pairs.add((int(a["ParentId"]), f" answer {a['Id']}", f" answer {b['Id']}", margin))
    return pairs


def test_equals_a_join_in_memory(tmp_path: Path):
    path = many(tmp_path / "Posts.xml", 50)
    options = StackExchangeOptions(max_pairs=1000)
    report, rows = convert(path, tmp_path / "out.jsonl", max_pairs=1000)
    found = [(r["question_id"], r["chosen"], r["rejected"], r["margin"]) for r in rows]
    assert len(found) == len(set(found)) == report.pairs.total and set(found) == naive(path, options)
    assert [r["question_id"] for r in rows] == sorted(r["question_id"] for r in rows)


def test_pairs_beyond_the_limit_of_a_question_are_counted(tmp_path: Path):
    path = many(tmp_path / "Posts.xml", 80)
    report, rows = convert(path, tmp_path / "out.jsonl", max_pairs=2)
    per_question = [sum(r["question_id"] == id for r in rows) for id in {r["question_id"] for r in rows}]
    assert (
        max(per_question) == 2 and report.pairs.left_out["beyond 2 of a question"] == report.pairs.total - len(rows) > 0
    )


def test_several_processes_write_the_same_file(tmp_path: Path, monkeypatch):
    path = many(tmp_path / "Posts.xml", 120)
    monkeypatch.setattr(module, "CHUNK", 16)
    one, _ = convert(path, tmp_path / "one.jsonl", limit=60)
    two, _ = convert(path, tmp_path / "two.jsonl", limit=60, processes=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert (one.questions, one.answers, one.pairs) == (two.questions, two.answers, two.pairs)
    assert one.questions.used == 60 and one.questions.left_out["it is beyond the limit"] > 20


def test_the_splits_share_no_question_and_hold_all(tmp_path: Path):
    path = many(tmp_path / "Posts.xml", 120)
    ids = {}
    for split in ("all", "train", "test"):
        _, rows = convert(path, tmp_path / f"{split}.jsonl", split=split, test_fraction=0.2, seed=len(split))
        ids[split] = {r["question_id"] for r in rows}
    assert ids["train"] | ids["test"] == ids["all"] and not ids["train"] & ids["test"]
    assert ids["test"] == {id for id in ids["all"] if in_test(id, 0.2)} and ids["test"]


@pytest.mark.parametrize(("format", "record"), [("pairs", PreferencePair), ("sft", Example), ("prompts", Prompt)])
def test_the_recipes_read_what_is_written(tmp_path: Path, format, record):
    convert(many(tmp_path / "Posts.xml", 40), tmp_path / "out.jsonl", format=format)
    loaded = read_records(DataConfig(path=str(tmp_path / "out.jsonl")), want=record)
    assert loaded.rejections == [] and all(isinstance(found, record) for found in loaded.records)
    assert "question_id" in loaded.records[0].columns


def test_rows_of_a_file(tmp_path: Path):
    good = {"question": "<p>Why?</p>", "answers": [{"text": f"<p>{k}</p>", "pm_score": k % 3} for k in range(3)]}
    one = {"question": "<p>Why?</p>", "answers": [{"text": "<p>a</p>", "pm_score": 1}]}
    lines = [
        json.dumps(good),
        "{",
        json.dumps(one),
        json.dumps(good | {"question": "plain"}),
        json.dumps(good | {"qid": 50}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    report, rows = convert(path, tmp_path / "out.jsonl")
    assert len(rows) == 6 and [r["question_id"] for r in rows] == [1] * 3 + [50] * 3
    assert (report.rows.total, report.rows.used, report.questions.total, report.answers.total) == (5, 3, 3, 7)
    assert [bad.origin for bad in report.bad] == ["rows.jsonl:2", "rows.jsonl:4"]


def test_parquet_and_ready_pairs(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": f"Q{k}?", "response_j": "yes\n", "response_k": "no"} for k in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    _, found = convert(tmp_path / "pairs.parquet", tmp_path / "out.jsonl", content="markdown")
    assert found[1] == {"prompt": "Question: Q1?\n\nAnswer:", "question_id": 2, "chosen": " yes", "rejected": " no"}


def test_real_ready_pairs_and_the_preference_format_agree(shared: Path, tmp_path: Path):
    path = shared / "stackexchange_pairs_tiny" / "stack_exchange_paired_tiny.json"
    _, rows = convert(path, tmp_path / "out.jsonl", content="markdown")
    columns = {"question": "prompt", "response_j": "chosen", "response_k": "rejected"}
    loaded = read_records(DataConfig(path=str(path), columns=columns), want=PreferencePair)
    assert [(r["chosen"].strip(), r["rejected"].strip()) for r in rows] == [
        (pair.chosen.strip(), pair.rejected.strip()) for pair in loaded.records
    ]


def test_the_output_is_complete_or_absent(tmp_path: Path, monkeypatch):
    path = dump(tmp_path / "Posts.xml", ROWS, tail="")
    folder = tmp_path / "new"
    with pytest.raises(DataError, match="cut off"):
        convert(path, folder / "out.jsonl")
    assert list(folder.iterdir()) == []
    with pytest.raises(DataError, match="gives nothing to write") as error:
        convert(dump(tmp_path / "Posts.xml", ROWS[1:3]), folder / "out.jsonl")
    assert "it has fewer than 2 answers" in str(error.value) and list(folder.iterdir()) == []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "make_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(dump(tmp_path / "Posts.xml", ROWS), folder / "out.jsonl")
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        convert(dump(tmp_path / "Posts.xml", ROWS), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        convert(dump(tmp_path / "Posts.xml", ROWS), tmp_path / "file" / "out.jsonl")


def test_progress_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "TELL_EVERY", 2)
    told: list[tuple[str, int, int | None]] = []
    path = dump(tmp_path / "Posts.xml", ROWS)
    convert_stackexchange(path, tmp_path / "out.jsonl", progress=lambda *what: told.append(what))
    size = path.stat().st_size
    assert told == [("reading", size, size), ("writing", 2, 6), ("writing", 4, 6), ("writing", 6, 6)]


def test_a_process_that_dies_is_an_error_and_no_wait_without_end(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_make_many", _die)
    with pytest.raises(DataError, match="try --processes 1"):
        convert(dump(tmp_path / "Posts.xml", ROWS), tmp_path / "out.jsonl", processes=2)


def _die(*_: object) -> None:
    import os

    os._exit(1)
