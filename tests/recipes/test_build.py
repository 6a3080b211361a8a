"""Rows that are held out, what the header says of them, and models that a recipe cannot start from."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import accord
from accord.cli import COMMANDS
from accord.cli.train import read_recipe
from accord.config import RECIPES, ModelConfig
from accord.data import Encoder, encode_labelled, encode_pairs
from accord.errors import ConfigError, ModelError
from accord.model.merging import merge
from accord.ops import products
from accord.recipes import BUILDERS
from accord.recipes.build import Split, check_start, load_split
from accord.recipes.chat import Chat
from accord.recipes.generate import GenerateOptions, generate
from accord.recipes.rehearsal import rehearse
from recipes.tiny_runs import pairs, recipe, run, write_rows


def split(tokenizer, folder: Path, kind: str, rows, **data) -> Split:
    encoder, encode = Encoder(tokenizer), encode_labelled if kind == "kto" else encode_pairs
    over = {"data": {"path": write_rows(folder / "rows.jsonl", rows), **data}}
    return load_split(recipe(kind, "somewhere", folder, over), lambda loaded, config: encode(loaded, encoder, config))


def prompts(tokenizer, sequences) -> list[str]:
    return [
        tokenizer.decode(sequence.input_ids[: sequence.target_mask.index(True)], skip_special_tokens=True)
        for sequence in sequences
    ]


def test_both_halves_of_a_pair_are_on_one_side(tokenizer, tmp_path: Path):
    made = split(tokenizer, tmp_path, "kto", pairs(12), eval_fraction=0.25)
    assert made.facts["held out"] == "3 of these rows, made 6"
    held_out, train = (prompts(tokenizer, [row.sequence for row in rows]) for rows in (made.held_out, made.train))
    assert len(held_out) == 6 and len(train) == 18
    assert held_out[::2] == held_out[1::2] and train[::2] == train[1::2], "in the order of the rows"
    assert not set(held_out) & set(train)
    # The rows are those that recipes on pairs hold out, too.
    whole = split(tokenizer, tmp_path, "dpo", pairs(12), eval_fraction=0.25)
    assert whole.facts["held out"] == "3 of these rows"
    assert prompts(tokenizer, [pair.chosen for pair in whole.held_out]) == held_out[::2]


def test_rows_cannot_all_be_held_out(tokenizer, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data.eval_fraction: 0.9 of 1 rows leaves none to learn from"):
        split(tokenizer, tmp_path, "kto", pairs(1), eval_fraction=0.9)


def test_rows_are_held_out_before_any_is_rejected(tokenizer, tmp_path: Path):
    rows = pairs(8)
    whole = split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25)
    aside = prompts(tokenizer, [pair.chosen for pair in whole.held_out])
    place = next(i for i, row in enumerate(rows) if row["prompt"] == aside[0])
    rows[place] = rows[place] | {"chosen": " good" * 100}
    over = {"on_bad_row": "skip", "max_tokens": 64}
    made = split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25, **over)
    assert prompts(tokenizer, [pair.chosen for pair in made.held_out]) == aside[1:] and len(made.train) == 6
    assert made.facts["held out"] == "1 of these rows"
    rows = [row | {"chosen": " good" * 100} if row["prompt"] in aside else row for row in rows]
    with pytest.raises(ConfigError, match="none of the rows that are held out can be used"):
        split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25, **over)


def test_rows_and_their_parts_are_counted_apart(tokenizer, tmp_path: Path):
    long = " good" * 100
    rows = [
        *pairs(4),
        {"prompt": "one", "chosen": long, "rejected": " odd"},
        {"prompt": "both", "chosen": long, "rejected": long + " odd"},
        {"prompt": "none", "chosen": "", "rejected": " odd"},
    ]
    made = split(tokenizer, tmp_path, "kto", rows, on_bad_row="skip", max_tokens=64)
    told = made.facts["data"].partition(": ")[2]
    assert told == "5 of 7 rows (preference), made 9, 2 rejected, 1 parts of rows rejected"


@pytest.fixture(scope="module")
def mute(reward_adapter, reward_classifier, base, tmp_path_factory) -> dict[str, Path]:
    """Models that write nothing."""
    folder = tmp_path_factory.mktemp("mute")
    return {
        "reward adapter": reward_adapter,
        "reward model": reward_classifier,
        "merged reward adapter": merge(reward_adapter, folder / "merged", torch.float32),
        "classifier's adapter": run("classify", base, folder / "part").model,
        "classifier": run("classify", base, folder / "whole", {"adapter": None}).model,
    }


@pytest.mark.parametrize("kind", ["reward adapter", "reward model", "merged reward adapter"])
def test_a_reward_model_writes_nothing(kind, mute, base, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    folder = mute[kind]
    hint = re.escape(f"{folder} is a reward model") + ".*" + re.escape(f"--reward {folder}")
    for command in ("sft", "dpo", "ppo", "kto", "csft"):
        with pytest.raises(ModelError, match=hint):
            run(command, folder, tmp_path / command)
    with pytest.raises(ModelError, match=hint):
        run("ppo", base, tmp_path / "ppo", {"reference": {"source": "model", "path": str(folder)}})
    with pytest.raises(ModelError, match=hint):
        run("distill", base, tmp_path / "distill", {"teacher": str(folder)})
    with pytest.raises(ModelError, match=hint):
        generate(ModelConfig(path=str(folder)), ["a film"])
    with pytest.raises(ModelError, match=hint):
        Chat(ModelConfig(path=str(folder)), GenerateOptions(), plain=True)
    with pytest.raises(ModelError, match=hint):
        accord.PPO({"model": {"path": str(folder)}})


@pytest.mark.parametrize("kind", ["classifier", "classifier's adapter"])
def test_nor_does_a_classifier(kind, mute, tmp_path: Path):
    with pytest.raises(ModelError, match=r"is a classifier with the labels .*, and a language model is wanted here"):
        run("sft", mute[kind], tmp_path)
    with pytest.raises(ModelError, match="a language model is wanted here"):
        generate(ModelConfig(path=str(mute[kind])), ["a film"])


def test_a_reward_model_goes_on_as_one(mute, tmp_path: Path):
    assert run("reward", mute["reward adapter"], tmp_path / "reward").metrics
    assert run("classify", mute["classifier's adapter"], tmp_path / "classify").metrics


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_next_steps_can_be_pasted(kind, base, tmp_path: Path):
    """Each is read by a shell, and then by the command's own parser, with a space in the folder's name."""
    made = recipe(kind, base, tmp_path / "a run")
    for _, command in BUILDERS[kind](made).next_steps:
        words = shlex.split(command.split("  (")[0])
        if words[0] == "see":
            continue
        assert words[0] == "accord" and words[1] in COMMANDS
        assert any(word.startswith(f"{tmp_path}/a run/run/") for word in words), command


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix"])
def test_the_next_step_of_sft_runs(method, base, tmp_path: Path):
    done = run("sft", base, tmp_path / "sft", {"adapter": {"method": method}})
    (step,) = [
        command
        for title, command in BUILDERS["sft"](
            recipe("sft", base, tmp_path / "sft", {"adapter": {"method": method}})
        ).next_steps
        if title == "next"
    ]
    words = shlex.split(step)[2:]
    made = recipe("reward", base, tmp_path / "reward")
    words[words.index("--data.path") + 1] = made.data.path
    reward = read_recipe("reward", [*words, "--output", f"{tmp_path}/again"])
    assert Path(reward.model.path) == done.model
    rehearse(reward)
    check_start(reward)
    step = BUILDERS["reward"](reward).next_steps[0][1]
    assert (f"--adapter.method {method}" in step) == (method != "lora") and shlex.quote(str(done.model)) in step


def test_a_reward_model_that_went_on_is_no_policy(reward_adapter, base, tmp_path: Path):
    step = BUILDERS["reward"](recipe("reward", reward_adapter, tmp_path)).next_steps[0][1]
    assert "--model.path POLICY --reward" in step


def test_the_header_says_what_the_processor_has_to_do_with_the_type(model_folder, tmp_path: Path, monkeypatch) -> None:
    half = tmp_path / "half"
    shutil.copytree(model_folder("llama"), half)
    AutoModelForCausalLM.from_pretrained(half).to(torch.bfloat16).save_pretrained(half)

    def told(types: set[str], **model: str) -> str:
        monkeypatch.setattr(products, "fast_types", lambda: frozenset(types))
        over = {"adapter": {"r": 2}, "model": model}
        return str(BUILDERS["sft"](recipe("sft", half, tmp_path / "never", over)).facts["model"])

    assert told({"float32", "bfloat16"}).endswith(" bfloat16)")
    assert "float32: this processor has no instructions for the checkpoint's bfloat16" in told({"float32"})
    assert "bfloat16, for which this processor has no instructions" in told({"float32"}, dtype="bfloat16")
    assert told({"float32"}, dtype="float32").endswith(" float32)")
