from __future__ import annotations

import dataclasses
import json

import pytest

from accord.config.data import DataConfig
from accord.data.formats import FORMATS, convert_row, detect, read_records
from accord.data.sources import Rejection, Row
from accord.errors import ConfigError, DataError
from accord.types import Example, LabelledResponse, Message, PreferencePair, Prompt

USER, REPLY, OTHER = Message("user", "Hi"), Message("assistant", "Hello"), Message("assistant", "Go away")


def said(*turns: Message) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def record(values, format=None):
    row = Row("a.jsonl:1", values)
    return convert_row(row, format or detect([row]))


def reason(values, format=None) -> str:
    result = record(values, format)
    assert isinstance(result, Rejection), result
    assert result.origin == "a.jsonl:1"
    return result.reason


@pytest.mark.parametrize(
    ("format", "values", "expected"),
    [
        ("text", {"text": "abc", "source": "s"}, Example("", "abc", {"source": "s"})),
        ("messages", {"messages": said(USER, REPLY)}, Example((USER,), (REPLY,))),
        ("messages", {"messages": said(USER, REPLY, USER, OTHER)}, Example((USER,), (REPLY, USER, OTHER))),
        ("completion", {"prompt": "Q", "completion": "A"}, Example("Q", "A")),
        ("completion", {"prompt": said(USER), "completion": said(REPLY)}, Example((USER,), (REPLY,))),
        ("completion", {"prompt": said(USER), "completion": "Hello"}, Example((USER,), (REPLY,))),
        ("completion", {"prompt": "Hi", "completion": said(REPLY)}, Example((USER,), (REPLY,))),
        (
            "preference",
            {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2},
            PreferencePair("Q", "A", "B", 2.0),
        ),
        ("preference", {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": None}, PreferencePair("Q", "A", "B")),
        ("preference", {"chosen": "Q: yes", "rejected": "Q: no"}, PreferencePair("Q:", " yes", " no")),
        (
            "preference",
            {"chosen": said(USER, REPLY), "rejected": said(USER, OTHER)},
            PreferencePair((USER,), (REPLY,), (OTHER,)),
        ),
        (
            "preference",
            {"prompt": "Hi", "chosen": said(USER, REPLY), "rejected": said(USER, OTHER)},
            PreferencePair((USER,), (REPLY,), (OTHER,)),
        ),
        ("labelled", {"prompt": "Q", "completion": "A", "label": 1}, LabelledResponse("Q", "A", True)),
        (
            "labelled",
            {"messages": said(USER, REPLY, USER, OTHER), "label": False},
            LabelledResponse((USER, REPLY, USER), (OTHER,), False),
        ),
        ("prompt", {"prompt": "Q", "answer": 7}, Prompt("Q", {"answer": 7})),
        ("prompt", {"prompt": said(USER)}, Prompt((USER,))),
    ],
)
def test_each_format_is_detected_and_read(format, values, expected):
    assert detect([Row("a", values)]) == format
    assert record(values) == expected


def test_relatives_are_brought_to_the_same_records():
    share = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    assert record(share) == Example((USER,), (REPLY,))
    assert record(share | {"system": "Be brief"}) == Example((Message("system", "Be brief"), USER), (REPLY,))
    pair = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go away"},
    }
    assert record(pair) == PreferencePair((USER,), (REPLY,), (OTHER,))
    alpaca = {"instruction": "Add", "input": "1 2", "output": "3", "id": 9}
    added = (Message("user", "Add\n\n1 2"),)
    assert record(alpaca) == Example(added, (Message("assistant", "3"),), {"id": 9})
    exchange = {"question": "Hi", "response_j": "Hello", "response_k": "Go away"}
    assert record(exchange) == PreferencePair((USER,), (REPLY,), (OTHER,))


def test_transcripts_share_their_prompt_turn_by_turn():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    pair = record({"chosen": start + "d, no ", "rejected": start + "d, yes"})
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert pair == PreferencePair(turns, (Message("assistant", "d, no"),), (Message("assistant", "d, yes"),))


@pytest.mark.parametrize(
    ("rejected", "why"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "are the same"),
        ("\n\nHuman: a\n\nAssistant:", "is empty"),
        ("\n\nHuman: a", "beginning of the other"),
        ("\n\nHuman: z\n\nAssistant: b", "no common beginning"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "must start with an assistant turn"),
        ("\n\nHuman: a\n\nAssistant: c\n\nHuman: d", "must end with an assistant turn"),
    ],
)
def test_odd_transcripts_are_rejected(rejected, why):
    assert why in reason({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": rejected})


@pytest.mark.parametrize(
    ("values", "format", "why"),
    [
        ({"prompt": "Q"}, "completion", "`completion` is missing"),
        ({"prompt": "Q", "chosen": "A", "rejected": None}, "preference", "`rejected` is missing"),
        ({"prompt": "Q", "completion": "A"}, "labelled", "`label` is missing"),
        ({"prompt": "Q", "completion": " \n"}, None, "`completion` is empty"),
        ({"prompt": "Q", "completion": []}, None, "`completion` is empty"),
        ({"prompt": " ", "completion": "A"}, None, "prompt is empty"),
        ({"prompt": ""}, None, "prompt is empty"),
        ({"prompt": said(Message("system", "S"))}, None, "no user turn"),
        ({"prompt": said(USER, REPLY)}, None, "ends with an assistant turn"),
        ({"prompt": 7}, None, "type int"),
        ({"text": ["a"]}, None, "type list"),
        ({"text": " "}, None, "`text` is empty"),
        ({"messages": "Hi"}, None, "list of messages"),
        ({"prompt": "Q", "chosen": "A", "rejected": "A "}, None, "are the same"),
        ({"prompt": "Q", "chosen": said(REPLY), "rejected": said(REPLY)}, None, "are the same"),
        ({"prompt": "Q", "chosen": "", "rejected": "A"}, None, "`chosen` is empty"),
        ({"prompt": "Q", "completion": "A", "label": "yes"}, None, "`label` is 'yes'"),
        ({"prompt": "Q", "completion": "A", "label": 2}, None, "`label` is 2"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": float("nan")}, None, "finite"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "1"}, None, "finite"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": True}, None, "finite"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 10**400}, None, "finite"),
        ({"text": "cut \ud83d"}, None, r"column 'text' holds '\ud83d' at character 5: half of a character"),
        (
            {"prompt": said(Message("user", "Q"), REPLY), "completion": "\udc00"},
            None,
            r"column 'completion' holds '\udc00'",
        ),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, None, r"column 'messages' holds '\ud83d'"),
        ({"text": "a", "label": "\ud83d"}, None, "column 'label' holds"),
        ({"tokens": ["a", "\ud83d"], "labels": ["x", "y"]}, None, "column 'tokens' holds"),
        ({"prompt": "Q", "answer": {"\ud83d": 1}}, None, "column 'answer' holds"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, None, "unknown role 'narrator'"),
        ({"messages": [{"role": "user", "content": None}]}, None, "only text"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "is empty"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}, None, "would be lost"),
        ({"messages": ["Hi"]}, None, "type str"),
        ({"messages": said(USER)}, None, "no assistant turn"),
        ({"messages": said(USER, REPLY, USER)}, None, "must end with an assistant turn"),
        ({"prompt": "Q", "completion": said(USER)}, None, "no assistant turn"),
        ({"chosen": "yes", "rejected": "no"}, None, "no common beginning"),
        ({"chosen": said(USER, REPLY), "rejected": "no"}, None, "plain text and the other"),
        ({"prompt": "?", "chosen": said(USER, REPLY), "rejected": said(USER, OTHER)}, None, "not the beginning"),
    ],
)
def test_bad_rows_say_why(values, format, why):
    assert why in reason(values, format)


def test_unknown_columns_are_listed_with_what_is_needed():
    with pytest.raises(DataError) as caught:
        detect([Row("a", {"question": "q", "answer": "a"})])
    message = str(caught.value)
    assert "`question`, `answer`" in message and "data.columns" in message
    assert all(f"- {name}:" in message for name in FORMATS)


def test_formats_are_those_of_the_config():
    from typing import get_args

    assert {*get_args(DataConfig.model_fields["format"].annotation)} == {"auto", *FORMATS}


MIXED = [
    {"prompt": "Q1", "chosen": "A", "rejected": "B"},
    "{broken",
    {"prompt": "Q2", "chosen": "A", "rejected": "A"},
    {"prompt": "Q3", "chosen": "A"},
    {"prompt": "Q4", "chosen": "A", "rejected": "B"},
]


@pytest.mark.parametrize("want", [None, PreferencePair, Example, Prompt, LabelledResponse])
def test_rows_in_are_rows_used_and_rows_rejected(write, want):
    loaded = read_records(DataConfig(path=write(MIXED), on_bad_row="skip"), want=want)
    assert loaded.rows == len(MIXED)
    assert [item.origin for item in loaded.rejections] == ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4"]
    assert list(dict.fromkeys(loaded.origins)) == ["rows.jsonl:1", "rows.jsonl:5"]
    assert len(loaded.origins) == len(loaded.records)


def test_left_out_rows_are_counted_too(write):
    rows = [{"prompt": "Q", "completion": "A", "label": n % 3 == 0} for n in range(9)]
    loaded = read_records(DataConfig(path=write(rows)), want=Example)
    assert len(loaded.records) == 3 and len(loaded.left_out) == 6 and loaded.rows == 9
    assert loaded.left_out[0].origin == "rows.jsonl:2"


def test_stop_lists_rows_and_the_way_on(write):
    with pytest.raises(DataError) as caught:
        read_records(DataConfig(path=write(MIXED)))
    message = str(caught.value)
    assert "3 of 5 rows" in message and "rows.jsonl:3: `chosen` and `rejected` are the same" in message
    assert "data.on_bad_row: skip" in message


def test_skip_is_logged_by_reason(write, caplog):
    read_records(DataConfig(path=write(MIXED), on_bad_row="skip"))
    assert "3 of 5 rows left out" in caplog.text and "are the same" in caplog.text


def test_no_row_left_is_an_error_even_with_skip(write):
    with pytest.raises(DataError, match="1 of 1 rows"):
        read_records(DataConfig(path=write([{"prompt": ""}]), on_bad_row="skip"))
    with pytest.raises(DataError, match="has no rows"):
        read_records(DataConfig(path=write([])))


def test_columns_are_renamed_and_limit_applies(write):
    path = write([{"question": f"Q{n}", "answer": "A"} for n in range(5)])
    loaded = read_records(DataConfig(path=path, columns={"question": "prompt"}, limit=2))
    assert loaded.records == [Prompt("Q0", {"answer": "A"}), Prompt("Q1", {"answer": "A"})]
    with pytest.raises(DataError, match=r"`questoin`.*did you mean `question`"):
        read_records(DataConfig(path=path, columns={"questoin": "prompt"}))


def test_swapped_columns(write):
    path = write([{"prompt": "Q", "chosen": "A", "rejected": "B"}])
    loaded = read_records(DataConfig(path=path, columns={"chosen": "rejected", "rejected": "chosen"}))
    assert loaded.records == [PreferencePair("Q", "B", "A")]


def test_records_written_as_rows_read_back_the_same(write):
    records = [
        PreferencePair((USER,), (REPLY,), (OTHER,), 0.5, {"k": [1]}),
        PreferencePair("Q", "A", "B"),
    ]
    rows = [{key: value for key, value in dataclasses.asdict(item).items() if key != "columns"} for item in records]
    rows[0]["k"] = [1]
    assert read_records(DataConfig(path=write([json.loads(json.dumps(row)) for row in rows]))).records == records


def test_real_transcripts(shared):
    config = DataConfig(path=str(shared / "hh_rlhf_harmless"), on_bad_row="skip")
    loaded = read_records(config)
    assert loaded.format == "preference" and loaded.rows == 1300
    assert len(loaded.rejections) == 4 and all("is empty" in item.reason for item in loaded.rejections)
    for pair in loaded.records:
        assert pair.prompt[-1].role == "user" and pair.chosen[0].role == pair.rejected[0].role == "assistant"
        assert pair.chosen[0] != pair.rejected[0]


@pytest.mark.parametrize(
    ("file", "format", "rows"),
    [
        ("kto_dpo_demo/dpo_en_demo.json.gz", "preference", 300),
        ("kto_dpo_demo/kto_en_demo.json.gz", "labelled", 300),
        ("stackexchange_pairs_tiny/stack_exchange_paired_tiny.json", "preference", 25),
    ],
)
def test_real_relatives(shared, file, format, rows):
    loaded = read_records(DataConfig(path=str(shared / file)))
    assert (loaded.format, len(loaded.records), loaded.rejections) == (format, rows, [])


def test_a_file_has_no_splits(tmp_path):
    for name in ("a", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n')
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"data.split: test is of a dataset folder .* is one file"):
        read_records(DataConfig(path=path, split="test"))
    beside = DataConfig(path="some/dataset", split="test")
    assert len(read_records(beside, str(tmp_path / "held_out.jsonl")).records) == 1
