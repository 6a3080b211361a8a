"""Online DPO: which pairs are learnt, and that their loss is DPO's."""

from __future__ import annotations

import math

import pytest
import torch

from accord.algorithms import Denominators, OnlineDPO
from accord.algorithms.online_dpo import best_and_worst
from accord.config import OnlineDPOConfig
from accord.losses import dpo
from accord.model.forward import Outputs
from algorithms.test_ppo import Says
from algorithms.test_rejection import rollout

ITEMS = [
    rollout(0, 1.0),
    rollout(0, 3.0, 3),
    rollout(0, -1.0, 1),
    rollout(1, 2.0),
    rollout(1, 2.0),
    rollout(2, 0.0),
    rollout(2, 1.0),
]
"""Groups of three, two equal ones, and two; the pairs are (1, 2) and (6, 5)."""


def test_pairs_and_ties_by_hand():
    assert best_and_worst(ITEMS) == ([(1, 2), (6, 5)], [(3, 4)])


def test_a_missing_end_costs():
    cut = [rollout(0, 1.0), rollout(0, 1.5)]
    cut[1] = type(cut[1])(**{f: getattr(cut[1], f) for f in cut[1].__slots__} | {"finish_reason": "length"})
    assert best_and_worst(cut) == ([(1, 0)], []) and best_and_worst(cut, 1.0) == ([(0, 1)], [])
    assert best_and_worst(cut, 0.5) == ([], [(0, 1)])


def scorer() -> Says:
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in ITEMS)
    ref = torch.arange(tokens, dtype=torch.float32) / -10
    return Says(old_logprobs_T=ref + 0.1, ref_logprobs_T=ref)


def prepared(**options):
    algorithm = OnlineDPO(OnlineDPOConfig(**options))
    return algorithm, *algorithm.prepare(ITEMS, scorer())


def test_the_batch_holds_best_and_worst_with_the_reference_of_each():
    _, batch, metrics = prepared()
    assert batch.lengths_N.tolist() == [5, 3, 4, 4] and batch.pair_N.tolist() == [0, 0, 1, 1]
    # rollout 1 begins at token 4, its response at 6; rollout 2's is token 11; 6's and 5's begin at 26 and 22
    expected = [-(0.6 + 0.7 + 0.8), -1.1, -(2.6 + 2.7), -(2.2 + 2.3)]
    torch.testing.assert_close(batch.ref_logprobs_N, torch.tensor(expected))
    assert metrics["online_dpo/ties"] == pytest.approx(1 / 3) and metrics["env/reward_mean"] == pytest.approx(8 / 7)


@pytest.mark.parametrize("options", [{}, {"loss": "ipo"}, {"loss": "hinge", "beta": 0.5}, {"length_normalize": True}])
def test_the_loss_is_that_of_dpo(options):
    algorithm, batch, _ = prepared(**options)
    now = (-torch.rand(batch.tokens)).requires_grad_()
    loss, metrics = algorithm.loss("policy", Outputs(now), batch, Denominators(torch.tensor(8.0), torch.tensor(4.0)))
    sums = [now[batch.token_index([n])][batch.target_mask_T[batch.token_index([n])]].sum() for n in range(4)]
    expected, _ = dpo(
        chosen_P=torch.stack(sums[0::2]),
        rejected_P=torch.stack(sums[1::2]),
        ref_chosen_P=batch.ref_logprobs_N[0::2],
        ref_rejected_P=batch.ref_logprobs_N[1::2],
        chosen_lengths_P=torch.tensor([3.0, 2.0]),
        rejected_lengths_P=torch.tensor([1.0, 2.0]),
        pairs=torch.tensor(2.0),
        **{"beta": 0.1} | options,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and "rewards/accuracies" in metrics
    (slopes,) = torch.autograd.grad(loss, now)
    assert bool((slopes[~batch.target_mask_T] == 0).all())


def test_a_policy_at_its_reference_has_a_loss_of_log_2_and_the_better_answer_becomes_likelier():
    algorithm, batch, _ = prepared()
    spread = batch.ref_logprobs_N[batch.sequence_T] / torch.tensor([3.0, 1.0, 2.0, 2.0])[batch.sequence_T]
    now = spread.masked_fill(~batch.target_mask_T, 0.0).requires_grad_()
    loss, _ = algorithm.loss("policy", Outputs(now), batch, Denominators(torch.tensor(8.0), torch.tensor(4.0)))
    (slopes,) = torch.autograd.grad(loss, now)
    assert loss.item() == pytest.approx(math.log(2))
    chosen_T = batch.target_mask_T & (batch.sequence_T % 2 == 0)
    assert bool((slopes[chosen_T] < 0).all()) and bool((slopes[batch.target_mask_T & ~chosen_T] > 0).all())


def test_minibatches_keep_pairs_together_and_take_each_once():
    algorithm, batch, _ = prepared(minibatches=2, epochs=2)
    parts = list(algorithm.minibatches(batch, torch.Generator().manual_seed(0)))
    assert len(parts) == 4 and sorted(int(part.pair_N[0]) for part in parts) == [0, 0, 1, 1]


def test_where_pairs_are_too_few_ties_fill_up_and_are_not_learnt():
    algorithm, batch, _ = prepared(minibatches=3)
    assert batch.sequences == 6 and batch.targets == 3 + 1 + 2 + 2 and not batch.target_mask_T[-8:].any()
    now = torch.zeros(batch.tokens, requires_grad=True)
    loss, _ = algorithm.loss("policy", Outputs(now), batch, Denominators(torch.tensor(8.0), torch.tensor(4.0)))
    _, pairs, _ = prepared()
    plain, _ = algorithm.loss(
        "policy", Outputs(now[: pairs.tokens]), pairs, Denominators(torch.tensor(8.0), torch.tensor(4.0))
    )
    assert loss.item() == pytest.approx(plain.item())


def test_a_step_without_a_pair_is_not_taken():
    algorithm = OnlineDPO(OnlineDPOConfig())
    assert algorithm.veto({"tokens/trained": 0.0}) == "no group had two scores"
    assert algorithm.veto({"tokens/trained": 4.0}) is None
