"""The generalised Jensen-Shannon divergence: against its definition on whole distributions, by hand, at its ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import accord.ops.logprobs as logprobs
from accord.ops.divergence import generalised_jsd
from accord.ops.logprobs import full_kl

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def inputs(seed: int = 0, k: int = 7, v: int = 11, bias: bool = True) -> list[Tensor]:
    """Student of width 5, teacher of width 3."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    student = [
        normal(k, 5).requires_grad_(),
        normal(v, 5).requires_grad_(),
        normal(v).requires_grad_() if bias else None,
    ]
    return [*student, normal(k, 3) * 2, normal(v, 3), normal(v) if bias else None]


def naive(parts: list[Tensor], beta: float, temperature: float) -> Tensor:
    """The definition, on dense distributions in float64."""
    student, weight, bias, teacher, other, other_bias = (None if x is None else x.double() for x in parts)
    q = torch.softmax(torch.nn.functional.linear(student, weight, bias) / temperature, -1)
    p = torch.softmax(torch.nn.functional.linear(teacher, other, other_bias) / temperature, -1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    if beta in (0.0, 1.0):
        return kl(p, q) if beta == 0.0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tile", [11, 33, 1 << 23])
def test_values_and_gradients_equal_the_definition(beta, temperature, bias, tile, monkeypatch):
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", tile)
    parts = inputs(bias=bias)
    weights = torch.linspace(-1, 2, 7)
    got = generalised_jsd(*parts, beta=beta, temperature=temperature)
    expected = naive(parts, beta, temperature)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-6)
    learnt = [part for part in parts[:3] if part is not None]
    gradients = torch.autograd.grad((got * weights).sum(), learnt)
    for gradient, truth in zip(gradients, torch.autograd.grad((expected * weights).sum(), learnt), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-5)


def test_by_hand():
    # q = (3/4, 1/4), p = (1/4, 3/4), m = (1/2, 1/2): both KLs to m are 3/4 log 1.5 + 1/4 log 0.5
    log3, one = math.log(3.0), torch.ones(1, 1)
    arguments = (one, torch.tensor([[log3], [0.0]]), None, one, torch.tensor([[0.0], [log3]]), None)
    assert generalised_jsd(*arguments, beta=0.5).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert generalised_jsd(*arguments, beta=0.0).item() == pytest.approx(0.5 * log3)
    assert generalised_jsd(*arguments, beta=1.0).item() == pytest.approx(0.5 * log3)


def test_at_1_it_is_the_full_kl_of_the_student_from_the_teacher():
    parts = inputs()
    torch.testing.assert_close(generalised_jsd(*parts, beta=1.0), full_kl(*parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("beta", "end"), [(1e-8, 0.0), (1 - 1e-8, 1.0)])
def test_the_ends_are_what_it_tends_to(beta, end):
    parts = [part if part is None else part * 0.5 for part in inputs()]
    share = beta if end == 0.0 else 1 - beta
    near = naive(parts, beta, 1.0) / share
    torch.testing.assert_close(generalised_jsd(*parts, beta=end), near.float(), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_do_not_diverge_and_get_no_gradient(beta):
    hidden, weight, bias, *_ = inputs()
    divergence = generalised_jsd(hidden, weight, bias, hidden.detach(), weight.detach(), bias.detach(), beta=beta)
    assert divergence.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(divergence.sum(), hidden)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("beta", BETAS)
def test_a_step_down_brings_the_student_nearer_and_it_is_never_negative(beta):
    parts = inputs(3)
    before = generalised_jsd(*parts, beta=beta)
    assert (before >= 0).all()
    (gradient,) = torch.autograd.grad(before.sum(), parts[0])
    moved = [(parts[0] - 0.01 * gradient).detach(), *parts[1:]]
    assert generalised_jsd(*moved, beta=beta).sum() < before.sum()


def test_the_teacher_gets_no_gradient():
    parts = inputs()
    parts[3].requires_grad_()
    generalised_jsd(*parts, beta=0.5).sum().backward()
    assert parts[3].grad is None


def test_vocabularies_of_other_sizes_are_refused():
    parts = inputs()
    parts[4] = parts[4][:-1]
    with pytest.raises(ValueError, match="vocabularies of 11 and 10 tokens cannot be compared"):
        generalised_jsd(*parts, beta=0.5)
