"""Conditional fine-tuning from rows to answers: what is asked for is what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import accord
from accord.cli import main
from accord.config import ModelConfig
from accord.data import read_records
from accord.data.conditioning import fit_conditioning, read_conditioning
from accord.errors import ConfigError, DataError
from accord.recipes.build import held_out_rows
from accord.recipes.chat import Chat
from accord.recipes.csft import check_values
from accord.recipes.generate import GenerateOptions, generate
from recipes.tiny_runs import recipe, run, scored, write_rows

REWARD = """
def goods(prompts, responses):
    assert not any("Quality" in prompt for prompt in prompts)
    return [float(text.count("good")) for text in responses]
"""
ROWS = [
    {"prompt": f"the film {i}", "completion": end, "score": score}
    for i in range(4)
    for end, score in ((" was good", 1.0), (" was odd", -1.0))
]


def answers(model: Path, label: str | None) -> list[str]:
    options = GenerateOptions(max_new_tokens=8, label=label, temperature=0)
    prompts = [f"the film {i}" for i in range(4)]
    return [r.response_text for r in generate(ModelConfig(path=str(model)), prompts, options)]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_label_decides_what_is_written(full, base: Path, tmp_path: Path):
    over = {
        "data": {"path": write_rows(tmp_path / "rows.jsonl", ROWS)},
        "adapter": None if full else {"r": 16, "alpha": 32},
        "train": {"steps": 120, "batch_size": 8, "learning_rate": 0.005 if full else 0.02, "checkpoint_every": 0},
    }
    model = run("csft", base, tmp_path, over).model
    kept = read_conditioning(model)
    assert kept is not None and kept.best == "good" and kept.edges == (0.0,)
    asked = {label: answers(model, label) for label in (None, "good", "bad")}
    assert asked[None] == asked["good"], "the best label is asked for unless told otherwise"
    assert asked["good"] == [" was good"] * 4 and asked["bad"] == [" was odd"] * 4


def test_a_reward_scores_the_rows_before_their_prompts_have_labels(base: Path, tmp_path: Path):
    (tmp_path / "goods.py").write_text(REWARD)
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in ROWS]
    over = {"data": {"path": write_rows(tmp_path / "rows.jsonl", rows)}, "reward": f"{tmp_path}/goods.py:goods"}
    assert read_conditioning(run("csft", base, tmp_path, over).model).edges == (0.5,)


ASKED = """
from pathlib import Path


def goods(prompts, responses):
    with (Path(__file__).parent / "asked").open("a") as file:
        file.writelines(response + "\\n" for response in responses)
    return [float(text.count("good")) for text in responses]
"""


def test_a_reward_is_not_asked_about_rows_that_do_not_fit(base: Path, tmp_path: Path):
    (tmp_path / "goods.py").write_text(ASKED)
    rows = [{"prompt": "the film", "completion": end} for end in (" was good", " was odd", " good" * 150)]
    data = {"path": write_rows(tmp_path / "rows.jsonl", rows), "max_tokens": 64}
    over = {"reward": f"{tmp_path}/goods.py:goods", "train": {"steps": 1}}
    with pytest.raises(DataError, match=r"1 of 3 rows .*\n.*rows.jsonl:3: the row has \d+ tokens, limit 64"):
        run("csft", base, tmp_path / "stop", over | {"data": data})
    assert not (tmp_path / "asked").exists()
    done = run("csft", base, tmp_path / "skip", over | {"data": data | {"on_bad_row": "skip"}})
    assert (tmp_path / "asked").read_text().splitlines() == [" was good", " was odd"]
    assert read_conditioning(done.model).edges == (0.5,), "and it has no say in the labels"
    (tmp_path / "asked").unlink()
    run("csft", base, tmp_path / "cut", over | {"data": data | {"too_long": "truncate"}})
    cut = (tmp_path / "asked").read_text().splitlines()[2]
    assert 0 < len(cut) < len(rows[2]["completion"]) and rows[2]["completion"].startswith(cut), "what is learnt"


def test_rows_that_do_not_fit_leave_the_values_of_the_others_as_they_are(base: Path, tmp_path: Path):
    rows = [
        {"prompt": "the film", "completion": " good" * 150, "score": 9.0},
        {"prompt": "the film", "completion": " was odd", "score": -1.0},
        {"prompt": "the film", "completion": " was good", "score": 2.0},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    over = {"data": {"path": path, "max_tokens": 64, "on_bad_row": "skip"}, "train": {"steps": 1}}
    assert read_conditioning(run("csft", base, tmp_path, over).model).edges == (0.5,)


def test_rows_longer_than_the_model_reads_are_refused_before_they_are_scored(base: Path, tmp_path: Path):
    (tmp_path / "goods.py").write_text(ASKED)
    rows = [{"prompt": "the film", "completion": end} for end in (" was good", " good" * 150)]
    over: dict[str, Any] = {"data": {"path": write_rows(tmp_path / "rows.jsonl", rows), "max_tokens": 999}}
    over["reward"] = f"{tmp_path}/goods.py:goods"
    with pytest.raises(ConfigError, match=r"reads at most 128 tokens .*: lower data.max_tokens"):
        run("csft", base, tmp_path, over)
    assert not (tmp_path / "asked").exists()


def test_a_reward_model_scores_the_rows(base: Path, reward_adapter: Path, tmp_path: Path):
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in scored()]
    over = {"data": {"path": write_rows(tmp_path / "rows.jsonl", rows)}, "reward": str(reward_adapter)}
    assert len(read_conditioning(run("csft", base, tmp_path, over).model).edges) == 1


def test_held_out_rows_get_the_labels_of_the_training_rows(base: Path, tmp_path: Path):
    held_out = [{"prompt": "the film 9", "completion": " was slow", "score": 0.25}]
    over = {"data": {"eval_path": write_rows(tmp_path / "held_out.jsonl", held_out)}}
    done = run("csft", base, tmp_path, over)
    assert done.metrics[-1]["eval/loss"] > 0 and read_conditioning(done.model).edges == (0.0,)


def test_bounds_are_those_of_the_rows_to_learn_from(base: Path, tmp_path: Path):
    """Those that are held out of the same file have no say, whichever the seed chooses."""
    rows = [{"prompt": f"the film {i}", "completion": " was odd", "score": float(i)} for i in range(8)]
    for seed in range(4):
        folder = tmp_path / str(seed)
        data = {"path": write_rows(tmp_path / "rows.jsonl", rows), "eval_fraction": 0.5}
        asked = recipe("csft", base, folder, {"data": data, "seed": seed, "train": {"steps": 1, "batch_size": 2}})
        aside = held_out_rows(asked, read_records(asked.data).origins)
        learnt = [float(i) for i, origin in enumerate(read_records(asked.data).origins) if origin not in aside]
        done = accord.train(asked, quiet=True)
        kept = read_conditioning(done.model)
        assert len(learnt) == 4 and kept.edges == fit_conditioning("{label}{prompt}", ("bad", "good"), learnt).edges
        assert kept.edges == (learnt[2],)
    few = [row | {"score": 0.0} for row in rows]
    few[3]["score"] = 1.0
    refused = []
    for seed in range(6):
        data = {"path": write_rows(tmp_path / "few.jsonl", few), "eval_fraction": 0.5}
        asked = recipe("csft", base, tmp_path / f"few{seed}", {"data": data, "seed": seed})
        origins = read_records(asked.data).origins
        refused.append(origins[3] in held_out_rows(asked, origins))
        if refused[-1]:
            with pytest.raises(DataError, match="1 different scores, too few for 2 labels"):
                check_values(asked)
        else:
            check_values(asked)
    assert set(refused) == {True, False}


def test_a_model_without_labels_cannot_be_asked_for_one(base: Path):
    with pytest.raises(ConfigError, match="was not trained with labels"):
        answers(base, "good")


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"template": "{prompt}"}, "{label} must stand in it once"),
        ({"template": "{label} {prompt} {prompt}"}, "{prompt} must stand in it once"),
        ({"labels": ["a", "a"]}, "each must be another word"),
    ],
)
def test_options_that_cannot_be(algorithm, message, base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        run("csft", base, tmp_path, {"algorithm": algorithm})


def test_the_labels_survive_merging_and_are_asked_for_in_a_chat(base: Path, tmp_path: Path):
    done = run("csft", base, tmp_path, {"train": {"steps": 1}})
    merged = accord.merge(done.model, tmp_path / "merged", torch.float32)
    conditioning = read_conditioning(done.model)
    assert conditioning is not None and read_conditioning(merged) == conditioning
    heard: list[str] = []
    chat = Chat(ModelConfig(path=str(merged)), GenerateOptions(max_new_tokens=4, temperature=0), plain=True)
    chat.answer("the film", heard.append)
    asked = generate(ModelConfig(path=str(merged)), ["the film"], GenerateOptions(max_new_tokens=4, temperature=0))
    assert "".join(heard) == asked[0].response_text
    assert chat._prompt("the film")[0] == asked[0].prompt_ids
    with pytest.raises(ConfigError, match="label 'best' is not one that the model knows"):
        Chat(ModelConfig(path=str(merged)), GenerateOptions(label="best"), plain=True)


def test_models_on_the_hub_keep_their_labels(base: Path, tmp_path: Path, hub_cache):
    for kind, over in (("adapter", {}), ("whole", {"adapter": None})):
        model = run("csft", base, tmp_path / kind, {"train": {"steps": 1}} | over).model
        name = hub_cache(f"someone/{kind}", model)
        here, there = (
            generate(ModelConfig(path=path), ["the film"], GenerateOptions(max_new_tokens=4))[0]
            for path in (str(model), name)
        )
        assert "good" in there.prompt_text
        assert (there.prompt_ids, there.response_ids) == (here.prompt_ids, here.response_ids)
    (model / "conditioning.json").write_text("{}")
    with pytest.raises(DataError, match=r"conditioning\.json cannot be read: KeyError: 'template'"):
        read_conditioning(model)


def test_its_rehearsal_looks_at_rewards_and_columns(base: Path, tmp_path: Path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    words = ["csft", "--model.path", str(base), "--data.path", rows, "--output", str(tmp_path / "out"), "--dry-run"]
    assert main([*words, "--reward", f"{tmp_path}/nowhere.py:f"]) == 2
    assert main([*words, "--reward", "{verifier: {type: math, answer: gold}}"]) == 2
    error = capsys.readouterr().err
    assert "nowhere.py does not exist" in error and "reads the column 'gold'" in error


@pytest.mark.parametrize("dry", [True, False])
def test_values_that_do_not_fit_are_told_before_any_weight_is_loaded(
    dry, base: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr("accord.model.loading.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    words = [{"prompt": "the film", "completion": " was", "score": word} for word in ("bad", "good")]
    named = write_rows(tmp_path / "words.jsonl", words)

    def told(data: str, *more: str) -> str:
        command = ["csft", "--model.path", str(base), "--data.path", data, "--output", str(tmp_path / "out"), *more]
        assert main([*command, "--dry-run"] if dry else command) == 1
        return capsys.readouterr().err

    assert "2 different scores, too few for 3 labels" in told(rows, "--algorithm.labels", "[a, b, c]")
    assert "have the labels bad, good; algorithm.labels are a, b" in told(named, "--algorithm.labels", "[a, b]")
    assert "column `gold` (algorithm.column) is None" in told(rows, "--algorithm.column", "gold")
    assert "held-out rows have scores, and the training rows have labels" in told(named, "--data.eval_path", rows)
