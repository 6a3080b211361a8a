from __future__ import annotations

import pytest

from accord.config import ClassifyRecipe, build
from accord.errors import ConfigError
from accord.types import LabelledText, LabelledTokens


def algorithm(least, **options):
    return build(ClassifyRecipe, least, {"algorithm": options}).algorithm


def test_names_are_names_whatever_yaml_reads(least):
    assert algorithm(least, labels=[0, 1, 10]).labels == ("0", "1", "10")
    assert algorithm(least, labels=[True, False, "maybe"]).labels == ("true", "false", "maybe")
    assert algorithm(least).labels is None


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], [1, "1"], []])
def test_labels_are_two_or_more_and_differ(least, labels):
    with pytest.raises(ConfigError, match="labels are two or more different names"):
        algorithm(least, labels=labels)


def test_what_rows_become_and_the_rates(least):
    assert build(ClassifyRecipe, least).rows_become is LabelledText
    assert build(ClassifyRecipe, least, {"algorithm": {"level": "token"}}).rows_become is LabelledTokens
    assert build(ClassifyRecipe, least, {"adapter": {"method": "prefix"}}).train.learning_rate == 5e-3
    assert build(ClassifyRecipe, least, {"adapter": None}).train.learning_rate == 2e-5
    build(ClassifyRecipe, least, {"train": {"head_learning_rate": 1e-3}})
