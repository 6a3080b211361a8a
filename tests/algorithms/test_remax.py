"""ReMax: the greedy response's score is the baseline; with a constant one it is REINFORCE."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from accord.algorithms import Denominators, ReMax
from accord.config import KLConfig, ReMaxConfig
from accord.model.forward import Outputs
from accord.types import Rollout
from algorithms.test_ppo import HAND, OLD, close, hand_scorer

NO_KL = KLConfig(coef=0.0, target=None)


def beside(rollout: Rollout, score: float, finish="stop") -> Rollout:
    return dataclasses.replace(rollout, greedy=dataclasses.replace(rollout, score=score, finish_reason=finish))


ITEMS = [beside(HAND[0], 0.25), beside(HAND[1], -2.0, "length")]
"""Scores 1 and -0.5, greedy 0.25 and -2; the second responses were both cut."""


def test_advantages_by_hand():
    batch, metrics = ReMax(ReMaxConfig(kl=NO_KL)).prepare(ITEMS, hand_scorer())
    close(batch.advantages_T, [0, 0, 0.75, 0.75, 0, 1.5])
    assert metrics["remax/greedy_mean"] == pytest.approx(-0.875)
    # The KL penalty of a token is in the return of the tokens up to it: penalties -0.1 and 0.04 | -0.1.
    batch, _ = ReMax(ReMaxConfig(kl=KLConfig(coef=0.2, target=None))).prepare(ITEMS, hand_scorer())
    close(batch.advantages_T, [0, 0, 0.75 - 0.06, 0.75 + 0.04, 0, 1.5 - 0.1])


def test_baselines_are_shaped_as_scores_are_and_do_not_count_as_seen():
    config = ReMaxConfig(kl=NO_KL, reward_scale=2.0, reward_clip=3.0, missing_eos_penalty=1.0)
    batch, _ = ReMax(config).prepare(ITEMS, hand_scorer())
    # scores 2 and (-0.5 - 1) 2 = -3; baselines 0.5 and (-2 - 1) 2 = -6, clipped to -3
    close(batch.advantages_T, [0, 0, 1.5, 1.5, 0, 0.0])
    algorithm = ReMax(ReMaxConfig(kl=NO_KL, reward_normalize=True))
    batch, _ = algorithm.prepare(ITEMS, hand_scorer())
    assert algorithm.reward_moments.count == 2 and algorithm.reward_moments.mean == pytest.approx(0.25)
    close(batch.advantages_T, [0, 0, 1.0, 1.0, 0, 2.0])  # standard deviation 0.75


def test_scores_of_tokens_count_in_the_baseline_as_in_the_score():
    first = dataclasses.replace(ITEMS[0], token_scores=(0.5, 0.25))
    first = dataclasses.replace(first, greedy=dataclasses.replace(first.greedy, token_scores=(1.0, 0.125)))
    config = ReMaxConfig(kl=NO_KL, reward_scale=2.0, reward_clip=1.5)
    batch, metrics = ReMax(config).prepare([first, ITEMS[1]], hand_scorer())
    # scores 2 -> 1.5 and -1, tokens 1 and 0.5 | none; baselines 0.5 + 2.25 and -4 -> -1.5
    close(batch.advantages_T, [0, 0, 3.0 - 2.75, 2.0 - 2.75, 0, 0.5])
    assert metrics["remax/greedy_mean"] == pytest.approx((2.75 - 1.5) / 2)
    # a greedy response like the sampled one teaches nothing
    same = dataclasses.replace(first, greedy=first)
    batch, _ = ReMax(config).prepare([same, ITEMS[1]], hand_scorer())
    assert float(batch.advantages_T[2]) == 0.0


def gradient(algorithm: ReMax, items: list[Rollout]) -> torch.Tensor:
    batch, _ = algorithm.prepare(items, hand_scorer())
    now = torch.tensor(OLD, requires_grad=True)
    denominators = Denominators(torch.tensor(3.0), torch.tensor(2.0))
    loss, _ = algorithm.loss("policy", Outputs(now, torch.zeros(6)), batch, denominators)
    return torch.autograd.grad(loss, now)[0]


def test_with_a_greedy_score_that_is_constant_it_is_reinforce():
    """-(score - constant) / responses at each token of the response (the paper's equation 3 with a constant baseline)."""
    for constant in (0.0, 0.5):
        items = [beside(rollout, constant) for rollout in HAND]
        expected = [0, 0, -(1.0 - constant) / 2, -(1.0 - constant) / 2, 0, -(-0.5 - constant) / 2]
        close(gradient(ReMax(ReMaxConfig(kl=NO_KL)), items), expected)


def test_a_response_better_than_the_greedy_one_becomes_likelier_and_a_worse_one_less():
    slopes = gradient(ReMax(ReMaxConfig(kl=NO_KL)), [beside(HAND[0], 0.5), beside(HAND[1], 0.5)])
    assert slopes[2] < 0 and slopes[3] < 0 < slopes[5]


def test_importance_weights_reach_the_loss():
    lagging = [dataclasses.replace(ITEMS[0], sampler_logprobs=(-1.0, -1.0)), ITEMS[1]]
    plain = gradient(ReMax(ReMaxConfig(kl=NO_KL)), lagging)
    weighed = gradient(ReMax(ReMaxConfig(kl=NO_KL, correction="truncate")), lagging)
    torch.testing.assert_close(weighed, plain * torch.tensor([1, 1, 1, 0.3678794, 1, 1]))


def test_a_kl_in_the_loss_weighs_a_response_as_its_score_does():
    """0.5 d^2 (k2) of each token, added up and divided by responses: not by tokens, of which the surrogate is a sum."""
    alone = ReMaxConfig(kl=KLConfig(coef=0.2, target=None, use="loss", estimator="k2"))
    items = [beside(HAND[0], HAND[0].score), beside(HAND[1], HAND[1].score)]  # no advantage
    batch, _ = ReMax(alone).prepare(items, hand_scorer())
    difference_T = (torch.tensor(OLD) - batch.ref_logprobs_T) * batch.target_mask_T
    close(gradient(ReMax(alone), items), (0.2 * difference_T / 2).tolist())


def test_without_a_greedy_response_it_says_so():
    with pytest.raises(ValueError, match="rollout 0 has no greedy response beside it"):
        ReMax(ReMaxConfig()).prepare(HAND, hand_scorer())
