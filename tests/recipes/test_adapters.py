"""Whole recipes with each kind of adapter: they learn, save what plain peft loads, go on exactly, and refuse what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, OlmoConfig, OlmoForCausalLM

import accord
from accord.errors import ConfigError, ModelError
from accord.training.learner import Learner
from model.kinds import plain_logprobs, plain_policy, plain_scorer
from recipes.tiny_runs import labelled, pairs, recipe_dict, run, same_weights, saved_weights, timeless, write_rows

ADAPTERS: dict[str, dict[str, Any]] = {
    "dora": {"method": "lora", "r": 4, "dora": True, "rslora": True},
    "adalora": {"method": "adalora", "init_r": 3, "target_r": 2},
    "ia3": {"method": "ia3"},
    "prompt": {"method": "prompt", "tokens": 3},
    "prompt_text": {"method": "prompt", "tokens": 5, "text": "the film was"},
    "prefix": {"method": "prefix", "tokens": 3},
    "prefix_projected": {"method": "prefix", "tokens": 3, "projection": True},
    "ptuning": {"method": "ptuning", "tokens": 3, "hidden": 8},
    "ptuning_lstm": {"method": "ptuning", "tokens": 3, "hidden": 8, "encoder": "lstm", "dropout": 0.3},
}
IDS = [[5, 80, 9, 200, 31, 7], [6, 30, 12]]
PREFERRING = (
    {"lora": {"method": "lora", "r": 4}, "rslora": {"method": "lora", "r": 4, "rslora": True}}
    | ADAPTERS
    | {"prefix_zero": {"method": "prefix", "tokens": 3, "init": "zero"}}
    | {"ptuning_lstm": ADAPTERS["ptuning_lstm"] | {"dropout": 0.0}}
)
"""Every kind that DPO can carry. The LSTM goes without dropout, which acts in DPO's updates and not in its reference."""


@pytest.fixture(scope="module")
def base(model_folder) -> Path:
    return model_folder("llama_grouped")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_sft_learns_and_goes_on_from_what_it_saved(kind, base, tmp_path):
    over = {"adapter": ADAPTERS[kind], "train": {"steps": 12, "batch_size": 12, "learning_rate": 0.02}}
    done = run("sft", base, tmp_path, over)
    assert done.metrics[-1]["sft/loss"] < done.metrics[0]["sft/loss"] - 0.02
    with torch.no_grad():
        plain = plain_policy(done.model, base)
        trained = plain_logprobs(plain, IDS)
        assert (trained - plain_logprobs(plain.get_base_model(), IDS)).abs().max() > 1e-3 or kind in (
            "dora",
            "adalora",
            "ia3",
        )
    # All rows are one batch, so a run that goes on from the folder begins where the first ended: what was learnt was saved.
    again = run("sft", done.model, tmp_path / "on", over | {"train": {"steps": 4, "batch_size": 12}})
    assert again.metrics[0]["sft/loss"] < done.metrics[-2]["sft/loss"] + 0.01
    assert again.metrics[-1]["sft/loss"] < again.metrics[0]["sft/loss"]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_reward_learns_and_is_a_classifier_in_plain_peft(kind, base, tmp_path):
    over = {"adapter": ADAPTERS[kind], "train": {"steps": 8, "learning_rate": 0.02}}
    done = run("reward", base, tmp_path, over)
    assert done.metrics[-1]["reward/loss"] < done.metrics[0]["reward/loss"]
    config = json.loads((done.model / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    plain = plain_scorer(done.model, base)
    with torch.no_grad():
        scores = [float(plain(input_ids=torch.tensor([ids])).logits) for ids in IDS]
    assert scores[0] != scores[1]
    one = {"adapter": ADAPTERS[kind], "reward": [str(done.model)], "critic": {"start": "reward"}}
    ppo = run("ppo", base, tmp_path / "ppo", one)
    assert ppo.metrics[0]["objective/kl"] == 0.0 and "env/reward/run" in ppo.metrics[0]


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("ppo", kind) for kind in ADAPTERS] + [("grpo", k) for k in ("adalora", "ia3", "prompt", "prefix")],
)
def test_rl_starts_at_a_kl_of_0_and_a_ratio_of_1(recipe, kind, base, tmp_path):
    """Invariant 2, and the sampler agrees with the trainer."""
    over = {"adapter": ADAPTERS[kind], "algorithm": {"epochs": 1, "minibatches": 1}}
    done = run(recipe, base, tmp_path, over)
    first = done.metrics[0]
    assert first["objective/kl"] == 0.0
    assert abs(first["ppo/policy/ratio_mean"] - 1.0) < 1e-6 and abs(first["ppo/policy/ratio_max"] - 1.0) < 1e-5
    assert first["sampling/logprob_difference_max"] < 1e-4
    assert done.metrics[-1]["objective/kl"] != 0.0, "it learns"
    plain_policy(done.model, base)


def plain_answer_logprob(model: Any, folder: Path, answers: list[tuple[str, str]]) -> float:
    """Log-probability of an answer and its EOS to its prompt, as plain peft has it; the mean of several."""
    tokenizer, total = AutoTokenizer.from_pretrained(folder), 0.0
    for prompt, answer in answers:
        ids = [*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            total += float(plain_logprobs(model, [ids])[len(tokenizer(prompt).input_ids) :].sum())
    return total / len(answers)


@pytest.mark.parametrize("kind", PREFERRING)
def test_dpo_starts_at_its_reference_and_plain_peft_says_what_it_ends_with(kind, base, tmp_path):
    """Invariants 2 and 10. Fresh virtual tokens change what the model says, so its reference holds a copy of them."""
    held_out, adapter = pairs(2), PREFERRING[kind]
    over = {
        "adapter": adapter,
        "data": {"eval_path": write_rows(tmp_path / "held_out.jsonl", held_out)},
        "train": {"batch_size": 12, "learning_rate": 0.02},  # all rows, as in the pass of the reference
    }
    done = run("dpo", base, tmp_path, over)
    first, last = done.metrics
    # torch rounds an LSTM otherwise where gradients follow than where none do, as in the reference.
    rounding = 1e-6 if kind == "ptuning_lstm" else 0.0
    for name in ("chosen", "rejected", "margins"):
        assert abs(first[f"rewards/{name}"]) <= rounding
    assert first["dpo/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert last["rewards/margins"] > 1e-5 and last["dpo/loss"] < math.log(2), "it learns"
    plain = plain_policy(done.model, base)
    for which in ("chosen", "rejected"):
        answers = [(row["prompt"], row[which]) for row in held_out]
        learnt = last[f"eval/logps/{which}"]
        assert learnt == pytest.approx(plain_answer_logprob(plain, done.model, answers), rel=1e-5)
        with plain.disable_adapter():
            of_base = plain_answer_logprob(plain, done.model, answers)
        reference = learnt - last[f"eval/rewards/{which}"] / 0.1
        if adapter["method"] in ("lora", "adalora", "ia3"):
            assert reference == pytest.approx(of_base, rel=1e-5), "what has not learnt yet changes nothing"
        else:
            assert abs(reference - of_base) > 1e-2, "the reference reads the virtual tokens, too"
    on = run("dpo", done.model, tmp_path / "on", over).metrics[0]
    assert on["rewards/margins"] == on["rewards/chosen"] == 0.0
    assert on["logps/chosen"] != first["logps/chosen"], "it goes on from what was learnt"


@pytest.mark.parametrize("kind", ["prefix", "ptuning"])
def test_kto_starts_at_its_reference_with_virtual_tokens(kind, base, tmp_path):
    held_out = labelled(2)
    over = {
        "adapter": ADAPTERS[kind],
        "data": {"eval_path": write_rows(tmp_path / "held_out.jsonl", held_out)},
        "train": {"learning_rate": 0.02},
    }
    done = run("kto", base, tmp_path, over)
    first, last = done.metrics
    # Not exactly 0: a step's rows lie in another order in the frozen pass, and sums of floats depend on it.
    assert abs(first["rewards/chosen"]) < 1e-5 and abs(first["rewards/rejected"]) < 1e-5
    assert first["objective/kl"] == 0.0 and first["kto/loss"] == pytest.approx(0.5, rel=1e-5)
    assert last["rewards/chosen"] != first["rewards/chosen"], "it learns"
    plain = plain_policy(done.model, base)
    for which, row in zip(("chosen", "rejected"), held_out, strict=True):
        expected = plain_answer_logprob(plain, done.model, [(row["prompt"], row["completion"])])
        assert last[f"eval/logps/{which}"] == pytest.approx(expected, rel=1e-5)


class Killed(BaseException):
    """Stands for a process that is no more."""


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("sft", kind) for kind in ADAPTERS] + [("ppo", k) for k in ("adalora", "prefix", "ptuning_lstm")],
)
def test_resumed_equals_uninterrupted(recipe, kind, base, tmp_path, monkeypatch):
    """Invariant 4: rows and weights, bit for bit; AdaLoRA's importance and ranks are part of the state."""
    length = {"steps": 5} if recipe == "sft" else {"iterations": 4}
    config = recipe_dict(recipe, base, tmp_path, {"adapter": ADAPTERS[kind], "train": length})
    whole = accord.train(config, quiet=True)
    config["output"] = str(tmp_path / "broken")
    update = Learner.update

    def dying(self, batch):
        if self.steps == (3 if recipe == "sft" else 9):
            raise Killed
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", dying)
        with pytest.raises(Killed):
            accord.train(config, quiet=True)
    again = accord.train(config, resume=True, quiet=True)
    assert timeless(again.metrics) == timeless(whole.metrics)
    assert same_weights(again.model, whole.model)


def test_the_ranks_of_adalora_shrink_to_the_target(base, tmp_path):
    adapter = {"method": "adalora", "init_r": 4, "target_r": 2, "warmup": 2, "final": 3}
    done = run("sft", base, tmp_path, {"adapter": adapter, "train": {"steps": 10, "learning_rate": 0.01}})
    ranks = [row["adapter/rank_mean"] for row in done.metrics]
    assert ranks[:2] == [4, 4] and ranks == sorted(ranks, reverse=True) and ranks[6:] == [2] * 4
    config = json.loads((done.model / "adapter_config.json").read_text())
    assert sum(sum(kept) for kept in config["rank_pattern"].values()) == 2 * 14
    assert (config["tinit"], config["tfinal"], config["total_step"]) == (2, 3, 10)
    kept = [tensor for key, tensor in saved_weights(done.model).items() if "lora_E" in key]
    assert sum(len(tensor) for tensor in kept) == 2 * 14 and len({len(tensor) for tensor in kept}) > 1


@pytest.mark.parametrize("tokens", [1, 20])
def test_adalora_s_penalty_comes_once_a_step_for_any_micro_batches(base, tmp_path, tokens):
    adapter = {"method": "adalora", "init_r": 4, "target_r": 2, "warmup": 1, "final": 1}
    over = {"adapter": adapter, "train": {"steps": 3, "batch_size": 6}}
    whole = run("sft", base, tmp_path / "whole", over)
    over["train"]["micro_batch_tokens"] = tokens
    cut = run("sft", base, tmp_path / "cut", over)
    for one, other in zip(whole.metrics, cut.metrics, strict=True):
        for name in ("adapter/orthogonality", "optim/grad_norm", "sft/loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_another_method_than_that_of_the_start_is_refused_before_loading(base, tmp_path, monkeypatch):
    prefix = run("sft", base, tmp_path / "p", {"adapter": ADAPTERS["prefix"]})
    lora = run("sft", base, tmp_path / "l")
    monkeypatch.setattr("accord.model.roles.load_weights", None)
    with pytest.raises(
        ConfigError, match=r"is a prefix adapter, .* give --adapter.method prefix, or start from its base"
    ):
        run("sft", prefix.model, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"is a lora adapter, .* or `accord merge .*` and start from FOLDER"):
        run("sft", lora.model, tmp_path / "b", {"adapter": ADAPTERS["prompt"]})
    with pytest.raises(
        ModelError, match=r"cannot be folded into them; so all weights \(`adapter: null`\) cannot learn"
    ):
        run("sft", prefix.model, tmp_path / "c", {"adapter": None})


@pytest.mark.parametrize("kind", ["prompt", "ptuning"])
def test_embeddings_narrower_than_the_layers_take_no_virtual_ones(kind, model_folder, tmp_path, monkeypatch):
    opt = model_folder("opt")
    run("sft", opt, tmp_path / "prefix", {"adapter": ADAPTERS["prefix"]})
    monkeypatch.setattr("accord.model.roles.load_weights", None)
    with pytest.raises(
        ConfigError, match=rf"adapter.method: {kind} makes .* 32, and its own are only 16 wide .* prefix"
    ):
        run("sft", opt, tmp_path / "a", {"adapter": ADAPTERS[kind]})


def test_virtual_tokens_count_towards_the_context(base, tmp_path):
    with pytest.raises(ConfigError, match=r"reads at most 128 tokens .*\(the adapter's 120 virtual ones included\)"):
        run("sft", base, tmp_path, {"adapter": {"method": "prefix", "tokens": 120}})


def test_an_architecture_that_ia3_does_not_know_is_named(tokenizer, tmp_path):
    config = OlmoConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    OlmoForCausalLM(config).save_pretrained(tmp_path / "olmo")
    tokenizer.save_pretrained(tmp_path / "olmo")
    with pytest.raises(ConfigError, match=r"peft has no table of ia3's targets for olmo.*give adapter.targets"):
        run("sft", tmp_path / "olmo", tmp_path / "run", {"adapter": {"method": "ia3"}})
    targets = {"method": "ia3", "targets": ["k_proj", "v_proj", "down_proj"], "feedforward": ["down_proj"]}
    run("sft", tmp_path / "olmo", tmp_path / "named", {"adapter": targets})
