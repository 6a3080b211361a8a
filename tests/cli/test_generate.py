"""`accord generate`."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord.cli import main
from accord.cli.generate import _row
from accord.types import Rollout
from recipes.tiny_runs import REWARDS, prompts, write_rows


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_output_file(finished, tmp_path: Path, capsys):
    file = write_rows(tmp_path / "prompts.jsonl", prompts())
    words = [
        "generate",
        str(finished / "model"),
        "--prompts",
        file,
        "--limit",
        "3",
        "--prompt",
        "a film",
        "--samples",
        "2",
    ]
    words += ["--max-new-tokens", "4", "--output", str(tmp_path / "out.jsonl")]
    assert main(words) == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert len(rows) == 8 and set(rows[0]) == {"prompt", "completion", "finish_reason"}
    assert [row["prompt"] for row in rows][::2] == ["a film", *(row["prompt"] for row in prompts(3))]
    assert "8 responses" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "again.jsonl")]) == 0
    assert rows_of(tmp_path / "again.jsonl") == rows
    assert main([*words[:-1], str(tmp_path / "other.jsonl"), "--seed", "1"]) == 0
    assert rows_of(tmp_path / "other.jsonl") != rows


def test_greedy_is_the_librarys(base, tmp_path: Path):
    words = ["generate", str(base), "--prompt", "the film was", "--temperature", "0", "--max-new-tokens", "8"]
    assert main([*words, "--output", str(tmp_path / "out.jsonl")]) == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    ids = tokenizer("the film was", return_tensors="pt").input_ids
    stop = tokenizer.eos_token_id
    with torch.no_grad():
        out = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=stop)[0, ids.shape[1] :]
    assert rows_of(tmp_path / "out.jsonl")[0]["completion"] == tokenizer.decode(out, skip_special_tokens=True)


def test_an_output_that_is_no_file_is_refused_before_anything_is_sampled(base, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("accord.recipes.generate.generate", lambda *_, **__: pytest.fail("something was sampled"))
    (tmp_path / "file").write_text("kept")
    for output, why in (
        (tmp_path, "is a folder; give the name of a file"),
        (tmp_path / "file" / "x", "cannot be written"),
    ):
        assert main(["generate", str(base), "--prompt", "a", "--output", str(output)]) == 2
        assert f"--output {output} {why}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_that_is_there_is_not_written_over(base, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("accord.recipes.generate.generate", lambda *_, **__: pytest.fail("something was sampled"))
    file = write_rows(tmp_path / "prompts.jsonl", prompts())
    before = Path(file).read_bytes()
    assert main(["generate", str(base), "--prompts", file, "--output", file]) == 2
    assert f"--output {file} is there already" in capsys.readouterr().err and Path(file).read_bytes() == before


def test_responses_that_can_no_longer_be_written_are_printed(base, tmp_path: Path, capsys, monkeypatch):
    """Somebody else makes the file while we sample."""
    out = tmp_path / "out.jsonl"
    told = Rollout((1,), (2,), (-0.5,), "stop", "p", "r")

    def meanwhile(*_, **__):
        out.write_text("theirs")
        return [told]

    monkeypatch.setattr("accord.recipes.generate.generate", meanwhile)
    assert main(["generate", str(base), "--prompt", "a", "--output", str(out)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == _row(told) and "printed instead" in captured.err
    assert out.read_text() == "theirs"


def test_a_pipe_may_be_there_already(base, tmp_path: Path, monkeypatch):
    told = Rollout((1,), (2,), (-0.5,), "stop", "p", "r")
    monkeypatch.setattr("accord.recipes.generate.generate", lambda *_, **__: [told])
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        assert main(["generate", str(base), "--prompt", "a", "--output", str(tmp_path / "pipe")]) == 0
        assert json.loads(read.result(timeout=10)) == _row(told)
    assert (tmp_path / "pipe").exists()


def test_to_the_screen(base, capsys):
    assert main(["generate", str(base), "--prompt", "the film was", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("the film was")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to answer"),
        (["--prompt", "a", "--limit", "3"], "--limit counts rows of --prompts"),
        (["--prompt", "a", "--chat"], "template"),
    ],
)
def test_what_cannot_be_answered(words, message, base, capsys):
    assert main(["generate", str(base), *words]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--stop", ".", "--stop", ""], "stop must not be an empty text"),
        (["--max-new-tokens", "500"], "reads at most 128 tokens"),
    ],
)
def test_sampling_that_cannot_be_is_refused(words, said, finished, capsys):
    assert main(["generate", str(finished / "model"), "--prompt", "a film", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_folder_of_the_output_is_made(finished, tmp_path: Path):
    out = tmp_path / "new" / "out.jsonl"
    words = ["generate", str(finished / "model"), "--prompt", "a film", "--max-new-tokens", "2", "--output", str(out)]
    assert main(words) == 0 and len(rows_of(out)) == 1


def test_best_of_n(finished, tmp_path: Path, capsys):
    (tmp_path / "rewards.py").write_text(REWARDS)
    words = ["generate", str(finished / "model"), "--prompt", "a film", "--prompt", "the end", "--max-new-tokens", "5"]
    words += ["--best-of", "4", "--reward", f"{tmp_path}/rewards.py:letters"]
    words += ["--reward", f"{{function: '{tmp_path}/rewards.py:brevity', weight: 0.01}}"]
    assert main([*words, "--all", "--output", str(tmp_path / "all.jsonl")]) == 0
    assert "at most 0.64 nats of KL" in capsys.readouterr().out
    rows = rows_of(tmp_path / "all.jsonl")
    assert len(rows) == 8 and set(rows[0]) == {"prompt", "completion", "finish_reason", "score", "scores", "best"}
    for row in rows:
        assert row["score"] == pytest.approx(row["scores"]["letters"] + 0.01 * row["scores"]["brevity"])
    assert main([*words, "--output", str(tmp_path / "best.jsonl")]) == 0
    best = [max(rows[k : k + 4], key=lambda row: row["score"]) for k in (0, 4)]
    assert rows_of(tmp_path / "best.jsonl") == [{k: v for k, v in row.items() if k != "best"} for row in best]
    assert [row for row in rows if row["best"]] == best
    assert main(words) == 0
    assert capsys.readouterr().out.count("score ") == 2


def test_the_score_of_a_row_is_with_those_of_its_tokens():
    told = Rollout(
        (1,), (2, 3), (-0.5, -0.5), "stop", "p", "r", score=1.0, token_scores=(0.5, -3.0), scores={"a": -1.5}
    )
    assert _row(told) == {
        "prompt": "p",
        "completion": "r",
        "finish_reason": "stop",
        "score": -1.5,
        "scores": {"a": -1.5},
    }


def test_rewards_get_the_columns_of_the_prompts(finished, tmp_path: Path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    file = write_rows(tmp_path / "prompts.jsonl", [row for row in prompts(6) if row["use"]])
    words = ["generate", str(finished / "model"), "--prompts", file, "--reward", f"{tmp_path}/rewards.py:sometimes"]
    assert main([*words, "--max-new-tokens", "2", "--output", str(tmp_path / "out.jsonl")]) == 0
    assert [row["score"] for row in rows_of(tmp_path / "out.jsonl")] == [1.0] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--best-of", "4"], "--best-of needs a --reward"),
        (["--best-of", "0", "--reward", "a.py:f"], "--best-of must be 1 or more"),
        (["--best-of", "4", "--samples", "2", "--reward", "a.py:f"], "give one of the two"),
        (["--all"], "--all shows what --best-of chose from"),
        (["--reward", "nowhere.py:f"], "nowhere.py does not exist"),
        (["--reward", "{weight: 2}"], "give exactly one of `model`"),
        (["--best-of", "4", "--temperature", "0", "--reward", "a.py:f"], "would be the same"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_a_model_is_loaded(words, said, capsys):
    assert main(["generate", "/no/model", "--prompt", "a film", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_template_for_a_model_without_one(base, tmp_path: Path, capsys):
    words = ["generate", str(base), "--chat", "--prompt", "a film", "--max-new-tokens", "2"]
    assert main(words) == 1
    assert "--chat-template of accord generate" in capsys.readouterr().err
    out = tmp_path / "out.jsonl"
    assert main([*words, "--chat-template", "transcript", "--output", str(out)]) == 0
    assert rows_of(out)[0]["prompt"].endswith("\n\nHuman: a film\n\nAssistant:")


def test_a_bad_row_gets_advice_that_can_be_followed(base, tmp_path: Path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    assert main(["generate", str(base), "--prompts", file]) == 1
    error = capsys.readouterr().err
    assert "rows.jsonl:2" in error and "Mend them" in error and "on_bad_row" not in error
