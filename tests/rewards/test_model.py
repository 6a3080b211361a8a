"""A reward model scores as plain transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accord.config import LoraConfig, ModelConfig
from accord.errors import RewardError
from accord.model.export import save_scorer
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.rewards import ModelReward

CPU = torch.device("cpu")


@pytest.fixture
def reward(model_folder, shake, tmp_path: Path) -> tuple[ModelReward, Path]:
    trained = Roles(ModelConfig(path=str(model_folder("llama"))), None, CPU)
    trained.add_scorer()
    shake(trained.trainable("reward").values())
    save_scorer(trained, tmp_path / "model")
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), LoraConfig(r=2), CPU)
    roles.add_policy()
    roles.add_reward(str(tmp_path / "model"), "reward/taste")
    return ModelReward(Scorer(roles, 10), "reward/taste", "taste"), tmp_path / "model"


def test_scores_equal_plain_transformers_at_the_last_token(reward, rollouts) -> None:
    source, folder = reward
    rollouts = [
        replace(r, prompt_ids=tuple(range(5, 5 + n)), response_ids=(40, 9 + n)) for n, r in enumerate(rollouts, 1)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = [float(model(torch.tensor([r.prompt_ids + r.response_ids])).logits) for r in rollouts]
    assert source.score(rollouts) == pytest.approx(wanted, abs=2e-5)
    assert len(set(wanted)) == 3 and source.label == "taste"


def test_a_reward_model_that_gives_nan_is_an_error(reward, rollouts) -> None:
    source, _ = reward
    with torch.no_grad():
        source.scorer.roles.roles["reward/taste"].score_head.weight.fill_(torch.nan)
    with pytest.raises(RewardError, match="reward taste gave nan for sample 0"):
        source.score(rollouts)
