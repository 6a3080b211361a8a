from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.losses import sft


def test_literal():
    # targets -1 and -3, two tokens in the step: (1 + 3) / 2
    loss, metrics = sft(
        logprobs_T=torch.tensor([-9.0, -1.0, -3.0]),
        mask_T=torch.tensor([False, True, True]),
        tokens=torch.tensor(2.0),
    )
    assert loss.item() == 2.0 and {name: value.item() for name, value in metrics.items()} == {"sft/loss": 2.0}


def test_weights_literal():
    # (0.5 * 1 + 2 * 3) / 2.5, with the sum of weights as the denominator
    loss, _ = sft(
        logprobs_T=torch.tensor([-9.0, -1.0, -3.0]),
        mask_T=torch.tensor([False, True, True]),
        tokens=torch.tensor(2.5),
        weights_T=torch.tensor([7.0, 0.5, 2.0]),
    )
    assert loss.item() == pytest.approx(2.6, rel=1e-7)


def test_equals_cross_entropy(ragged):
    logits = torch.randn(ragged.size, 5, generator=ragged.generator, dtype=torch.float64)
    targets = torch.randint(5, (ragged.size,), generator=ragged.generator)
    ours, _ = sft(
        logprobs_T=logits.log_softmax(-1)[torch.arange(ragged.size), targets], mask_T=ragged.mask, tokens=ragged.count
    )
    theirs = torch.nn.functional.cross_entropy(logits, targets.masked_fill(~ragged.mask, -100), ignore_index=-100)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


def test_sign_a_step_down_makes_the_targets_likelier():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    sft(logprobs_T=logprobs, mask_T=torch.tensor([False, True, True]), tokens=torch.tensor(4.0))[0].backward()
    assert logprobs.grad.tolist() == [0.0, -0.25, -0.25]


def test_gradient_is_minus_weight_over_tokens(ragged):
    logprobs, weights = ragged.logprobs().requires_grad_(), ragged.normal().abs()
    sft(logprobs_T=logprobs, mask_T=ragged.mask, tokens=ragged.count, weights_T=weights)[0].backward()
    torch.testing.assert_close(logprobs.grad, -weights * ragged.mask / ragged.count, rtol=1e-14, atol=0)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("weighted", [False, True])
def test_masked_tokens_change_nothing(ragged, garbage, weighted):
    clean = {"logprobs_T": ragged.logprobs(), **({"weights_T": ragged.normal().abs()} if weighted else {})}

    def run(streams: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        leaf = streams["logprobs_T"].clone().requires_grad_()
        loss, _ = sft(**(streams | {"logprobs_T": leaf}), mask_T=ragged.mask, tokens=ragged.count)
        loss.backward()
        return loss, leaf.grad

    loss, gradient = run(clean)
    for dirty in (clean.keys(), *([key] for key in clean)):
        loss_with, gradient_with = run(clean | {key: clean[key].masked_fill(~ragged.mask, garbage) for key in dirty})
        assert torch.equal(loss, loss_with) and torch.equal(gradient, gradient_with)
        assert bool((gradient_with[~ragged.mask] == 0).all())
