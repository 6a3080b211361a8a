from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from accord.data.sources import Rejection, Row, count_reasons, read_rows, stop_on
from accord.errors import DataError


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_broken_lines_are_rejected_by_line_number_and_the_rest_is_read(write, name):
    path = write([{"text": "a"}, "", '{"text": ', "[1, 2]", {"text": "b"}], name)
    rows, rejections = read_rows(path)
    assert rows == [Row(f"{name}:1", {"text": "a"}), Row(f"{name}:5", {"text": "b"})]
    assert [item.origin for item in rejections] == [f"{name}:3", f"{name}:4"]
    assert "not valid JSON" in rejections[0].reason
    assert "JSON array" in rejections[1].reason


def test_json_that_python_cannot_hold_is_rejected(tmp_path):
    number, nested = "7" * 5000, "[" * 200_000 + "]" * 200_000
    (tmp_path / "rows.jsonl").write_text(f'{{"n": {number}}}\n{{"n": {nested}}}\n{{"n": 7}}\n')
    rows, rejections = read_rows(str(tmp_path / "rows.jsonl"))
    assert rows == [Row("rows.jsonl:3", {"n": 7})]
    assert [item.reason for item in rejections] == [
        "is not usable JSON: it holds a whole number of more than 4300 digits",
        "is not usable JSON: it is nested too deeply",
    ]
    for content, why in ((number, "more than 4300 digits"), (nested, "nested too deeply")):
        (tmp_path / "rows.json").write_text(f'[{{"n": {content}}}]')
        with pytest.raises(DataError, match=f"rows.json is not usable JSON: .*{why}"):
            read_rows(str(tmp_path / "rows.json"))


def test_a_line_that_is_not_utf8_spoils_no_other(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n')
    rows, rejections = read_rows(str(file))
    assert [row.values["text"] for row in rows] == ["a", "c"]
    assert rejections[0].origin == "rows.jsonl:2" and "UTF-8" in rejections[0].reason


def test_line_separators_inside_a_string_do_not_split_it(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    rows, rejections = read_rows(str(file))
    assert rows[0].values == {"text": "a\u2028b\x85c"} and not rejections


def test_limit_counts_broken_rows_too(write):
    path = write([{"text": "a"}, "{", {"text": "b"}, {"text": "c"}])
    rows, rejections = read_rows(path, limit=3)
    assert [row.values["text"] for row in rows] == ["a", "b"] and len(rejections) == 1


def test_json_array_and_json_that_is_lines(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3]')
    rows, rejections = read_rows(str(tmp_path / "a.json"))
    assert rows == [Row("a.json row 1", {"text": "a"})] and rejections[0].origin == "a.json row 2"
    (tmp_path / "b.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [row.origin for row in read_rows(str(tmp_path / "b.json"))[0]] == ["b.json:1", "b.json:2"]
    (tmp_path / "c.json").write_text('{"data": []}')
    with pytest.raises(DataError, match="array of objects"):
        read_rows(str(tmp_path / "c.json"))


def test_text_documents_between_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows" / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree\r\n")
    assert read_rows(str(tmp_path / "windows" / "a.txt")) == read_rows(str(tmp_path / "a.txt"))
    assert read_rows(str(tmp_path / "a.txt"))[0] == [
        Row("a.txt:1", {"text": "one\ntwo"}),
        Row("a.txt:5", {"text": "three"}),
    ]


def test_parquet_rows_are_numbered(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "n": [1, None, 3]}), file)
    rows, _ = read_rows(str(file), limit=2)
    assert rows == [Row("a.parquet row 1", {"text": "a", "n": 1}), Row("a.parquet row 2", {"text": "b", "n": None})]
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_rows(str(file))


def test_folder_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    data = DatasetDict({"train": Dataset.from_list([{"text": "a"}]), "test": Dataset.from_list([{"text": "b"}])})
    data.save_to_disk(str(tmp_path / "saved"))
    assert read_rows(str(tmp_path / "saved"), "test")[0] == [Row("saved[test] row 1", {"text": "b"})]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read_rows(str(tmp_path / "saved"), "dev")


def test_folder_with_a_file_for_the_split(write, tmp_path):
    write([{"text": "a"}], "test.jsonl")
    assert read_rows(str(tmp_path), "test")[0][0].origin == "test.jsonl:1"
    with pytest.raises(DataError, match=r"it holds test\.jsonl"):
        read_rows(str(tmp_path), "train")


def test_missing_file_names_the_nearest(write, tmp_path):
    write([{"text": "a"}], "prompts.jsonl")
    with pytest.raises(DataError, match=r"does not exist: did you mean .*prompts\.jsonl"):
        read_rows(str(tmp_path / "promts.jsonl"))
    with pytest.raises(DataError, match="no folder"):
        read_rows(str(tmp_path / "nowhere" / "prompts.jsonl"))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="no known kind"):
        read_rows(str(tmp_path / "a.csv"))


def test_truncated_gzip_is_a_data_error(tmp_path):
    lines = "".join(json.dumps({"text": str(n)}) + "\n" for n in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-200])
    with pytest.raises(DataError, match="cannot be read beyond line"):
        read_rows(str(tmp_path / "a.jsonl.gz"))


def test_hub_failure_carries_its_cause(monkeypatch):
    import datasets

    def unreachable(name: str, split: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"someone/pairs.*no route to host") as caught:
        read_rows("someone/pairs")
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_hub_rows_are_numbered(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [{"text": f"{name} {split}"}])
    assert read_rows("someone/pairs", "test")[0] == [Row("someone/pairs[test] row 1", {"text": "someone/pairs test"})]


def test_stop_on_lists_the_first_ten_and_says_how_to_go_on():
    bad = [Rejection(f"a.jsonl:{n}", "is empty") for n in range(1, 13)]
    with pytest.raises(DataError) as caught:
        stop_on(bad, "a.jsonl", 40)
    message = str(caught.value)
    assert "12 of 40 rows" in message and "a.jsonl:10: is empty" in message and "a.jsonl:11:" not in message
    assert "and 2 more" in message and "data.on_bad_row: skip" in message
    stop_on([], "a.jsonl", 40)


def test_reasons_that_differ_in_a_number_are_counted_as_one():
    bad = [Rejection("a", "has 12 tokens"), Rejection("b", "has 9 tokens"), Rejection("c", "is empty")]
    assert count_reasons(bad) == {"has N tokens": 2, "is empty": 1}


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow'}"
    code = f"import accord.data, accord.data.formats, sys; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_endings_in_capitals(tmp_path):
    with gzip.open(tmp_path / "A.JSONL.GZ", "wb") as file:
        file.write(b'{"text": "one"}\n')
    assert [row.values for row in read_rows(str(tmp_path / "A.JSONL.GZ"))[0]] == [{"text": "one"}]


def test_a_string_without_an_end_is_told_in_plain_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one}')
    assert read_rows(str(tmp_path / "a.jsonl"))[1][0].reason == (
        "is not valid JSON: Unterminated string starting at column 10"
    )
