"""Invariant 3: any split of a step into micro-batches or ranks gives loss, gradient and metrics of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.losses import bradley_terry, cpo, kl_penalty, orpo, ppo_policy, ppo_value, sft, simpo
from accord.losses import dpo as dpo_loss

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]

CASES: dict[str, tuple[Loss, tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
    "sft": (sft, ("logprobs_T",), (), {}),
    "sft weighted": (sft, ("logprobs_T",), ("weights_T",), {}),
    "policy": (
        ppo_policy,
        ("logprobs_T", "entropies_T"),
        ("old_logprobs_T", "advantages_T"),
        {"clip": 0.2, "entropy_coef": 0.01},
    ),
    "value": (ppo_value, ("values_T",), ("old_values_T", "returns_T"), {"value_clip": 0.2}),
    "kl k2": (kl_penalty, ("logprobs_T",), ("ref_logprobs_T",), {"estimator": "k2", "coef": 0.2}),
    "kl k3": (kl_penalty, ("logprobs_T",), ("ref_logprobs_T",), {"estimator": "k3", "coef": 0.2}),
}


def add_up(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """As the learner does: metrics are summed, `_max` is the largest."""
    return {name: (max if name.endswith("_max") else sum)(part[name].item() for part in parts) for name in parts[0]}


@pytest.mark.parametrize("into", [1, 2, 3, 7])
@pytest.mark.parametrize("name", CASES)
def test_tokens(ragged, name, into):
    loss_of, learnt, given, other = CASES[name]
    streams = {key: ragged.normal(0.3, shift=-1.0) for key in (*learnt, *given)}

    def run(pieces: list[Tensor]) -> tuple[float, dict[str, float], list[Tensor]]:
        leaves = {key: streams[key].clone().requires_grad_() for key in learnt}
        total, metrics = 0.0, []
        for piece in pieces:
            arguments = {key: stream[piece] for key, stream in (streams | leaves).items()}
            loss, part = loss_of(**arguments, mask_T=ragged.mask[piece], tokens=ragged.count, **other)
            loss.backward()
            total += loss.item()
            metrics.append(part)
        return total, add_up(metrics), [leaf.grad for leaf in leaves.values()]

    whole, metrics, gradients = run([torch.arange(ragged.size)])
    split, split_metrics, split_gradients = run(ragged.cut(into))
    assert split == pytest.approx(whole, rel=1e-13)
    assert split_metrics == pytest.approx(metrics, rel=1e-6)  # fractions are counted in float32
    for one, other_gradient in zip(gradients, split_gradients, strict=True):
        torch.testing.assert_close(one, other_gradient, rtol=1e-13, atol=0)


@pytest.mark.parametrize("into", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_pairs(seed, into):
    generator = torch.Generator().manual_seed(seed)
    scores, margins = (torch.randn(2, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def run(pieces: list[Tensor]) -> tuple[float, dict[str, float], Tensor]:
        leaf, total, metrics = scores.clone().requires_grad_(), 0.0, []
        for piece in pieces:
            loss, part = bradley_terry(
                chosen_P=leaf[0, piece],
                rejected_P=leaf[1, piece],
                pairs=torch.tensor(8.0),
                margins_P=margins[0, piece],
                centre_coef=0.01,
            )
            loss.backward()
            total += loss.item()
            metrics.append(part)
        return total, add_up(metrics), leaf.grad

    whole = run([torch.arange(8)])
    split = run(list(torch.randperm(8, generator=generator).tensor_split(into)))
    assert split[0] == pytest.approx(whole[0], rel=1e-13)
    assert split[1] == pytest.approx(whole[1], rel=1e-6)  # fractions are counted in float32
    torch.testing.assert_close(split[2], whole[2], rtol=1e-13, atol=0)


ANSWERS: dict[str, tuple[Loss, dict[str, Any]]] = {
    **{name: (dpo_loss, {"loss": name}) for name in ("sigmoid", "hinge", "ipo", "discopop")},
    **{name: (dpo_loss, {"loss": name}) for name in ("nca", "sppo", "apo_zero", "apo_down")},
    "robust": (dpo_loss, {"loss": "robust", "label_smoothing": 0.1}),
    "exo": (dpo_loss, {"loss": "exo", "label_smoothing": 0.01}),
    "aot": (dpo_loss, {"loss": "aot"}),
    "aot_unpaired": (dpo_loss, {"loss": "aot_unpaired", "label_smoothing": 0.1}),
    "rpo": (dpo_loss, {"sft_coef": 1.0, "length_normalize": True, "margin_coef": 0.3}),
    "js": (dpo_loss, {"f_divergence": "js"}),
    "orpo": (orpo, {"beta": 0.5}),
    "simpo": (simpo, {"beta": 2.0, "gamma_beta_ratio": 0.5, "sft_coef": 0.1}),
    "cpo": (cpo, {"beta": 0.1}),
}


@pytest.mark.parametrize("into", [2, 3, 8])
@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name, into):
    """Pairs of answers, AOT included: what each is compared with belongs to the whole step."""
    from losses.test_dpo import draw, with_matches

    loss_of, options = ANSWERS[name]
    streams = draw(into)
    if loss_of is dpo_loss:
        streams |= with_matches(streams, options.get("loss", "sigmoid")) | {
            "margins_P": streams["chosen_lengths_P"] / 10
        }
    else:
        streams = {key: value for key, value in streams.items() if not key.startswith("ref_")}

    def run(pieces: list[Tensor]) -> tuple[float, dict[str, float], list[Tensor]]:
        leaves = {key: streams[key].clone().requires_grad_() for key in ("chosen_P", "rejected_P")}
        total, metrics = 0.0, []
        for piece in pieces:
            arguments = {key: stream[piece] for key, stream in (streams | leaves).items()}
            loss, part = loss_of(**arguments, pairs=torch.tensor(8.0, dtype=torch.float64), **options)
            loss.backward()
            total += loss.item()
            metrics.append(part)
        return total, add_up(metrics), [leaf.grad for leaf in leaves.values()]

    whole = run([torch.arange(8)])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(into))
    split = run(list(order.tensor_split(into)))
    assert split[0] == pytest.approx(whole[0], rel=1e-13)
    assert split[1] == pytest.approx(whole[1], rel=1e-6)
    for one, other in zip(whole[2], split[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
