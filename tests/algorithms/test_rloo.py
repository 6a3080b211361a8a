"""RLOO: what is told of tokens and what of responses."""

from __future__ import annotations

import math

import pytest
import torch

from accord.algorithms import RLOO, Denominators
from accord.config import KLConfig, RLOOConfig
from accord.model.forward import Outputs
from accord.ops.statistics import one_rank
from algorithms.test_ppo import Says, rollout

OLD = [0, -1.0, -2.0, 0, -0.5, 0, 0, -1.0, -1.0, -1.0]
ITEMS = [
    rollout(1, [-1.0, -2.0], 1.0, group=0),
    rollout(1, [-0.5], 0.0, group=0),
    rollout(2, [-1.0, -1.0, -1.0], 2.0, group=0),
]


def test_kl_stop_reads_nats_a_token_and_the_clip_is_of_responses() -> None:
    algorithm = RLOO(RLOOConfig(kl_stop=0.04))
    batch, _ = algorithm.prepare(ITEMS, Says(old_logprobs_T=OLD, ref_logprobs_T=OLD))
    logs = [0.3, -0.2, 0.4, 0.1, 0.1, 0.1]
    moved_T = torch.zeros(batch.tokens).masked_scatter(batch.target_mask_T, torch.tensor(logs))
    now = (torch.tensor(OLD) + moved_T).requires_grad_()
    outputs = Outputs(now, torch.zeros(batch.tokens))
    _, metrics = algorithm.loss("policy", outputs, batch, Denominators.of(batch, one_rank))
    told = {name: float(value) for name, value in metrics.items()}
    by_hand = sum(math.exp(x) - 1 - x for x in logs) / 6
    assert told["ppo/policy/approxkl"] == pytest.approx(by_hand, rel=1e-5) and by_hand < 0.04
    assert not algorithm.enough(told), "of whole responses it would be above"
    # responses moved by 0.1, 0.4 and 0.3; advantages 0, -1.5, 1.5: the clip holds the last alone
    assert told["ppo/policy/ratio_mean"] == pytest.approx(sum(math.exp(x) for x in (0.1, 0.4, 0.3)) / 3, rel=1e-5)
    assert told["ppo/policy/ratio_max"] == pytest.approx(math.exp(0.4), rel=1e-5)
    assert told["ppo/policy/clipfrac"] == pytest.approx(1 / 3)


def test_a_kl_in_the_loss_weighs_a_response_as_its_score_does() -> None:
    """0.5 d^2 (k2) of each token, added up and divided by responses, not by tokens: a score counts once, however long."""
    alone = RLOOConfig(kl=KLConfig(coef=0.2, target=None, use="loss", estimator="k2"))
    same = [rollout(1, [-1.0, -2.0], 1.0, group=0), rollout(1, [-0.5], 1.0, group=0)]  # equal scores: no advantage
    old, reference = [0, -1.0, -2.0, 0, -0.5], [0, -1.5, -1.0, 0, -0.25]
    algorithm = RLOO(alone)
    batch, _ = algorithm.prepare(same, Says(old_logprobs_T=old, ref_logprobs_T=reference))
    now = torch.tensor(old, requires_grad=True)
    outputs = Outputs(now, torch.zeros(batch.tokens))
    loss, _ = algorithm.loss("policy", outputs, batch, Denominators.of(batch, one_rank))
    (slope,) = torch.autograd.grad(loss, now)
    expected = 0.2 * (torch.tensor(old) - torch.tensor(reference)) * batch.target_mask_T / 2
    torch.testing.assert_close(slope, expected)
