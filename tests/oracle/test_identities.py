"""Algebra that ties the methods to one another: each side is computed by another function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.losses import grpo, ppo_policy, rloo, token_weights
from accord.ops.advantages import gae, group_relative, leave_one_out, returns_to_go, spread_over_tokens
from accord.ops.kl import kl_per_token
from accord.ops.masking import last_targets, sum_per_sequence
from oracle.padded import Padded

SEEDS = range(6)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


# --- advantages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_at_lambda_1_is_the_monte_carlo_return_less_the_value(seed, gamma):
    ragged = Padded(seed)
    rewards, values = ragged.stream().float(), ragged.stream().float()
    advantages, returns = gae(ragged.batch, rewards, values, gamma, 1.0)
    to_go = returns_to_go(ragged.batch, rewards, gamma)
    assert torch.allclose(returns, to_go, atol=1e-5) and torch.allclose(advantages, to_go - values, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_with_a_constant_value_and_a_score_at_the_end(seed):
    """V = c, gamma 1: delta is 0 but at the end, where it is s - c; so A_t = lam^(distance to the end) (s - c)."""
    ragged = Padded(seed)
    batch, ends = ragged.batch, last_targets(ragged.batch)
    scores = torch.randn(batch.sequences, generator=ragged.generator)
    rewards = torch.zeros(batch.tokens).index_add(0, ends, scores)
    values = torch.full((batch.tokens,), 0.25).masked_fill(~batch.target_mask_T, 0.0)
    advantages, _ = gae(batch, rewards, values, 1.0, 0.95)
    distance = ends[batch.sequence_T] - torch.arange(batch.tokens)
    wanted = (0.95**distance * (scores - 0.25)[batch.sequence_T]).masked_fill(~batch.target_mask_T, 0.0)
    assert torch.allclose(advantages, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_leave_one_out_is_the_centred_score_times_n_over_n_minus_1(size):
    scores = torch.randn(5 * size, generator=torch.Generator().manual_seed(size))
    groups = torch.arange(5).repeat_interleave(size)
    centred = group_relative(scores, groups, "none")
    assert torch.allclose(leave_one_out(scores, groups), size / (size - 1) * centred, atol=1e-6)


def test_two_samples_of_grpo_are_a_sign_and_of_rloo_a_difference():
    """n = 2: std of n - 1 is |s1 - s2| / sqrt 2, so GRPO's advantage is +-1/sqrt 2 however far the scores are apart; RLOO's is
    s1 - s2."""
    scores = torch.tensor([1.0, 3.0, 0.0, 50.0])
    groups = torch.tensor([0, 0, 1, 1])
    assert group_relative(scores, groups).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5] * 2, rel=1e-3)
    assert leave_one_out(scores, groups).tolist() == [-2.0, 2.0, -50.0, 50.0]


@pytest.mark.parametrize(
    "advantage", [leave_one_out, lambda s, g: group_relative(s, g), lambda s, g: group_relative(s, g, "none")]
)
def test_advantages_of_a_group_add_up_to_0_and_forget_a_shift(advantage):
    generator = torch.Generator().manual_seed(0)
    scores, groups = torch.randn(20, generator=generator), torch.arange(4).repeat_interleave(5)
    found = advantage(scores, groups)
    assert float(found.view(4, 5).sum(1).abs().max()) < 1e-5
    shift = torch.tensor([3.0, -1.0, 0.5, 10.0]).repeat_interleave(5)
    assert torch.allclose(advantage(scores + shift, groups), found, atol=1e-4)


# --- losses --------------------------------------------------------------------------------------------------------------


def streams(seed: int) -> tuple[Padded, Tensor, Tensor, Tensor]:
    ragged = Padded(seed)
    old = -ragged.stream().abs() - 0.05
    new = (old + ragged.stream(0.3)).requires_grad_()
    return ragged, new, old, torch.randn(ragged.batch.sequences, generator=ragged.generator, dtype=torch.float64)


def weights(ragged: Padded, aggregate: str) -> Tensor:
    batch = ragged.batch
    return token_weights(
        mask_T=batch.target_mask_T,
        sequence_T=batch.sequence_T,
        aggregate=aggregate,
        tokens=ragged.tokens,
        sequences=ragged.sequences,
        longest=9,
    ).double()


def by_grpo(ragged: Padded, new: Tensor, old: Tensor, advantages_N: Tensor, aggregate: str, **options) -> Tensor:
    options = {"clip_low": 0.2, "clip_high": 0.2} | options
    loss, _ = grpo(
        logprobs_T=new,
        old_logprobs_T=old,
        advantages_T=advantages_N[ragged.batch.sequence_T],
        mask_T=ragged.batch.target_mask_T,
        weights_T=weights(ragged, aggregate),
        tokens=ragged.tokens,
        **options,
    )
    return loss


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_over_tokens_is_ppo_with_the_same_advantage_at_each(seed):
    ragged, new, old, advantages_N = streams(seed)
    loss, _ = ppo_policy(
        logprobs_T=new,
        old_logprobs_T=old,
        advantages_T=advantages_N[ragged.batch.sequence_T],
        mask_T=ragged.batch.target_mask_T,
        tokens=ragged.tokens,
        clip=0.2,
    )
    other = by_grpo(ragged, new, old, advantages_N, "token")
    assert loss.item() == pytest.approx(other.item(), rel=1e-6)
    assert torch.allclose(gradient(loss, new), gradient(other, new), rtol=1e-6, atol=1e-10)


class OneToken(Padded):
    """Responses of one token each."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.responses = [r[:1] for r in self.responses]
        self.batch = TokenBatch.from_sequences(
            [p + r for p, r in zip(self.prompts, self.responses, strict=True)],
            [[False] * len(p) + [True] for p in self.prompts],
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_with_one_token_a_response_token_sequence_and_rloo_are_one(seed):
    ragged = OneToken(seed)
    old = -ragged.stream().abs() - 0.05
    new = (old + ragged.stream(0.3)).requires_grad_()
    advantages_N = torch.randn(ragged.batch.sequences, generator=ragged.generator, dtype=torch.float64)
    token = by_grpo(ragged, new, old, advantages_N, "token")
    sequence = by_grpo(ragged, new, old, advantages_N, "sequence", sequence_T=ragged.batch.sequence_T)
    whole, _ = rloo(
        logprobs_N=new[last_targets(ragged.batch)],
        old_logprobs_N=old[last_targets(ragged.batch)],
        advantages_N=advantages_N,
        sequences=ragged.sequences,
        clip=0.2,
    )
    wanted = gradient(token, new)
    for loss in (sequence, whole):
        assert loss.item() == pytest.approx(token.item(), rel=1e-6)
        assert torch.allclose(gradient(loss, new), wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(seed):
    """At ratio 1: d loss / d log p_t = -w_t A_t, clipped or not, of the token or of the response, CISPO too."""
    ragged, _, old, advantages_N = streams(seed)
    new = old.clone().requires_grad_()
    wanted = -(weights(ragged, "token") * advantages_N[ragged.batch.sequence_T])
    for options in ({}, {"dual_clip": 3.0}, {"cispo": True}, {"sequence_T": ragged.batch.sequence_T}):
        found = gradient(by_grpo(ragged, new, old, advantages_N, "token", **options), new)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_rloo_is_grpo_divided_by_a_constant_length(seed):
    """Dr. GRPO's loss is RLOO's over the greatest length: no response is favoured for being short (arXiv:2503.20783)."""
    ragged, _, old, advantages_N = streams(seed)
    new = old.clone().requires_grad_()
    whole, _ = rloo(
        logprobs_N=sum_per_sequence(new, ragged.batch),
        old_logprobs_N=sum_per_sequence(old, ragged.batch),
        advantages_N=advantages_N.float(),
        sequences=ragged.sequences,
        clip=0.2,
    )
    constant = by_grpo(ragged, new, old, advantages_N, "constant")
    assert torch.allclose(gradient(whole, new), 9 * gradient(constant, new), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_equally_long_responses_are_averaged_alike(seed):
    ragged = OneToken(seed)
    sequence, token = weights(ragged, "sequence"), weights(ragged, "token")
    assert torch.allclose(sequence, token)
    assert float(weights(Padded(seed), "sequence").sum()) == pytest.approx(1.0)
    assert float(weights(Padded(seed), "token").sum()) == pytest.approx(1.0)


# --- divergence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_expectations_of_the_estimators(seed):
    """Over the whole vocabulary, weighted by the policy: k1 and k3 are the KL exactly, and k2 up to the third order."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_q = (log_p + 0.02 * torch.randn(50, generator=generator, dtype=torch.float64)).log_softmax(-1)
    p = log_p.exp()
    kl = float((p * (log_p - log_q)).sum())
    for estimator in ("k1", "k3"):
        assert float((p * kl_per_token(log_p, log_q, estimator)).sum()) == pytest.approx(kl, rel=1e-9)
    assert float((p * kl_per_token(log_p, log_q, "k2")).sum()) == pytest.approx(kl, rel=0.05)
    k3 = kl_per_token(log_p, log_q, "k3")
    k1 = kl_per_token(log_p, log_q, "k1")
    assert float((p * (k3 - kl) ** 2).sum()) < float((p * (k1 - kl) ** 2).sum())  # and varies less


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kl_in_the_reward_telescopes_to_that_of_the_response(seed):
    """gamma 1, value 0: the return at the first token is the score less the summed log-ratio, which is the response's k1."""
    ragged = Padded(seed)
    batch = ragged.batch
    policy, reference = ragged.stream().float(), ragged.stream().float()
    scores = torch.randn(batch.sequences, generator=ragged.generator)
    penalties = -0.3 * kl_per_token(policy, reference, "k1")
    rewards = penalties.index_add(0, last_targets(batch), scores)
    first = torch.tensor([end - len(r) for end, r in zip(batch.cu_seqlens[1:].tolist(), ragged.responses, strict=True)])
    whole = sum_per_sequence(policy, batch) - sum_per_sequence(reference, batch)
    assert torch.allclose(returns_to_go(batch, rewards)[first], scores - 0.3 * whole, atol=1e-5)
    assert torch.allclose(spread_over_tokens(scores, batch)[first], scores)
