from __future__ import annotations

import pytest
from pydantic import ValidationError

from accord.config import RewardTerm


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("rewards.py:brevity", "function", "brevity"),
        ("package.module:score", "function", "score"),
        ("/abs/path/rewards.py:f", "function", "f"),
        (r"C:\work\rewards.py:f", "function", "f"),
        ("C:/work/rewards.py:f", "function", "f"),
        ("runs/reward/model", "model", "reward"),
        ("./runs/reward/model/", "model", "reward"),
        (r"C:\models\reward", "model", "reward"),
        ("C:/models/reward/model", "model", "reward"),
        ("C:reward", "model", "C:reward"),  # a drive, and no module has one letter
        ("OpenAssistant/reward-model-deberta-v3", "model", "reward-model-deberta-v3"),
        ("model", "model", "model"),
        ("org/name:1.2", "model", "name:1.2"),  # what follows is no Python name
    ],
)
def test_text_is_a_function_or_a_model(text, kind, label):
    term = RewardTerm.model_validate(text)
    assert {"model": term.model, "function": term.function}[kind] == text
    assert (term.model is None) != (term.function is None)
    assert term.label == label and term.weight == 1.0


def test_a_name_of_its_own():
    assert RewardTerm(function="f.py:g", name="length").label == "length"


@pytest.mark.parametrize("given", [{}, {"model": "m", "function": "f.py:g"}, {"weight": 2}])
def test_exactly_one_source(given):
    with pytest.raises(ValidationError, match=r"give exactly one of `model`, `models`, `function`, .* and `judge`"):
        RewardTerm(**given)


@pytest.mark.parametrize("function", ["brevity", ":brevity"])
def test_a_function_needs_its_file(function):
    with pytest.raises(ValidationError, match=r"written FILE\.py:NAME or package\.module:NAME, not '"):
        RewardTerm(function=function)


def test_an_ensemble_has_a_role_for_each_member():
    term = RewardTerm(models=("runs/a/model", "runs/b/model"), combine="uwo", coef=0.5)
    assert term.paths == ("runs/a/model", "runs/b/model") and term.label == "ensemble"
    assert term.roles == ("reward/ensemble/1", "reward/ensemble/2")
    assert RewardTerm(model="runs/a/model").roles == ("reward/a",) and RewardTerm(function="f.py:g").roles == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ["a"]}, "`models` is for two reward models or more"),
        ({"model": "a", "models": ["a", "b"]}, "give exactly one of"),
        ({"model": "a", "combine": "min"}, "`combine` goes with models"),
        ({"function": "f.py:g", "process": "min"}, "`process` goes with model or models"),
        ({"function": "f.py:g", "normalized": True}, "`normalized` goes with model or models"),
        ({"model": "a", "step": "x"}, "`step` goes with `process`"),
        ({"model": "a", "process": "min", "normalized": True}, "`process` reads probabilities"),
        ({"models": ["a", "b"], "process": "tokens"}, "`process: tokens` gives no score of the whole response"),
    ],
)
def test_options_that_do_not_fit_their_source(given, message):
    with pytest.raises(ValidationError, match=message):
        RewardTerm(**given)
    assert RewardTerm(**RewardTerm(model="a").model_dump()) == RewardTerm(model="a"), (
        "defaults written out are no fault"
    )
