"""A reward function that fails stops the run, and the message names the function and the sample."""

from __future__ import annotations

from pathlib import Path

import pytest

FAULTS = {
    "raises": (
        "def brevity(prompts, responses):\n    raise KeyError('stars')\n",
        ["brevity raised KeyError: 'stars'", "rewards.py:2"],
    ),
    "raises_async": (
        "async def brevity(prompts, responses):\n    return 1 / 0\n",
        ["brevity raised ZeroDivisionError", "rewards.py:2"],
    ),
    "too_few": ("def brevity(prompts, responses):\n    return [1.0]\n", ["brevity returned 1 scores for 4 responses"]),
    "nan": (
        "def brevity(prompts, responses):\n    return [0.0, 0.0, float('nan'), 0.0]\n",
        ["brevity gave nan for sample 2 (prompt 'the film"],
    ),
    "infinite": (
        "def brevity(prompts, responses):\n    return [0.0, float('inf'), 0.0, 0.0]\n",
        ["brevity gave inf for sample 1 (prompt 'the film"],
    ),
    "text": ("def brevity(prompts, responses):\n    return ['good'] * 4\n", ["brevity gave 'good' for sample 0"]),
    "nothing": ("def brevity(prompts, responses):\n    pass\n", ["brevity returned a NoneType"]),
    "all_none": (
        "def brevity(prompts, responses):\n    return [None] * 4\n",
        ["no reward applies to sample 0", "brevity"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_reward_is_named_and_never_a_score(fault, accord_command, tmp_path: Path):
    source, words = FAULTS[fault]
    (tmp_path / "rewards.py").write_text(source)
    outcome = accord_command("ppo")
    assert outcome.code == 1
    assert all(word in outcome.error for word in words), outcome.error
    assert not (tmp_path / "run").exists()


SETUP = {
    "no_function": ("def brevty(prompts, responses):\n    return []\n", ["no function 'brevity'", "brevty"]),
    "broken_file": ("def brevity(:\n", ["rewards.py cannot be imported", "SyntaxError"]),
    "other_arguments": ("def brevity(texts):\n    return []\n", ["`prompts` and `responses`", "texts"]),
}


@pytest.mark.parametrize("fault", SETUP)
def test_a_reward_that_cannot_be_called_stops_before_anything_is_sampled(fault, accord_command, tmp_path: Path):
    source, words = SETUP[fault]
    (tmp_path / "rewards.py").write_text(source)
    outcome = accord_command("ppo")
    assert outcome.code == 2
    assert all(word in outcome.error for word in words), outcome.error


def test_a_reward_file_that_is_not_there(accord_command, tmp_path: Path):
    outcome = accord_command("ppo", {"reward": f"{tmp_path}/rewardz.py:brevity"})
    assert outcome.code == 2 and "rewardz.py does not exist" in outcome.error


def test_a_language_model_is_not_a_reward_model(accord_command, base):
    outcome = accord_command("ppo", {"reward": str(base)})
    assert outcome.code == 1 and "is not a reward model" in outcome.error
