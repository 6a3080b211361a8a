"""Our losses against those of TRL, whose methods are called with a stand-in for their trainer.

Random ragged rollouts, end to end for us and padded for them, in float64; both the loss and its gradient at each token.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms import GRPO, Denominators
from accord.config import GRPOConfig
from accord.losses import bradley_terry, grpo, kl_penalty, rloo, sft, token_weights
from accord.model.forward import Outputs
from accord.ops.masking import sum_per_sequence
from oracle.padded import Padded, trainer

pytest.importorskip("trl")

from trl import GRPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer

SEEDS = range(6)
LONGEST = 12


def drawn(seed: int) -> tuple[Padded, dict[str, Tensor]]:
    """Rollouts whose ratios lie inside and outside of the clip range, and advantages of both signs."""
    ragged = Padded(seed)
    old = -ragged.stream().abs() - 0.05
    new = old + ragged.stream(0.3)
    advantages_N = torch.randn(ragged.batch.sequences, generator=ragged.generator, dtype=torch.float64)
    return ragged, {"new": new, "old": old, "ref": new + ragged.stream(0.2), "advantages_N": advantages_N}


def ours(ragged: Padded, s: dict[str, Tensor], aggregate: str, beta: float, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient at the response tokens."""
    new = s["new"].clone().requires_grad_()
    batch = ragged.batch
    weights_T = token_weights(
        mask_T=batch.target_mask_T,
        sequence_T=batch.sequence_T,
        aggregate=aggregate,
        tokens=ragged.tokens,
        sequences=ragged.sequences,
        longest=LONGEST,
    )
    if options.pop("sequence", False):
        options["sequence_T"] = batch.sequence_T
    loss, _ = grpo(
        logprobs_T=new,
        old_logprobs_T=s["old"],
        advantages_T=s["advantages_N"][batch.sequence_T],
        mask_T=batch.target_mask_T,
        weights_T=weights_T,
        tokens=ragged.tokens,
        **{"clip_low": 0.2, "clip_high": 0.2} | options,
    )
    if beta:
        penalty, _ = kl_penalty(
            logprobs_T=new,
            ref_logprobs_T=s["ref"],
            mask_T=batch.target_mask_T,
            tokens=ragged.tokens,
            estimator="k3",
            coef=beta,
            weights_T=weights_T,
        )
        loss = loss + penalty
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad[batch.target_mask_T]


def theirs(kind: Any, ragged: Padded, s: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """The same by TRL."""
    new = ragged.pad(s["new"], garbage=-0.7).requires_grad_()
    streams = {"old_per_token_logps": ragged.pad(s["old"], -0.9), "ref_per_token_logps": ragged.pad(s["ref"], -0.8)}
    streams["old_logps"] = sum_double(s["old"], ragged)
    inputs = ragged.inputs(advantages=s["advantages_N"], **streams)
    loss = kind._compute_loss(trainer(new, max_completion_length=LONGEST, **settings), None, inputs)
    loss.backward()
    assert new.grad is not None
    assert bool((new.grad[~ragged.mask] == 0).all())
    return loss.detach(), new.grad[ragged.mask]


def sum_double(stream_T: Tensor, ragged: Padded) -> Tensor:
    zeros = torch.zeros(ragged.batch.sequences, dtype=torch.float64)
    return zeros.index_add(0, ragged.batch.sequence_T, stream_T.double().masked_fill(~ragged.batch.target_mask_T, 0.0))


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("sequence", {}, {"loss_type": "grpo"}),
    "bnpo": ("token", {}, {"loss_type": "bnpo"}),
    "dapo": ("token", {}, {"loss_type": "dapo"}),
    "dr_grpo": ("constant", {}, {"loss_type": "dr_grpo"}),
    "clip_higher": ("token", {"clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        "sequence",
        {"sequence": True, "clip_low": 0.03, "clip_high": 0.04},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "gspo_token_mean": ("token", {"sequence": True}, {"loss_type": "dapo", "importance_sampling_level": "sequence"}),
    # TRL's epsilon_high is the cap itself; ours is its distance from 1, as in the clipped surrogate.
    "cispo": ("token", {"cispo": True, "clip_high": 0.15}, {"loss_type": "cispo", "epsilon_high": 1.15}),
    # TRL's delta bounds the ratio for either sign; above the clip range it acts on negative advantages alone, as ours does.
    "two_sided": ("sequence", {"dual_clip": 1.3}, {"args": {"delta": 1.3}}),
}


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", VARIANTS)
def test_grpo_and_its_variants(name, beta):
    """With beta: the k3 estimator in the loss, averaged as the policy loss is."""
    aggregate, options, settings = VARIANTS[name]
    for seed in SEEDS:
        ragged, s = drawn(seed)
        loss, gradient = ours(ragged, s, aggregate, beta, **options)
        expected, expected_gradient = theirs(GRPOTrainer, ragged, s, beta=beta, **settings)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_the_algorithm_averages_the_kl_as_the_policy_loss(aggregate):
    """DeepSeekMath's equation 3 has the KL inside of the mean over a response (arXiv:2402.03300); the loss alone cannot show
    that the algorithm passes the weights on."""
    ragged, s = drawn(1)
    s = {name: value.float() for name, value in s.items()}
    algorithm = GRPO(GRPOConfig(aggregate=aggregate, kl={"coef": 0.3}), longest=LONGEST)
    batch = ragged.batch.with_streams(
        old_logprobs_T=s["old"], ref_logprobs_T=s["ref"].masked_fill(~ragged.batch.target_mask_T, 0.0)
    )
    advantages_T = s["advantages_N"][batch.sequence_T].masked_fill(~batch.target_mask_T, 0.0)
    outputs = Outputs(logprobs_T=s["new"], entropies_T=torch.zeros(batch.tokens))
    denominators = Denominators(ragged.tokens, ragged.sequences)
    loss, _ = algorithm.loss("policy", outputs, batch.with_streams(advantages_T=advantages_T), denominators)
    kind = {"sequence": "grpo", "token": "bnpo", "constant": "dr_grpo"}[aggregate]
    expected, _ = theirs(GRPOTrainer, ragged, s, beta=0.3, loss_type=kind)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_inputs_reach_every_branch():
    """Ratios beyond both bounds for advantages of both signs; else the comparison would say less than it seems to."""
    beyond = {(side, sign): 0 for side in ("low", "high") for sign in (True, False)}
    for seed in SEEDS:
        ragged, s = drawn(seed)
        ratio_T = (s["new"] - s["old"]).exp()[ragged.batch.target_mask_T]
        good_T = (s["advantages_N"][ragged.batch.sequence_T] > 0)[ragged.batch.target_mask_T]
        for sign in (True, False):
            beyond["low", sign] += int(((ratio_T < 0.8) & (good_T == sign)).sum())
            beyond["high", sign] += int(((ratio_T > 1.3) & (good_T == sign)).sum())
    assert min(beyond.values()) > 3


def test_where_a_cap_of_the_ratio_lies_inside_the_clip_range_we_differ():
    """A delta of 1.1 would cut good tokens short, too; the dual clip of the paper (arXiv:1912.09729) is about bad ones alone."""
    ragged, s = drawn(0)
    s["advantages_N"] = s["advantages_N"].abs()
    plain, _ = ours(ragged, s, "sequence", 0.0)
    capped, _ = ours(ragged, s, "sequence", 0.0, dual_clip=1.1)
    expected, _ = theirs(GRPOTrainer, ragged, s, args={"delta": 1.1})
    assert capped.item() == plain.item() < expected.item()


def test_rloo():
    for seed in SEEDS:
        ragged, s = drawn(seed)
        # A response's ratio is that of all its tokens, so it leaves the clip range soon.
        s["new"] = s["old"] + 0.2 * (s["new"] - s["old"])
        new = s["new"].clone().requires_grad_()
        loss, _ = rloo(
            logprobs_N=sum_double(new, ragged),
            old_logprobs_N=sum_double(s["old"], ragged),
            advantages_N=s["advantages_N"],
            sequences=ragged.sequences,
            clip=0.2,
        )
        loss.backward()
        expected, gradient = theirs(RLOOTrainer, ragged, s)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert new.grad is not None
        assert torch.allclose(new.grad[ragged.batch.target_mask_T], gradient, rtol=1e-7, atol=1e-10)
        assert torch.allclose(
            sum_per_sequence(s["new"], ragged.batch).double(), sum_double(s["new"], ragged), atol=1e-5
        )


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft(loss_type):
    """dft: each token weighted by its own probability without gradient (arXiv:2508.05629), as `weights_T` can say."""
    for seed in SEEDS:
        ragged, s = drawn(seed)
        new = s["new"].clone().requires_grad_()
        loss, _ = sft(
            logprobs_T=new,
            mask_T=ragged.batch.target_mask_T,
            tokens=ragged.tokens,
            weights_T=new.detach().exp() if loss_type == "dft" else None,
        )
        loss.backward()
        padded = ragged.pad(s["new"], 0.0).requires_grad_()
        said = SimpleNamespace(
            log_probs=padded * ragged.mask,
            label_mask=ragged.mask.long(),
            entropy=torch.zeros_like(padded),
            is_top1=ragged.mask,
        )
        stand_in = trainer(args={"loss_type": loss_type})
        expected = SFTTrainer.compute_loss(
            stand_in, lambda said=said, **_: said, {"attention_mask": ragged.mask.long()}
        )
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert new.grad is not None and padded.grad is not None
        assert torch.allclose(new.grad[ragged.batch.target_mask_T], padded.grad[ragged.mask], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("centre", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward(centre, with_margin):
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        scores = 3 * torch.randn(14, generator=generator, dtype=torch.float64)
        margins = torch.rand(7, generator=generator, dtype=torch.float64) if with_margin else None
        mine, other = (scores.clone().requires_grad_() for _ in range(2))
        loss, _ = bradley_terry(
            chosen_P=mine[:7],
            rejected_P=mine[7:],
            pairs=torch.tensor(7.0),
            margins_P=margins,
            centre_coef=centre or 0.0,
        )
        inputs = {"attention_mask": torch.ones(14, 3)} | ({} if margins is None else {"margin": margins})
        model = lambda **_: SimpleNamespace(logits=other[:, None])  # noqa: B023, E731
        expected = RewardTrainer.compute_loss(trainer(args={"center_rewards_coefficient": centre}), model, inputs)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-12, atol=1e-15)
