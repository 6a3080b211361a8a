"""`accord ppo`: each reward, critic, estimator and option, two iterations each, on a model of 20,000 weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import accord
from accord.config import LoraConfig, ModelConfig, ReferenceConfig
from accord.errors import ConfigError, ModelError
from accord.model.roles import Roles
from accord.model.tiny import train_tokenizer
from accord.rewards import MixedReward
from accord.training.metrics import describe
from recipes.tiny_runs import recipe_dict, run, same_weights, timeless

FILES = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "rollouts", "model", "report.html"}
ONE_STEP = {"algorithm": {"epochs": 1, "minibatches": 1}}


def check(done, iterations: int = 2) -> None:
    """What holds of any PPO run: a whole directory, documented finite metrics, no KL and no mismatch at the start."""
    assert {path.name for path in done.path.iterdir() if path.name != ".lock"} == FILES
    assert [path.name for path in sorted((done.path / "rollouts").iterdir())] == [
        f"iteration-{i + 1:06d}.parquet" for i in range(iterations)
    ]
    assert (done.path / "checkpoints" / f"step-{iterations:06d}" / "manifest.json").is_file()
    assert [row["iteration"] for row in done.metrics] == list(range(1, iterations + 1))
    assert {name for row in done.metrics for name in row if describe(name) is None} == set()
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())
    first = done.metrics[0]
    assert first["objective/kl"] == 0.0
    assert first["sampling/logprob_difference_max"] < 1e-4
    assert first["sampling/lag"] == 0.0


def plain(done, base: Path):
    """The policy in transformers and peft alone."""
    if (done.model / "adapter_config.json").exists():
        return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(done.model)).eval()
    return AutoModelForCausalLM.from_pretrained(done.model).eval()


REWARDS = {
    "function": ["{}/rewards.py:brevity"],
    "async_function": ["{}/rewards.py:letters"],
    "weighted_sum": [
        {"function": "{}/rewards.py:brevity", "weight": 0.5},
        {"function": "{}/rewards.py:letters", "weight": -2},
    ],
}


def in_folder(terms, folder: Path):
    return [t.format(folder) if isinstance(t, str) else t | {"function": t["function"].format(folder)} for t in terms]


@pytest.mark.parametrize("kind", REWARDS)
def test_function_rewards(kind, base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"reward": in_folder(REWARDS[kind], tmp_path)})
    check(done)
    rows = [row for file in sorted((done.path / "rollouts").iterdir()) for row in parquet.read_table(file).to_pylist()]
    assert len(rows) == 8 and {row["iteration"] for row in rows} == {1, 2}
    for row in rows:
        brevity, letters = -len(row["response"]), row["response"].count("o") + 0.1 * row["response"].count("a")
        wanted = {"function": brevity, "async_function": letters, "weighted_sum": 0.5 * brevity - 2 * letters}[kind]
        assert row["score"] == pytest.approx(wanted, abs=1e-5)
    for i, metrics in enumerate(done.metrics):
        scores = [row["score"] for row in rows if row["iteration"] == i + 1]
        assert metrics["env/reward_mean"] == pytest.approx(sum(scores) / 4, rel=1e-5, abs=1e-6)


def test_a_reward_that_applies_to_some(base, tmp_path: Path):
    terms = [f"{tmp_path}/rewards.py:brevity", f"{tmp_path}/rewards.py:sometimes"]
    done = run("ppo", base, tmp_path, {"reward": terms})
    assert done.metrics[0]["env/reward/sometimes"] == 1.0  # the mean over those to which it applies
    rows = parquet.read_table(done.path / "rollouts" / "iteration-000001.parquet").to_pylist()
    for row in rows:
        assert row["score/sometimes"] == (1.0 if int(row["prompt"].split()[2]) % 2 == 0 else None)


def test_model_reward_on_the_shared_base(base, reward_adapter, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"reward": str(reward_adapter)})
    check(done)
    assert done.metrics[0]["env/reward_std"] > 0


def test_model_reward_as_its_own_model_gives_what_the_library_gives(
    base, reward_classifier, tmp_path: Path, monkeypatch
):
    seen = []

    class Recording(MixedReward):
        def score(self, rollouts):
            seen.extend(scored := super().score(rollouts))
            return scored

    monkeypatch.setattr("accord.recipes.rewards.MixedReward", Recording)
    check(run("ppo", base, tmp_path, {"reward": str(reward_classifier)}))
    model = AutoModelForSequenceClassification.from_pretrained(reward_classifier).eval()
    model.config.pad_token_id = AutoTokenizer.from_pretrained(reward_classifier).pad_token_id
    assert len(seen) == 8
    for rollout in seen:
        with torch.no_grad():
            score = model(torch.tensor([rollout.prompt_ids + rollout.response_ids])).logits[0, 0]
        assert rollout.score == pytest.approx(float(score), abs=1e-5)
    assert len({rollout.score for rollout in seen}) > 2


CRITICS = {
    "adapter": {},
    "adapter_from_reward": {"start": "reward"},
    "policy_trunk": {"source": "policy_trunk"},
    "model": {"source": "model", "path": "{base}"},
    "model_from_reward": {"source": "model", "path": "{classifier}"},
}


@pytest.mark.parametrize("kind", CRITICS)
def test_each_critic(kind, base, reward_adapter, reward_classifier, tmp_path: Path):
    critic = {k: v.format(base=base, classifier=reward_classifier) for k, v in CRITICS[kind].items()}
    done = run("ppo", base, tmp_path, {"reward": str(reward_adapter), "critic": critic})
    check(done)
    assert done.metrics[0]["ppo/loss/value"] > 0
    assert "optim/grad_norm" in done.metrics[0]
    assert ("optim/grad_norm_critic" in done.metrics[0]) == (kind != "policy_trunk")
    if "reward" not in kind:  # a head that starts at 0
        one = run("ppo", base, tmp_path / "one", {"reward": str(reward_adapter), "critic": critic, **ONE_STEP})
        assert one.metrics[0]["ppo/val/mean"] == 0.0


KL = {
    **{estimator: {"estimator": estimator} for estimator in ("k1", "k2", "k3", "abs", "mse", "full")},
    "loss": {"use": "loss", "coef": 0.1},
    "loss_k3": {"use": "loss", "estimator": "k3", "coef": 0.1},
    "fixed": {"target": None},
}


@pytest.mark.parametrize("kind", KL)
def test_each_kl(kind, base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"algorithm": {"kl": KL[kind]}})
    check(done)
    first, second = done.metrics
    assert first["ppo/mean_non_score_reward"] == 0.0
    assert second["objective/kl"] != 0.0
    assert ("ppo/loss/kl" in first) == kind.startswith("loss")
    assert (first["objective/kl_coef"] == second["objective/kl_coef"]) == (kind == "fixed")
    if kind.startswith("loss"):
        assert second["ppo/mean_non_score_reward"] == 0.0
    elif kind in ("k2", "k3", "abs", "mse", "full"):
        assert second["ppo/mean_non_score_reward"] < 0.0  # estimators that are never negative


OPTIONS = {
    "whitened_rewards": {"whiten_rewards": True},
    "unwhitened": {"whiten_advantages": False},
    "normalised": {"reward_normalize": True},
    "clipped": {"reward_scale": 0.5, "reward_clip": 0.25},
    "missing_end": {"missing_eos_penalty": 1.0},
    "entropy": {"entropy_coef": 0.01},
    "no_value_clip": {"value_clip": None, "ratio_guard": None},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_each_option(kind, base, tmp_path: Path):
    long = {"rollout": {"max_new_tokens": 40}, "train": {"batch_size": 64}}  # some responses end, most do not
    done = run("ppo", base, tmp_path, {"algorithm": OPTIONS[kind]} | (long if kind == "missing_end" else {}))
    check(done)
    first = done.metrics[0]
    if kind == "clipped":
        assert abs(first["ppo/mean_scores"]) <= 0.25 < abs(first["env/reward_mean"])
    if kind == "normalised":
        assert first["ppo/mean_scores"] == pytest.approx(0.0, abs=1e-5) != first["env/reward_mean"]
    if kind == "missing_end":
        unfinished = 1 - first["sampling/finished_fraction"]
        assert 0 < unfinished < 1
        assert first["ppo/mean_scores"] == pytest.approx(first["env/reward_mean"] - unfinished, abs=1e-5)


@pytest.mark.parametrize("start", ["base", "adapter", "full", "dropout"])
def test_the_first_step_is_on_policy(start, base, sft_adapter, tmp_path: Path):
    """Invariant 2: KL 0, ratio 1, nothing clipped; also from an adapter (the reference is that adapter, frozen), and with
    dropout in the adapter, which rollouts and their learning leave off."""
    own = {"full": {"adapter": None}, "dropout": {"adapter": {"dropout": 0.5}}}
    over = ONE_STEP | own.get(start, {})
    done = run("ppo", sft_adapter if start == "adapter" else base, tmp_path, over)
    check(done)
    first = done.metrics[0]
    assert first["ppo/policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert first["ppo/policy/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert first["ppo/policy/clipfrac"] == 0.0
    assert first["ppo/policy/approxkl"] < 1e-9
    assert done.metrics[1]["objective/kl"] != 0.0
    ids = AutoTokenizer.from_pretrained(done.model)("the film was", return_tensors="pt").input_ids
    with torch.no_grad():
        moved = plain(done, base)(ids).logits - AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    assert float(moved.abs().max()) > 1e-4


def test_temperature_is_that_of_the_trained_logprobs(base, tmp_path: Path):
    done = run("ppo", base, tmp_path, ONE_STEP | {"rollout": {"temperature": 0.7}})
    check(done)
    assert done.metrics[0]["ppo/policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)


def test_truncated_sampling_shows_in_the_mismatch(base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"rollout": {"top_k": 3}})
    assert done.metrics[0]["sampling/logprob_difference_max"] > 0.1
    assert done.metrics[0]["objective/kl"] == 0.0


def test_several_samples_a_prompt(base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"rollout": {"samples": 2}, "train": {"batch_size": 4}})
    check(done)
    rows = parquet.read_table(done.path / "rollouts" / "iteration-000001.parquet").to_pylist()
    assert len(rows) == 4 and [row["prompt"] for row in rows][0::2] == [row["prompt"] for row in rows][1::2]
    assert len({row["response"] for row in rows}) > 2  # each sample has its own seed


def test_reference_of_its_own(base, sft_adapter, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"reference": {"source": "model", "path": str(sft_adapter)}})
    assert done.metrics[0]["objective/kl"] != 0.0


def test_value_warm_up_leaves_the_policy_where_it_was(base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"algorithm": {"value_warmup": 2}})
    check(done)
    assert done.metrics[1]["objective/kl"] == 0.0
    ids = AutoTokenizer.from_pretrained(base)("the film was", return_tensors="pt").input_ids
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        after = plain(done, base)(ids).logits
    assert torch.equal(before, after)


def test_saved_policy_samples_as_the_run_did(base, tmp_path: Path):
    """The saved adapter, loaded anew, has the policy's own log-probs: training and use agree."""
    done = run("ppo", base, tmp_path)
    roles = Roles(ModelConfig(path=str(done.model)), LoraConfig(), torch.device("cpu"))
    roles.add_reference(ReferenceConfig())
    ids = roles.tokenizer("the film was", return_tensors="pt").input_ids
    with torch.no_grad(), roles.use("reference") as role:
        hidden = role.trunk(input_ids=ids, use_cache=False).last_hidden_state
        ours = hidden @ role.output.weight.T
        theirs = plain(done, base)(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_same_seed_same_run_other_seed_other_run(base, tmp_path: Path):
    """Invariant 5."""
    first, again = run("ppo", base, tmp_path / "a"), run("ppo", base, tmp_path / "b")
    other = run("ppo", base, tmp_path / "c", {"seed": 1})
    assert timeless(first.metrics) == timeless(again.metrics) and same_weights(first.model, again.model)
    assert timeless(first.metrics) != timeless(other.metrics) and not same_weights(first.model, other.model)


def test_saved_recipe_is_resolved_and_runs_again(base, tmp_path: Path):
    done = run("ppo", base, tmp_path)
    saved = yaml.safe_load((done.path / "config.yaml").read_text())
    assert saved["critic"]["source"] == "adapter" and saved["algorithm"]["clip"] == 0.2
    again = run("ppo", base, tmp_path, saved | {"output": str(tmp_path / "again")})
    assert timeless(again.metrics) == timeless(done.metrics)


def test_a_reward_is_needed(base, tmp_path: Path):
    config = recipe_dict("ppo", base, tmp_path)
    del config["reward"]
    with pytest.raises(ConfigError, match="needs a `reward`"):
        accord.train(config, quiet=True)


def test_a_reward_model_with_another_tokenizer_is_refused(base, reward_classifier, tmp_path: Path):
    other = shutil.copytree(reward_classifier, tmp_path / "other")
    train_tokenizer(["quite other words here"] * 3, 290).save_pretrained(other)
    with pytest.raises(ModelError, match="another tokenizer"):
        run("ppo", base, tmp_path, {"reward": str(other)})


def test_a_prompt_and_response_longer_than_the_model_reads_are_refused(base, tmp_path: Path):
    over = {"rollout": {"max_new_tokens": 125}, "data": {"max_tokens": 1000}}  # the tiny model has 128 positions
    with pytest.raises(ConfigError, match=r"reads at most 128 tokens .* lower data.max_prompt_tokens"):
        run("ppo", base, tmp_path, over)
