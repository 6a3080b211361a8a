"""Options of the preference recipes that exclude each other, and defaults that depend on the loss."""

from __future__ import annotations

from typing import Any

import pytest

from accord.config import RECIPES, build
from accord.errors import ConfigError

ROWS = {"model": {"path": "M"}, "data": {"path": "pairs.jsonl"}, "output": "runs/x"}


def made(kind: str, algorithm: dict[str, Any], **sections: Any) -> Any:
    return build(RECIPES[kind], ROWS, {"algorithm": {"type": kind} | algorithm}, sections)


BAD = {
    "f_divergence of each": ("dpo", {"loss": "nca", "f_divergence": "js"}, "goes with reverse_kl alone"),
    "smoothing of none": ("dpo", {"loss": "hinge", "label_smoothing": 0.1}, "hinge has none, so it must be 0"),
    "half of the labels wrong": ("dpo", {"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
    "exo at 0": ("dpo", {"loss": "exo", "label_smoothing": 0}, "must be above 0"),
    "margin of none": ("dpo", {"loss": "sppo", "margin_coef": 1}, "sppo demands no margin"),
    "unknown loss": ("dpo", {"loss": "sigmoyd"}, "sigmoid"),
    "beta 0": ("dpo", {"beta": 0}, "greater than 0"),
    "simpo": ("simpo", {"loss": "hinge", "label_smoothing": 0.1}, "hinge has none"),
    "cpo": ("cpo", {"loss": "ipo", "label_smoothing": 0.1}, "ipo has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said(case):
    kind, algorithm, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        made(kind, algorithm)


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [({"loss": "apo_zero"}, "compares each answer with the reference"), ({"f_divergence": "js"}, "names none")],
)
def test_without_a_reference_only_differences_can_be_learnt(algorithm, words):
    with pytest.raises(ConfigError, match=words):
        made("dpo", algorithm, reference=None)
    assert made("dpo", {"loss": "hinge"}, reference=None).reference is None


def test_defaults_of_a_loss_are_filled_in_and_can_be_changed():
    assert made("dpo", {}).algorithm.label_smoothing == 0
    assert made("dpo", {"loss": "robust"}).algorithm.label_smoothing == 0.1
    assert made("dpo", {"loss": "exo"}).algorithm.label_smoothing == 1e-3
    assert made("dpo", {"loss": "ipo"}).algorithm.length_normalize is True
    assert made("dpo", {"loss": "ipo", "length_normalize": False}).algorithm.length_normalize is False
    assert made("cpo", {"loss": "ipo"}).algorithm.length_normalize is True
    saved = made("dpo", {"loss": "robust"}).model_dump(mode="json")
    assert build(RECIPES["dpo"], saved).model_dump(mode="json") == saved


@pytest.mark.parametrize(
    ("kind", "adapter", "full"),
    [("dpo", 5e-6, 5e-7), ("orpo", 8e-5, 8e-6), ("simpo", 1e-5, 1e-6), ("cpo", 1e-5, 1e-6)],
)
def test_learning_rates(kind, adapter, full):
    assert made(kind, {}).train.learning_rate == adapter
    assert made(kind, {}, adapter=None).train.learning_rate == full
