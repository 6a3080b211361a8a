"""A process reward model's probabilities: where they stand, and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from accord.config import ModelConfig
from accord.model.export import save_scorer
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.rewards import MixedReward, ProcessReward
from accord.types import Rollout

CPU = torch.device("cpu")
PROMPT = "the film was"
STEPS = ((" a good cast", "\n", " the end", "\n", " odd"), (" slow",))
"""Two responses, in pieces that are tokenised one by one; both end with the stop token."""


@pytest.fixture(scope="module")
def model(model_folder, shake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Roles, Path]:
    """A reward model of steps, and its folder."""
    folder = tmp_path_factory.mktemp("prm")
    trained = Roles(ModelConfig(path=str(model_folder("llama"))), None, CPU)
    trained.add_scorer()
    shake(trained.trainable("reward").values())
    save_scorer(trained, folder)
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), None, CPU)
    roles.add_policy()
    roles.add_reward(str(folder), "reward/prm", stepwise=True)
    return roles, folder


def source(model: tuple[Roles, Path], combine: str) -> ProcessReward:
    roles, _ = model
    return ProcessReward(Scorer(roles, 16), "reward/prm", "prm", roles.tokenizer, "\n", combine)


def made(model: tuple[Roles, Path]) -> tuple[list[Rollout], list[list[int]]]:
    """Rollouts, and the index of each step's last token: that of its separator, at the end that of the stop token."""
    tokenizer = model[0].tokenizer

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    rollouts, ends = [], []
    for pieces in STEPS:
        tokens: tuple[int, ...] = ()
        places = []
        for piece in pieces:
            tokens += ids(piece)
            if piece == "\n":
                places.append(len(tokens) - 1)
        tokens += (tokenizer.eos_token_id,)
        ends.append([*places, len(tokens) - 1])
        rollouts.append(Rollout(ids(PROMPT), tokens, (0.0,) * len(tokens), "stop", PROMPT, "".join(pieces)))
    return rollouts, ends


def by_hand(model: tuple[Roles, Path]) -> list[dict[int, float]]:
    """By plain transformers: the probability at the end of the sequence up to the step's last token."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model[1]).eval()
    found = []
    for rollout, ends in zip(*made(model), strict=True):
        with torch.no_grad():
            logits = {
                end: classifier(torch.tensor([rollout.prompt_ids + rollout.response_ids[: end + 1]])) for end in ends
            }
        found.append({end: float(torch.sigmoid(out.logits[0, 0])) for end, out in logits.items()})
    return found


def test_with_tokens_each_probability_stands_at_its_step_s_last_token(model):
    rollouts, ends = made(model)
    assert [len(places) for places in ends] == [3, 1]
    scores = source(model, "tokens").score(rollouts)
    for rollout, score, wanted in zip(rollouts, scores, by_hand(model), strict=True):
        assert isinstance(score, tuple) and len(score) == len(rollout.response_ids)
        assert {place: value for place, value in enumerate(score) if value != 0} == pytest.approx(wanted, abs=1e-5)
    assert len(set(scores[0])) == 4, "three probabilities that differ, and 0"


def test_scores_of_tokens_reach_the_rollout_weighted(model):
    rollouts, _ = made(model)
    mixed = MixedReward([(source(model, "tokens"), 2.0)]).score(rollouts)
    for rollout, wanted in zip(mixed, by_hand(model), strict=True):
        assert rollout.score == 0
        assert rollout.token_scores == pytest.approx(
            [2 * wanted.get(place, 0.0) for place in range(len(rollout.response_ids))], abs=1e-5
        )
        assert rollout.total_score == pytest.approx(2 * sum(wanted.values()), abs=1e-4)
        assert rollout.scores == {"prm": pytest.approx(sum(wanted.values()), abs=1e-5)}


@pytest.mark.parametrize(
    ("combine", "wanted"),
    [("min", min), ("prod", math.prod), ("last", lambda p: p[-1]), ("mean", lambda p: sum(p) / len(p)), ("sum", sum)],
)
def test_one_score_of_all_steps(combine, wanted, model):
    scores = source(model, combine).score(made(model)[0])
    assert scores == pytest.approx([wanted(list(steps.values())) for steps in by_hand(model)], abs=1e-5)
