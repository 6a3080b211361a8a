from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from accord.config import RECIPES
from accord.data.chat import set_chat_template
from accord.data.check import FEEDS, check, render
from accord.data.formats import FORMATS
from accord.errors import ConfigError, DataError

PAIRS = [
    {"prompt": "aa", "chosen": "b" * n, "rejected": "[red]c", "source": "s"} if n else {"prompt": "aa", "chosen": "x"}
    for n in range(22)
]


def rendered(report) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    return console.file.getvalue()


def test_report_counts_lengths_columns_and_problems(write):
    report = check(write([*PAIRS, "{"]))
    assert (report.format, report.rows, report.usable) == ("preference", 23, 21)
    assert sorted(item.origin for item in report.problems) == ["rows.jsonl:1", "rows.jsonl:23"]
    assert report.columns == {"prompt": 22, "chosen": 22, "rejected": 21, "source": 21}
    assert report.extra_columns == ["source"]
    chosen = next(item for item in report.lengths if item.part == "chosen")
    assert (chosen.unit, chosen.min, chosen.median, chosen.p95, chosen.max) == ("characters", 1, 11, 20, 21)
    assert report.duplicate_prompts == 20 and report.labels is None
    assert report.feeds[0] == "reward"


def test_labels_are_balanced_out_loud(write):
    report = check(write([{"prompt": f"p{n}", "completion": "a", "label": n < 3} for n in range(4)]))
    assert report.labels == (3, 1) and report.duplicate_prompts == 0
    assert "labels 3 true, 1 false (75% true)" in rendered(report)


def test_token_lengths_and_rows_that_the_template_refuses(make_tokenizer, write):
    tokenizer = make_tokenizer()
    rows = [
        {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]},
        {"messages": [{"role": "tool", "content": "the cat"}, {"role": "assistant", "content": "sat"}]},
    ]
    path = write(rows)
    without = check(path, tokenizer=tokenizer)
    assert not [item for item in without.lengths if item.unit == "tokens"] and "model.chat_template" in without.notes[0]
    set_chat_template(tokenizer, "transcript")
    report = check(path, tokenizer=tokenizer)
    tokens = {item.part: item.max for item in report.lengths if item.unit == "tokens"}
    assert tokens["completion"] == len(tokenizer(" sat</s>", add_special_tokens=False)["input_ids"])
    assert tokens["prompt"] == len(tokenizer("\n\nHuman: the cat\n\nAssistant:")["input_ids"])
    assert report.usable == 1 and "refuses" in report.problems[0].reason


def test_page_says_what_to_run_and_what_to_mend(write):
    path = write(PAIRS)
    page = rendered(check(path))
    assert f"accord reward --data.path {path}" in page
    assert "rows.jsonl:1" in page and "`rejected` is missing" in page and "--data.on_bad_row skip" in page
    assert "[red]c" in page  # text of a row is never taken for markup
    file = write([{"text": "x" * 999}], "test.jsonl")
    with pytest.raises(ConfigError, match=r"data.split: test is of a dataset folder"):
        check(file, split="test")
    good = rendered(check(str(Path(file).parent), split="test"))
    assert "all usable" in good and "What to do" not in good and "…" in good and "--data.split test" in good


def test_unknown_columns_and_empty_files_are_errors(write):
    with pytest.raises(DataError, match="Columns found: `question`"):
        check(write([{"question": "q"}]))
    with pytest.raises(DataError, match="has no rows"):
        check(write([]))


def test_conditional_fine_tuning_is_named_only_where_rows_say_how_good_they_are(write):
    bare = {"prompt": "p", "completion": "a"}
    assert "csft" not in check(write([bare])).feeds
    assert "csft" not in check(write([bare | {"score": 0.5}, bare])).feeds
    assert check(write([bare | {"score": 0.5}])).feeds[:2] == ("sft", "csft")
    assert "csft" in check(write([bare | {"label": True}])).feeds and "csft" in check(write(PAIRS)).feeds


def test_recipes_that_sample_share_a_line(write):
    path = write([{"prompt": "p"}])
    report = check(path)
    assert report.feeds[0] == "ppo" and {"grpo", "distill", "online_dpo"} <= set(report.feeds)
    page = rendered(report)
    assert f"accord ppo --data.path {path}  (or rloo, grpo, " in page
    assert page.count("--data.path") == 1


def test_commands_named_exist():
    assert FEEDS.keys() == FORMATS.keys()
    assert {command for commands in FEEDS.values() for command in commands} <= RECIPES.keys()
