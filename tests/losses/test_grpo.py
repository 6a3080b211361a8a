"""GRPO's variants and RLOO: by hand, against naive loops, by identity, signs and masks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from accord.batch import TokenBatch
from accord.losses import grpo, ppo_policy, rloo, token_weights
from accord.ops.masking import last_targets, sum_per_sequence


def ragged(seed: int = 0) -> tuple[TokenBatch, dict[str, torch.Tensor]]:
    """Four sequences of different lengths with random streams."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [5, 3, 7, 4]
    masks = [[False, *([True] * (n - 1))] for n in lengths]
    masks[2][3] = False  # a token of somebody else in between
    batch = TokenBatch.from_sequences([[1] * n for n in lengths], masks)
    old = -torch.rand(batch.tokens, generator=generator) * 3
    new = (old + 0.6 * torch.randn(batch.tokens, generator=generator)).requires_grad_()
    advantages_N = torch.tensor([1.0, -2.0, 0.5, -0.25])
    return batch, {"new": new, "old": old, "advantages": advantages_N[batch.sequence_T]}


def run(batch, s, aggregate="token", tokens=None, sequences=None, longest=10, **options):
    tokens = torch.tensor(float(batch.targets)) if tokens is None else tokens
    sequences = torch.tensor(float(batch.sequences)) if sequences is None else sequences
    weights = token_weights(
        mask_T=batch.target_mask_T,
        sequence_T=batch.sequence_T,
        aggregate=aggregate,
        tokens=tokens,
        sequences=sequences,
        longest=longest,
    )
    options = {"clip_low": 0.2, "clip_high": 0.2} | options
    return grpo(
        logprobs_T=s["new"],
        old_logprobs_T=s["old"],
        advantages_T=s["advantages"],
        mask_T=batch.target_mask_T,
        weights_T=weights,
        tokens=tokens,
        **options,
    )


def naive(batch, s, aggregate, longest=10, low=0.2, high=0.2, sequence_ratio=False, dual=None, cispo=False):
    """The formulas, sequence by sequence and token by token."""
    total, all_tokens = 0.0, batch.targets
    bounds = batch.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        places = [t for t in range(start, end) if batch.target_mask_T[t]]
        logs = [(s["new"][t] - s["old"][t]).item() for t in places]
        mean_log = sum(logs) / len(logs)
        for t, log in zip(places, logs, strict=True):
            ratio = torch.tensor(mean_log if sequence_ratio else log).exp().item()
            a = s["advantages"][t].item()
            bounded = min(max(ratio, 1 - low), 1 + high)
            loss = -min(a * ratio, a * bounded)
            if cispo:
                loss = -min(ratio, 1 + high) * a * s["new"][t].item()
            if dual is not None and a < 0:
                loss = min(loss, -a * dual)
            scale = {
                "token": all_tokens,
                "sequence": len(places) * batch.sequences,
                "constant": longest * batch.sequences,
            }
            total += loss / scale[aggregate]
    return total


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize(
    ("options", "naively"),
    [
        ({}, {}),
        ({"clip_high": 0.28}, {"high": 0.28}),
        ({"dual_clip": 1.2}, {"dual": 1.2}),
        ({"cispo": True}, {"cispo": True}),
        ({"sequence": True}, {"sequence_ratio": True}),
    ],
)
def test_equals_the_formulas_written_out(aggregate, options, naively):
    for seed in range(5):
        batch, streams = ragged(seed)
        options = dict(options)
        if options.pop("sequence", False):
            options["sequence_T"] = batch.sequence_T
        loss, _ = run(batch, streams, aggregate, **options)
        assert loss.item() == pytest.approx(naive(batch, streams, aggregate, **naively), rel=1e-5)


def test_token_mean_is_ppo():
    batch, s = ragged()
    loss, metrics = run(batch, s, "token")
    expected, expected_metrics = ppo_policy(
        logprobs_T=s["new"],
        old_logprobs_T=s["old"],
        advantages_T=s["advantages"],
        mask_T=batch.target_mask_T,
        tokens=torch.tensor(float(batch.targets)),
        clip=0.2,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, value in expected_metrics.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_a_sequence_ratio_of_one_token_is_the_token_ratio():
    batch = TokenBatch.from_sequences([[1, 2], [3, 4, 5]], [[False, True], [False, False, True]])
    s = {
        "new": torch.tensor([0.0, -1.0, 0.0, 0.0, -0.3], requires_grad=True),
        "old": torch.tensor([0.0, -1.4, 0.0, 0.0, -0.2]),
        "advantages": torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0]),
    }
    token, _ = run(batch, s)
    sequence, _ = run(batch, s, sequence_T=batch.sequence_T)
    assert token.item() == sequence.item()
    assert torch.equal(torch.autograd.grad(token, s["new"])[0], torch.autograd.grad(sequence, s["new"])[0])


def test_the_sequence_ratio_gives_each_token_its_gradient():
    # Inside the clip range d loss / d log p_t = -w_t A s_n for each token of the response (GSPO, equation 14).
    batch, s = ragged()
    s["new"] = (s["old"] + 0.01).requires_grad_()
    loss, _ = run(batch, s, sequence_T=batch.sequence_T)
    gradient = torch.autograd.grad(loss, s["new"])[0]
    expected = -s["advantages"] * torch.exp(torch.tensor(0.01)) / batch.targets
    assert torch.allclose(gradient, expected.masked_fill(~batch.target_mask_T, 0.0), rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"cispo": True}, {"sequence": True}])
def test_a_good_response_becomes_likelier(options):
    batch, s = ragged()
    s = s | {"new": s["old"].clone().requires_grad_(), "advantages": torch.ones(batch.tokens)}
    options = {"sequence_T": batch.sequence_T} if options.get("sequence") else options
    gradient = torch.autograd.grad(run(batch, s, **options)[0], s["new"])[0]
    assert (gradient[batch.target_mask_T] < 0).all()


@pytest.mark.parametrize("garbage", [1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("stream", ["new", "old", "advantages"])
@pytest.mark.parametrize("options", [{}, {"cispo": True}, {"sequence": True}])
def test_masked_tokens_change_nothing(garbage, stream, options):
    batch, s = ragged()
    options = {"sequence_T": batch.sequence_T} if options.get("sequence") else options
    expected, _ = run(batch, s, **options)
    expected_gradient = torch.autograd.grad(expected, s["new"])[0]
    spoilt = {name: value.detach().clone() for name, value in s.items()}
    spoilt[stream][~batch.target_mask_T] = garbage
    spoilt["new"].requires_grad_()
    loss, _ = run(batch, spoilt, **options)
    gradient = torch.autograd.grad(loss, spoilt["new"])[0]
    assert loss.item() == expected.item()
    assert torch.equal(gradient, expected_gradient)
    assert (gradient[~batch.target_mask_T] == 0).all()


@pytest.mark.parametrize("garbage", [3.0, float("nan")])
def test_weights_of_masked_tokens_change_nothing(garbage):
    batch, s = ragged()
    own = {
        "logprobs_T": s["new"],
        "old_logprobs_T": s["old"],
        "advantages_T": s["advantages"],
        "mask_T": batch.target_mask_T,
        "tokens": torch.tensor(float(batch.targets)),
        "clip_low": 0.2,
        "clip_high": 0.2,
    }
    weights = batch.target_mask_T / batch.targets
    spoilt = weights.masked_fill(~batch.target_mask_T, garbage)
    expected, got = (grpo(weights_T=each, **own)[0] for each in (weights, spoilt))
    assert got.item() == expected.item()
    assert torch.equal(*(torch.autograd.grad(each, s["new"])[0] for each in (expected, got)))


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_any_split_gives_the_loss_of_the_whole(aggregate):
    batch, s = ragged()
    tokens, sequences = torch.tensor(float(batch.targets)), torch.tensor(float(batch.sequences))
    whole, _ = run(batch, s, aggregate)
    parts = 0.0
    for n in range(batch.sequences):
        part, index = batch.select([n]), batch.token_index([n])
        streams = {name: value[index] for name, value in s.items()}
        parts += run(part, streams, aggregate, tokens, sequences)[0].item()
    assert parts == pytest.approx(whole.item(), rel=1e-5)


def test_the_approximate_kl_is_of_tokens_whatever_is_clipped():
    """Of the responses' mean log-ratios it would be smaller (Jensen)."""
    batch, s = ragged(3)
    token, response = (run(batch, s, sequence_T=index)[1] for index in (None, batch.sequence_T))
    assert response["ppo/policy/approxkl"] == token["ppo/policy/approxkl"]
    assert not response["ppo/policy/approxkl"].requires_grad
    logs = (s["new"] - s["old"])[batch.target_mask_T].tolist()
    by_hand = sum(math.exp(x) - 1 - x for x in logs) / len(logs)
    assert token["ppo/policy/approxkl"].item() == pytest.approx(by_hand, rel=1e-5)
    assert response["ppo/policy/ratio_max"] < token["ppo/policy/ratio_max"]


# --- RLOO ------------------------------------------------------------------------------------------------------------


def test_rloo_by_hand():
    # ratios e^0.1 = 1.10517 and e^0.5 = 1.64872, clip 0.2, A = (2, 1): -2 * 1.10517 and -1 * 1.2; mean -1.70517
    loss, metrics = rloo(
        logprobs_N=torch.tensor([-0.9, -1.5]),
        old_logprobs_N=torch.tensor([-1.0, -2.0]),
        advantages_N=torch.tensor([2.0, 1.0]),
        sequences=torch.tensor(2.0),
        clip=0.2,
    )
    assert loss.item() == pytest.approx(-1.7051709, rel=1e-6)
    assert metrics["ppo/policy/clipfrac"].item() == 0.5


def test_rloo_at_the_first_step_is_reinforce():
    # grad = -A_n / sequences at each token of response n
    batch, s = ragged()
    new = s["old"].clone().requires_grad_()
    advantages_N = s["advantages"][last_targets(batch)]
    loss, _ = rloo(
        logprobs_N=sum_per_sequence(new, batch),
        old_logprobs_N=sum_per_sequence(s["old"], batch),
        advantages_N=advantages_N,
        sequences=torch.tensor(float(batch.sequences)),
        clip=0.2,
    )
    gradient = torch.autograd.grad(loss, new)[0]
    expected = (-s["advantages"] / batch.sequences).masked_fill(~batch.target_mask_T, 0.0)
    assert torch.allclose(gradient, expected, rtol=1e-6)
