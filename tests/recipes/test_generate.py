"""Sampling from a saved model, scored and chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import accord
from accord.config import LoraConfig, ModelConfig, RewardTerm
from accord.errors import ConfigError, ModelError
from accord.model.roles import Roles
from accord.recipes.generate import GenerateOptions, generate
from accord.rollout.select import best_of
from accord.types import Prompt, Rollout
from recipes.tiny_runs import REWARDS

OPTIONS = GenerateOptions(samples=4, max_new_tokens=6, temperature=1.2)
PROMPTS = ["the film was", "a slow end"]


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return f"{tmp_path}/rewards.py"


def test_the_best_of_n_is_the_best_of_the_same_n_samples(base, rewards):
    model = ModelConfig(path=str(base))
    scored = accord.generate(model, PROMPTS, OPTIONS, rewards=[f"{rewards}:letters"])
    assert [r.group for r in scored] == [0] * 4 + [1] * 4
    assert all(r.score == r.response_text.count("o") + 0.1 * r.response_text.count("a") for r in scored)
    best = accord.generate(
        model, PROMPTS, GenerateOptions(max_new_tokens=6, temperature=1.2), rewards=[f"{rewards}:letters"], best_of=4
    )
    assert best == best_of(scored) and [r.score for r in best] == [
        max(r.score for r in scored[k : k + 4]) for k in (0, 4)
    ]
    assert len({r.score for r in scored}) > 2, "the case has something to choose"
    bare = accord.generate(model, PROMPTS, OPTIONS)
    assert [r.response_ids for r in bare] == [r.response_ids for r in scored] and bare[0].score is None


def test_several_rewards_with_weights_and_columns(base, reward_adapter, rewards):
    terms = [{"model": str(reward_adapter), "weight": 2.0, "name": "rm"}, f"{rewards}:sometimes"]
    prompts = [Prompt("the film was", {"use": True}), Prompt("a slow end", {"use": False})]
    scored = accord.generate(ModelConfig(path=str(base)), prompts, OPTIONS, rewards=terms)
    for r in scored:
        assert r.scores["sometimes"] == (1.0 if r.group == 0 else None)
        assert r.score == pytest.approx(2 * r.scores["rm"] + (r.scores["sometimes"] or 0.0))
    assert scored[0].columns == {"use": True}


def plain_scores(base: Path, adapter: Path, rollouts: list[Rollout]) -> list[float]:
    """What plain transformers and peft say."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = None  # a sampled padding token is a token
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return [float(model(torch.tensor([r.prompt_ids + r.response_ids])).logits[0, 0]) for r in rollouts]


def test_a_reward_model_gives_what_transformers_gives(base, reward_adapter):
    scored = accord.generate(ModelConfig(path=str(base)), PROMPTS, OPTIONS, rewards=[str(reward_adapter)])
    assert [r.score for r in scored] == pytest.approx(plain_scores(base, reward_adapter, scored), abs=2e-4)


def test_a_reward_adapter_on_the_base_shares_it(base, reward_adapter, sft_adapter, monkeypatch, tmp_path: Path):
    """Also under an adapter that samples: its score is read with the policy's adapter off."""
    loaded = []
    original = Roles._load
    monkeypatch.setattr(
        Roles, "_load", lambda self, *rest, **more: loaded.append(rest) or original(self, *rest, **more)
    )
    term = RewardTerm(model=str(reward_adapter))
    scored = accord.generate(ModelConfig(path=str(sft_adapter)), PROMPTS, OPTIONS, rewards=[term])
    assert len(loaded) == 1 and len({r.score for r in scored}) > 1
    assert [r.score for r in scored] == pytest.approx(plain_scores(base, reward_adapter, scored), abs=2e-4)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft_adapter).merge_and_unload()
    merged.save_pretrained(tmp_path)
    wrong = plain_scores(tmp_path, reward_adapter, scored)
    assert max(abs(a.score - b) for a, b in zip(scored, wrong, strict=True)) > 2e-3
    assert LoraConfig().r  # the base stays frozen below a LoRA section of its own


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({}, {"best_of": 4}, "best_of needs a reward"),
        ({}, {"best_of": 0, "rewards": ["a.py:f"]}, "best_of must be 1 or more"),
        ({"samples": 3}, {"best_of": 4, "rewards": ["a.py:f"]}, "contradict"),
        ({"temperature": 0}, {"best_of": 4, "rewards": ["a.py:f"]}, "would be the same"),
        ({}, {"rewards": ["a.py:f", "b.py:f"]}, "two rewards are called f"),
        ({}, {"rewards": [{"modle": "x"}]}, "did you mean `reward.0.model`|unknown key"),
        ({}, {"rewards": ["nowhere.py:f"]}, "nowhere.py does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(options, more, said):
    with pytest.raises(ConfigError, match=said):
        accord.generate(ModelConfig(path="/no/model"), PROMPTS, GenerateOptions(**options), **more)


def test_a_reward_model_with_another_tokenizer_is_refused(base, tmp_path: Path, reward_classifier):
    import shutil

    from accord.model.tiny import train_tokenizer

    shutil.copytree(reward_classifier, tmp_path / "other")
    train_tokenizer(["quite other words, and more of them"] * 5, 300).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="another tokenizer"):
        accord.generate(ModelConfig(path=str(base)), PROMPTS, OPTIONS, rewards=[str(tmp_path / "other")])


def test_a_model_may_be_given_by_its_folder(base):
    options = GenerateOptions(max_new_tokens=4, temperature=0)
    wanted = [r.response_text for r in generate(ModelConfig(path=str(base)), ["the film was"], options)]
    for model in (str(base), base):
        assert [r.response_text for r in accord.generate(model, ["the film was"], options)] == wanted


@pytest.mark.parametrize("prompt", ["the film was", Prompt("the film was")])
def test_one_prompt_is_not_a_list_of_letters(prompt):
    with pytest.raises(ConfigError, match=r"takes a list of prompts.*write \[prompt\]"):
        generate("nowhere", prompt)
