"""Cross-entropy of classes: by hand, against torch, and which way a step goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from accord.losses import classify


def call(logits, classes, tokens=None, **options):
    classes_K = torch.tensor(classes)
    tokens = torch.tensor(float(len(classes)) if tokens is None else tokens)
    loss, metrics = classify(logits_KC=torch.as_tensor(logits), classes_K=classes_K, tokens=tokens, **options)
    return loss, {name: float(value) for name, value in metrics.items()}


def test_equal_logits_are_a_guess():
    loss, metrics = call([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [2, 0])
    assert float(loss) == pytest.approx(math.log(3), rel=1e-6)
    assert metrics["classify/accuracy"] == pytest.approx(1 / 3), "one of three that share the greatest logit"


def test_by_hand():
    # softmax(ln 3, 0) = 3/4, 1/4; the second is wrong, and a tie of two in the third counts half
    loss, metrics = call([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, 0.0]], [0, 1, 1])
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3, rel=1e-6)
    assert metrics == pytest.approx({"classify/loss": float(loss), "classify/accuracy": 0.5})


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_torch_s_own(smoothing):
    logits = torch.randn(7, 5)
    classes = [0, 1, 2, 3, 4, 0, 2]
    wanted = functional.cross_entropy(logits, torch.tensor(classes), label_smoothing=smoothing)
    torch.testing.assert_close(call(logits, classes, label_smoothing=smoothing)[0], wanted)


def test_parts_over_the_denominator_of_the_whole_add_up():
    logits, classes = torch.randn(6, 3), [0, 2, 1, 1, 0, 2]
    whole, metrics = call(logits, classes)
    parts = [call(logits[a:b], classes[a:b], tokens=6.0) for a, b in ((0, 1), (1, 4), (4, 6))]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    assert sum(each["classify/accuracy"] for _, each in parts) == pytest.approx(metrics["classify/accuracy"])


def test_a_step_down_makes_the_right_class_likelier_and_no_other():
    logits = torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(call(logits, [1, 0, 3])[0], logits)
    assert ((gradient < 0) == functional.one_hot(torch.tensor([1, 0, 3]), 4).bool()).all()
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(3), atol=1e-7, rtol=0)
