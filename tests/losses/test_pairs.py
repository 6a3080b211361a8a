from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.losses.pairs import MAX_EXPONENT, hinge, logistic, nll_per_token, pair_metrics, power_log, squared


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_logistic_literals():
    z = d(math.log(3), 0.0, -math.log(3))
    assert logistic(logits_P=z).tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)])
    smooth = [0.9 * math.log(4 / 3) + 0.1 * math.log(4), math.log(2), 0.9 * math.log(4) + 0.1 * math.log(4 / 3)]
    assert logistic(logits_P=z, smoothing=0.1).tolist() == pytest.approx(smooth)


def test_a_smoothed_logistic_is_least_at_the_odds_of_its_labels():
    z = d(math.log(9)).requires_grad_()  # labels are right 9 times in 10
    logistic(logits_P=z, smoothing=0.1).sum().backward()
    assert z.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_hinge_and_squared_literals():
    assert hinge(logits_P=d(-1.0, 0.0, 0.75, 1.0, 7.0)).tolist() == [2.0, 1.0, 0.25, 0.0, 0.0]
    assert squared(differences_P=d(0.0, 5.0, 4.0), beta=0.1).tolist() == pytest.approx([25.0, 0.0, 1.0])


@pytest.mark.parametrize("u", [0.01, 0.5, 1.0, 3.0, 40.0])
def test_power_log_between_the_logarithm_and_the_forward_kl(u):
    logs = d(math.log(u))
    assert power_log(logs=logs, alpha=0).item() == math.log(u)
    assert power_log(logs=logs, alpha=1e-7).item() == pytest.approx(math.log(u), rel=1e-5, abs=1e-12)
    assert power_log(logs=logs, alpha=1.0).item() == pytest.approx(1 - 1 / u, rel=1e-12)
    assert power_log(logs=logs, alpha=0.5).item() == pytest.approx(2 * (1 - u**-0.5), rel=1e-12, abs=1e-15)
    assert power_log(logs=logs, alpha=-1.0).item() == pytest.approx(u - 1, rel=1e-12, abs=1e-15)


def test_power_log_goes_on_along_its_tangent():
    edge = -MAX_EXPONENT
    logs = d(edge + 1e-9, edge - 1e-9, edge - 10.0).requires_grad_()
    values = power_log(logs=logs, alpha=1.0)
    values.sum().backward()
    assert logs.grad.tolist() == pytest.approx([math.exp(MAX_EXPONENT)] * 3, rel=1e-8)
    assert values[2].item() == pytest.approx(1 - 11 * math.exp(MAX_EXPONENT))
    assert torch.isfinite(power_log(logs=torch.tensor([-1e4, 1e4]), alpha=1.0)).all()


def test_nll_per_token_literal():
    assert nll_per_token(logprobs_P=d(-6.0, -1.0), lengths_P=d(3.0, 4.0)).tolist() == [2.0, 0.25]


def test_metrics_by_hand_and_by_parts():
    chosen, rejected = d(-1.0, -2.0, -3.0, -4.0), d(-2.0, -2.0, -1.0, -9.0)

    def metrics(part: slice) -> dict[str, float]:
        of_part = pair_metrics(
            chosen_P=chosen[part],
            rejected_P=rejected[part],
            chosen_rewards_P=0.5 * chosen[part],
            rejected_rewards_P=0.5 * rejected[part],
            pairs=torch.tensor(4.0),
        )
        return {name: value.item() for name, value in of_part.items()}

    whole = metrics(slice(0, 4))
    assert whole == {
        "rewards/chosen": -1.25,
        "rewards/rejected": -1.75,
        "rewards/accuracies": 0.625,  # won, tied, lost, won
        "rewards/margins": 0.5,
        "logps/chosen": -2.5,
        "logps/rejected": -3.5,
    }
    one, two = metrics(slice(0, 1)), metrics(slice(1, 4))
    assert {name: one[name] + two[name] for name in one} == pytest.approx(whole)
