"""Rejection sampling: what is kept, and that nothing else is learnt."""

from __future__ import annotations

import pytest
import torch

from accord.algorithms import Denominators, Rejection
from accord.algorithms.rejection import kept
from accord.config import RejectionConfig
from accord.model.forward import Outputs
from accord.types import Rollout
from algorithms.test_ppo import Says


def rollout(group: int, score: float, length: int = 2, **more) -> Rollout:
    return Rollout(
        (1, 2), tuple(range(3, 3 + length)), (-1.0,) * length, "stop", "p", "r", group=group, score=score, **more
    )


ITEMS = [rollout(0, 1.0), rollout(0, 3.0, 3), rollout(1, -1.0), rollout(1, -2.0), rollout(2, 0.0), rollout(2, 0.0)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 4]),
        ({"keep": "threshold", "threshold": 0.0}, [0, 1, 4, 5]),
        ({"keep": "threshold", "threshold": 3.5}, []),
        ({"keep": "fraction", "fraction": 0.5}, [0, 1, 4]),
        ({"keep": "fraction", "fraction": 0.01}, [1]),
    ],
)
def test_what_is_kept_by_hand(options, expected):
    assert kept(ITEMS, RejectionConfig(**options)) == expected


def test_scores_of_tokens_count():
    assert kept([rollout(0, 1.0), rollout(0, 0.0, token_scores=(1.0, 0.5))], RejectionConfig()) == [1]


def scorer() -> Says:
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in ITEMS)
    zeros = torch.zeros(tokens)
    return Says(old_logprobs_T=zeros - 1.0, ref_logprobs_T=zeros - 1.5)


def test_the_batch_holds_the_kept_responses_alone():
    batch, metrics = Rejection(RejectionConfig()).prepare(ITEMS, scorer())
    assert batch.sequences == 3 and batch.targets == 3 + 2 + 2
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2, 3, 4]
    assert metrics["rejection/kept"] == 0.5 and metrics["rejection/score_kept"] == pytest.approx(2 / 3)
    assert metrics["env/reward_mean"] == pytest.approx(1 / 6) and metrics["objective/kl"] == pytest.approx(0.5 * 13 / 6)


@pytest.mark.parametrize(("threshold", "count", "targets"), [(2.0, 1, 3), (9.0, 0, 0)])
def test_where_too_few_are_kept_others_fill_up_and_are_not_learnt(threshold, count, targets):
    config = RejectionConfig(keep="threshold", threshold=threshold, minibatches=3)
    batch, metrics = Rejection(config).prepare(ITEMS, scorer())
    assert batch.sequences == 3 and batch.targets == targets
    assert metrics["rejection/kept"] == pytest.approx(count / 6) and ("rejection/score_kept" in metrics) is bool(count)
    assert len(list(Rejection(config).minibatches(batch, torch.Generator()))) == 3


def test_loss_by_hand_and_sign():
    batch, _ = Rejection(RejectionConfig()).prepare(ITEMS, scorer())
    now = torch.full((batch.tokens,), -2.0).masked_fill(~batch.target_mask_T, float("nan")).requires_grad_()
    counts = Denominators(torch.tensor(7.0), torch.tensor(3.0))
    loss, _ = Rejection(RejectionConfig()).loss("policy", Outputs(now), batch, counts)
    (slopes,) = torch.autograd.grad(loss, now)
    assert loss.item() == pytest.approx(2.0)
    torch.testing.assert_close(slopes, torch.where(batch.target_mask_T, -1 / 7, 0.0))


def test_a_step_without_a_kept_response_is_not_taken():
    algorithm = Rejection(RejectionConfig())
    assert (
        algorithm.veto({"tokens/trained": 0.0}) == "no response was kept"
        and algorithm.veto({"tokens/trained": 1.0}) is None
    )
    batch, _ = Rejection(RejectionConfig(keep="threshold", threshold=9.0)).prepare(ITEMS, scorer())
    now = torch.zeros(batch.tokens, requires_grad=True)
    loss, _ = algorithm.loss("policy", Outputs(now), batch, Denominators(torch.tensor(0.0), torch.tensor(1.0)))
    assert loss.item() == 0.0
