"""SFT, reward model, PPO and generation run for each family and what they save is read again, or are refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import accord
from accord.batch import TokenBatch
from accord.config import ModelConfig
from accord.errors import ConfigError, DataError, ModelError
from accord.recipes import BUILDERS
from accord.recipes.generate import GenerateOptions
from model.test_families import one_by_one
from recipes.tiny_runs import completions, pairs, recipe, run, saved_weights, write_rows

FAMILIES = (
    "llama",
    "qwen3",
    "gemma3",
    "gemma3_images",
    "gpt2",
    "gpt_neox",
    "bloom",
    "opt",
    "mistral",
    "mixtral",
    "qwen3_moe",
    "jamba",
    "mamba",
    "falcon_h1",
    "cohere",
    "granite",
    "t5",
    "mt5",
    "umt5",
)
SCORERS = tuple(
    name for name in FAMILIES if name not in ("mamba", "falcon_h1", "cohere", "granite", "t5", "mt5", "umt5")
)
ONE_STEP = {"train": {"steps": 1}}
ONE_ITERATION = {"train": {"iterations": 1}, "algorithm": {"epochs": 1}}


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_then_ppo_then_generation(family: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    learnt = run("sft", model_folder(family), tmp_path / "sft", ONE_STEP)
    assert 0 < learnt.metrics[0]["sft/loss"] < 20
    over = ONE_ITERATION | {"critic": {"source": "adapter"}}
    done = run("ppo", learnt.model, tmp_path / "ppo", over)
    row = done.metrics[0]
    assert abs(row["objective/kl"]) < 1e-4, "the policy starts as the reference"
    assert row["sampling/logprob_difference_max"] < 1e-4
    assert row["ppo/policy/ratio_mean"] == pytest.approx(1, abs=0.2)
    start, end = saved_weights(learnt.model), saved_weights(done.model)
    assert start.keys() == end.keys() and any(not torch.equal(start[key], end[key]) for key in start)
    options = GenerateOptions(max_new_tokens=5, temperature=0)
    prompts = ["the film was", "a slow"]
    first = accord.generate(ModelConfig(path=str(done.model)), prompts, options)
    again = accord.generate(ModelConfig(path=str(done.model)), prompts[::-1], options)[::-1]
    assert [r.response_ids for r in first] == [r.response_ids for r in again]
    assert all(1 <= len(r.response_ids) <= 5 for r in first)
    assert ("moe/aux_loss" in row) == (family in ("mixtral", "qwen3_moe", "jamba"))


@pytest.mark.parametrize("family", ["bloom", "jamba", "t5", "mixtral", "gemma3"])
def test_all_weights_learn_too(family: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """With the value head on the policy's trunk."""
    done = run("ppo", model_folder(family), tmp_path, ONE_ITERATION | {"adapter": None})
    before, after = saved_weights(model_folder(family)), saved_weights(done.model)
    assert before.keys() == after.keys() - {"weight"}  # the value head lies beside them
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) // 2
    assert done.metrics[0]["sampling/logprob_difference_max"] < 1e-4


@pytest.mark.parametrize("kind", ["online_dpo", "rejection"])
def test_an_encoder_decoder_takes_steps_that_were_filled_up(
    kind: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where all responses have one score there is nothing to learn, and each step is filled up."""
    (tmp_path / "one.py").write_text("def one(prompts, responses):\n    return [1.0] * len(responses)\n")
    keep = {"keep": "threshold", "threshold": 2.0} if kind == "rejection" else {}
    over = {
        "reward": f"{tmp_path}/one.py:one",
        "train": {"iterations": 1},
        "algorithm": {"epochs": 1, "minibatches": 2} | keep,
    }
    row = run(kind, model_folder("t5"), tmp_path / "run", over).metrics[0]
    assert row["ppo/steps_skipped"] == 2 and row["tokens/trained"] == 0


@pytest.mark.parametrize("family", SCORERS)
def test_a_reward_model_is_trained_and_used(family: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    judge = run("reward", model_folder(family), tmp_path / "reward", ONE_STEP)
    assert judge.metrics[0]["reward/loss"] == pytest.approx(0.6931, abs=1e-3)
    over = ONE_ITERATION | {"reward": str(judge.model), "critic": {"start": "reward"}}
    done = run("ppo", model_folder(family), tmp_path / "ppo", over)
    assert torch.isfinite(torch.tensor(done.metrics[0]["env/reward_mean"]))


def plain_answers(model: Any, folder: Path, answers: list[tuple[str, str]]) -> tuple[float, int]:
    """Log-probability of the answers and their EOS by plain transformers, summed, and the number of their tokens."""
    tokenizer, ids, masks = AutoTokenizer.from_pretrained(folder), [], []
    for prompt, answer in answers:
        start = len(tokenizer(prompt).input_ids)
        ids.append([*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id])
        masks.append([t >= start for t in range(len(ids[-1]))])
    batch = TokenBatch.from_sequences(ids, masks)
    with torch.no_grad():
        return float(one_by_one(model, batch).sum()), batch.targets


def plain_model(folder: Path) -> Any:
    """As transformers alone loads it."""
    several = AutoConfig.from_pretrained(folder).is_encoder_decoder
    automatic = AutoModelForSeq2SeqLM if several else AutoModelForCausalLM
    return automatic.from_pretrained(folder, attn_implementation="eager").eval()


def held_out_pairs(folder: Path) -> dict[str, Any]:
    return {"eval_path": write_rows(folder / "held_out.jsonl", pairs(3))}


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_starts_at_its_reference_and_plain_peft_says_what_it_ends_with(
    family: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = model_folder(family)
    over = {"train": {"steps": 1, "learning_rate": 0.02}, "data": held_out_pairs(tmp_path)}
    done = run("dpo", base, tmp_path, over)
    row = done.metrics[0]
    assert row["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert row["dpo/loss"] == pytest.approx(math.log(2), rel=1e-5)
    start, plain = plain_model(base), PeftModel.from_pretrained(plain_model(base), str(done.model)).eval()
    for which in ("chosen", "rejected"):
        answers = [(pair["prompt"], pair[which]) for pair in pairs(3)]
        before, after = (plain_answers(model, done.model, answers)[0] / 3 for model in (start, plain))
        assert row[f"eval/logps/{which}"] == pytest.approx(after, rel=1e-5)
        assert row[f"eval/rewards/{which}"] == pytest.approx(0.1 * (after - before), rel=1e-3, abs=1e-5)
        assert abs(after - before) > 1e-3


@pytest.mark.parametrize("family", ["gemma3", "mixtral", "jamba", "t5"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_all_weights_learn_from_examples_and_load_in_plain_transformers(
    kind: str, family: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = model_folder(family)
    rows = completions(3)
    data = held_out_pairs(tmp_path) if kind == "dpo" else {"eval_path": write_rows(tmp_path / "rows.jsonl", rows)}
    done = run(kind, base, tmp_path, ONE_STEP | {"adapter": None, "data": data})
    before, after = saved_weights(base), saved_weights(done.model)
    assert before.keys() == after.keys()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) // 2
    plain, row = plain_model(done.model), done.metrics[0]
    if kind == "sft":
        total, tokens = plain_answers(plain, done.model, [(one["prompt"], one["completion"]) for one in rows])
        assert row["eval/loss"] == pytest.approx(-total / tokens, rel=1e-5)
        return
    assert row["rewards/margins"] == pytest.approx(0, abs=1e-5)
    for which in ("chosen", "rejected"):
        total, _ = plain_answers(plain, done.model, [(pair["prompt"], pair[which]) for pair in pairs(3)])
        assert row[f"eval/logps/{which}"] == pytest.approx(total / 3, rel=1e-5)


def test_groups_work_for_an_encoder_decoder(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    row = run("grpo", model_folder("t5"), tmp_path, ONE_ITERATION).metrics[0]
    assert row["sampling/logprob_difference_max"] < 1e-4


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("sft", {"method": "prompt", "tokens": 3}),
        ("dpo", {"method": "ptuning", "tokens": 3, "hidden": 8}),
        ("ppo", {"method": "prompt", "tokens": 5, "text": "the film was"}),
        ("grpo", {"method": "ptuning", "tokens": 3, "hidden": 8, "encoder": "lstm"}),
        ("sft", {"method": "prefix", "tokens": 3}),
        ("dpo", {"method": "prefix", "tokens": 3, "init": "zero"}),
        ("ppo", {"method": "prefix", "tokens": 3, "projection": True}),
    ],
)
def test_virtual_tokens_of_an_encoder_decoder(
    kind: str, adapter: dict[str, Any], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    over = (ONE_ITERATION if kind in ("ppo", "grpo") else ONE_STEP) | {"adapter": adapter}
    done = run(kind, model_folder("t5"), tmp_path, over)
    row = done.metrics[0]
    assert row.get("objective/kl", 0.0) == 0.0 and row.get("sampling/logprob_difference_max", 0.0) < 1e-4
    AutoPeftModelForSeq2SeqLM.from_pretrained(done.model)
    again = run("sft", done.model, tmp_path / "on", ONE_STEP | {"adapter": adapter})
    assert saved_weights(again.model)


def test_drafts_need_a_packed_model(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    over = {"rollout": {"speculative": {"ngram": 2, "tokens": 3}}}
    with pytest.raises(
        ConfigError, match=r"rollout\.speculative: .* its layers are not transformers' replaceable attention"
    ):
        run("ppo", model_folder("bloom"), tmp_path, over)


def test_rows_that_would_change_the_frequencies_of_a_batch_are_refused(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Up to its first 20 positions all sequences are turned alike."""
    folder = model_folder("phi3_longrope")
    with pytest.raises(ConfigError, match=r"reads at most 20 tokens here \(rope_type: longrope.* would have up to 38"):
        run("ppo", folder, tmp_path / "ppo", {"data": {"max_prompt_tokens": 8}, "rollout": {"max_new_tokens": 32}})
    done = run("sft", folder, tmp_path / "sft", ONE_STEP)
    assert done.metrics[0]["sft/loss"] > 0


def test_the_header_says_that_a_model_is_not_packed_and_why(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for family, why in (
        ("bloom", "sequences of one length together, not packed, which is slower: its layers are not transformers'"),
        ("jamba", "in its layers of type linear_attention"),
        ("t5", "prompts and responses of one length together, not packed"),
        ("llama", None),
    ):
        facts = BUILDERS["sft"](recipe("sft", model_folder(family), tmp_path / family)).facts
        assert (why in facts["reads"]) if why else ("reads" not in facts)


def test_what_an_encoder_decoder_cannot_do_is_said_before_its_weights_are_read(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("accord.model.roles.load_weights", no_weights)
    text = write_rows(tmp_path / "text.jsonl", [{"text": "the film was good"}] * 8)
    for kind, over, error, message in (
        ("reward", {}, ModelError, "a reward model could not be saved for it; train the reward model on another base"),
        (
            "sft",
            {"data": {"path": text}},
            DataError,
            r"text.jsonl:1 has no prompt \(text\), and .* is an encoder-decoder",
        ),
        ("sft", {"data": {"train_on": "all"}}, ConfigError, "use data.train_on: completion"),
    ):
        with pytest.raises(error, match=message):
            BUILDERS[kind](recipe(kind, model_folder("t5"), tmp_path / kind, over))
    with pytest.raises(AssertionError, match="weights were read"):
        BUILDERS["sft"](recipe("sft", model_folder("t5"), tmp_path / "sft"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("option", [{"dora": True}, {"dropout": 0.1}], ids=["dora", "dropout"])
def test_stacked_experts_take_plain_lora_alone(option, family, model_folder, tmp_path, monkeypatch):
    base, (key,) = model_folder(family), option
    done = run(
        "sft", base, tmp_path / "q", {"adapter": option | {"targets": ["q_proj", "v_proj"]}, "train": {"steps": 1}}
    )
    plain = run("sft", base, tmp_path / "plain", {"train": {"steps": 1}})
    run("sft", done.model, tmp_path / "on", {"adapter": option, "train": {"steps": 1}})
    monkeypatch.setattr("accord.model.roles.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    message = rf"adapter.{key}: .* experts as stacked weights, .* plain LoRA alone, .* --adapter.targets"
    with pytest.raises(ConfigError, match=message):
        run("sft", base, tmp_path / "a", {"adapter": option})
    if key == "dropout":
        with pytest.raises(ConfigError, match=message):
            run("sft", plain.model, tmp_path / "b", {"adapter": option})
