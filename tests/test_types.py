from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from accord import errors, types


def test_plain_data_does_not_change_and_takes_no_unknown_attribute():
    rollout = types.Rollout((1,), (2,), (-0.5,), "stop", "a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rollout.score = 0.0  # type: ignore[misc]
    assert rollout.score is None, "a rollout that nobody scored has no score, least of all 0"
    assert not hasattr(rollout, "__dict__")


def test_columns_are_not_shared_between_records():
    assert types.Prompt("a").columns is not types.Prompt("b").columns


def test_types_import_no_torch():
    code = "import accord.types, accord.errors, accord.packing, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("ModelError", ValueError),
        ("RewardError", RuntimeError),
        ("GenerationError", RuntimeError),
        ("TrainingError", RuntimeError),
        ("RunError", RuntimeError),
    ],
)
def test_errors_can_be_caught_as_ours_and_as_the_standard_kind(error, parent):
    kind = getattr(errors, error)
    assert issubclass(kind, errors.AccordError) and issubclass(kind, parent)
