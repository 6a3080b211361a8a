from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from accord.ops.kl import AdaptiveKLController, FixedKLController, kl_per_token


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # d = (-1) - (-1.5) = 0.5 and d = (-2) - (-1) = -1
        ("k1", [0.5, -1.0]),
        ("k2", [0.125, 0.5]),  # d^2 / 2
        ("mse", [0.125, 0.5]),
        ("k3", [0.10653066, 0.71828183]),  # e^-0.5 - 1 + 0.5; e^1 - 1 - 1
        ("abs", [0.5, 1.0]),
    ],
)
def test_literals(estimator, expected):
    got = kl_per_token(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]), estimator)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "mse", "k3", "abs"])
def test_exactly_0_where_both_agree(estimator):
    same = torch.tensor([-0.1, -3.0, -40.0])
    assert torch.equal(kl_per_token(same, same.clone(), estimator), torch.zeros(3))


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4': k1, k2, k3, abs, mse"):
        kl_per_token(torch.zeros(1), torch.zeros(1), "k4")


def distributions(seed: int, vocabulary: int = 7) -> tuple[Tensor, Tensor]:
    """Policy logits (float64, with gradient), reference log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(vocabulary, generator=generator, dtype=torch.float64).log_softmax(0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(seed, estimator):
    # The expectation over tokens drawn from the policy, taken exactly: every token, times its probability.
    logits, log_q = distributions(seed)
    log_p = logits.log_softmax(0)
    expectation = (log_p.exp() * kl_per_token(log_p, log_q, estimator)).sum()
    torch.testing.assert_close(expectation, kl(log_p, log_q), rtol=1e-12, atol=1e-14)


def expected_gradient(logits: Tensor, log_q: Tensor, estimator: str) -> Tensor:
    """E over the policy of the gradient of the estimate: the probabilities are weights, not differentiated."""
    log_p = logits.log_softmax(0)
    return torch.autograd.grad((log_p.exp().detach() * kl_per_token(log_p, log_q, estimator)).sum(), logits)[0]


@pytest.mark.parametrize("seed", range(10))
def test_gradient_of_k2_is_that_of_the_kl(seed):
    logits, log_q = distributions(seed)
    (exact,) = torch.autograd.grad(kl(logits.log_softmax(0), log_q), logits)
    torch.testing.assert_close(expected_gradient(logits, log_q, "k2"), exact, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(expected_gradient(logits, log_q, "mse"), exact, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_gradient_of_k1_is_0_on_average(seed):
    logits, log_q = distributions(seed)
    torch.testing.assert_close(expected_gradient(logits, log_q, "k1"), torch.zeros_like(logits), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_gradient_of_k3_is_that_of_the_kl_the_other_way_round(seed):
    # E_p[(1 - q/p) grad log p] = -sum q grad log p, the gradient of KL(q || p);
    # near p = q it is that of KL(p || q) too.
    logits, log_q = distributions(seed)
    (other_way,) = torch.autograd.grad((log_q.exp() * (log_q - logits.log_softmax(0))).sum(), logits)
    torch.testing.assert_close(expected_gradient(logits, log_q, "k3"), other_way, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("estimator", ["k2", "mse", "k3", "abs"])
def test_never_negative(estimator):
    difference = torch.cat([torch.linspace(-60, 60, 4001), torch.logspace(-12, -1, 100), -torch.logspace(-12, -1, 100)])
    assert bool((kl_per_token(difference, torch.zeros_like(difference), estimator) >= 0).all())


def test_k3_survives_float32_and_keeps_its_digits_near_0():
    difference = torch.tensor([-200.0, -40.0, 1e-4, 200.0])
    estimates = kl_per_token(difference, torch.zeros(4), "k3")
    assert bool(torch.isfinite(estimates).all())
    assert float(estimates[3]) == 199.0  # e^-200 - 1 + 200
    assert 0 <= float(estimates[2]) < 2e-8


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("difference", [-200.0, -40.0, -19.0, -1.0, -0.1, 0.1, 1.0, 19.0, 40.0, 200.0])
def test_a_loss_term_never_pushes_away_from_the_reference(estimator, difference):
    logprob = torch.tensor(difference, requires_grad=True)
    kl_per_token(logprob, torch.tensor(0.0), estimator).backward()
    assert float(logprob.grad) * difference >= 0, "descent must move the log-probability towards the reference's"


# --- controllers -----------------------------------------------------------------------------------------------------


def test_adaptive_controller_after_two_updates_by_hand():
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10_000)
    controller.update(9.0, 256)  # 9/6 - 1 = 0.5, clipped to 0.2: 0.2 * (1 + 0.2 * 256/10000) = 0.2 * 1.00512
    assert controller.coef == pytest.approx(0.201024, rel=1e-12)
    controller.update(5.4, 256)  # 5.4/6 - 1 = -0.1: * (1 - 0.1 * 0.0256) = 0.201024 * 0.99744
    assert controller.coef == pytest.approx(0.20050937856, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "factor"),
    [
        (6.0, 1.0),
        (7.2, 1.02),
        (7.3, 1.02),
        (600.0, 1.02),
        (4.8, 0.98),
        (4.7, 0.98),
        (0.0, 0.98),
        (-50.0, 0.98),
        (6.6, 1.01),
    ],
)
def test_error_is_clipped_at_a_fifth_on_both_sides(value, factor):
    controller = AdaptiveKLController(1.0, target=6.0, horizon=1000)
    controller.update(value, 100)  # 1 + clip(KL/6 - 1, -0.2, 0.2) * 100/1000
    assert controller.coef == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("samples", "factor"), [(400, 0.2), (500, 0.2), (10**9, 0.2), (399, 0.202)])
def test_the_weight_never_falls_below_0(samples, factor):
    controller = AdaptiveKLController(1.0, target=6.0, horizon=100)
    controller.update(0.0, samples)
    assert controller.coef == pytest.approx(factor, rel=1e-12)


def test_fixed_controller_stays():
    controller = FixedKLController(0.05)
    controller.update(1e9, 10**9)
    assert controller.coef == 0.05


@pytest.mark.parametrize("make", [lambda: FixedKLController(0.3), lambda: AdaptiveKLController(0.3, 6.0, 100.0)])
def test_state_round_trip_through_json_is_exact(make):
    one, other = make(), make()
    for value in (1.0, 8.0, 5.7):
        one.update(value, 7)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    one.update(6.1, 3)
    other.update(6.1, 3)
    assert one.coef == other.coef
