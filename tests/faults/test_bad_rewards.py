"""A reward function that fails stops the run, and the message names the function and the sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from rewards.scripted import chat, dead_address, hang_up, reply, server

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
    "needs_a_column": (
        "def brevity(prompts, responses, stars):\n    return []\n",
        ["cannot be called without 'stars'", "columns beside the prompt: "],
    ),
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


# --- the other kinds: a failure on the way stops the run, and what can be known is known before it ---------------------------

ON_THE_WAY = {
    "server_dies": (hang_up, "url", ["reward url: POST http://127.0.0.1:", "attempts: 2: 1. "]),
    "server_busy": (reply({"error": "busy"}, 503), "url", ["HTTP 503", "'busy'"]),
    "server_nan": (reply(b'{"scores": [0, NaN, 0, 0]}'), "url", ["reward url gave nan for sample 1 (prompt 'the film"]),
    "server_too_few": (reply({"scores": [0]}), "url", ["1 scores came back for 4 responses"]),
    "judge_silent": (reply(chat("hm")), "judge", ["no mark from 0 to 10 can be read", "'hm'"]),
    "judge_wrong": (reply({"hello": 1}), "judge", ["no chat completion"]),
}


@pytest.mark.parametrize("fault", ON_THE_WAY)
def test_a_server_that_fails_on_the_way(fault, accord_command, tmp_path: Path):
    act, kind, words = ON_THE_WAY[fault]
    with server(act) as script:
        options = {"address": script.address, "attempts": 2, "pause": 0.01}
        term = {"url": options} if kind == "url" else {"judge": options | {"model": "m", "questions": 1}}
        outcome = accord_command("ppo", {"reward": [term]})
    assert outcome.code == 1
    assert all(word in outcome.error for word in words), outcome.error


AT_THE_START = {
    "no_server": ({"url": dead_address()}, 1, "/health failed"),
    "no_key": ({"judge": {"address": "http://127.0.0.1:1", "model": "m", "key": "NO_SUCH_KEY"}}, 2, "NO_SUCH_KEY"),
    "no_words": ({"lexicon": "./none.txt"}, 2, "neither `vader`, nor a file"),
    "no_label": ({"classifier": {"model": "{classifier}", "label": "GOOD"}}, 2, "has no label 'GOOD'"),
    "no_classifier": ({"classifier": {"model": "{base}", "label": "GOOD"}}, 1, "no sequence classifier"),
    "no_column": (
        {"code": "tests"},
        2,
        "reads the column 'tests', which no row of the data has; columns beside the prompt: use",
    ),
    "bad_regex": ({"regex": "("}, 2, "is not a regular expression"),
    "two_kinds": ({"regex": "x", "lexicon": "vader"}, 2, "give exactly one of"),
}


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("fault", AT_THE_START)
def test_what_can_be_known_is_told_before_anything_is_sampled(fault, dry, accord_command, base, tmp_path: Path):
    term, code, said = AT_THE_START[fault]
    if fault == "no_label":
        transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
            )
        ).save_pretrained(tmp_path / "classifier")
    if "classifier" in term:
        places = {"base": base, "classifier": tmp_path / "classifier"}
        term = {"classifier": term["classifier"] | {"model": term["classifier"]["model"].format(**places)}}
    outcome = accord_command("ppo", {"reward": [term]}, *(["--dry-run"] if dry else []))
    assert outcome.code == code and said in outcome.error, outcome.error
    assert not (tmp_path / "run").exists()


def test_an_async_function_that_waits_for_ever(accord_command, tmp_path: Path):
    (tmp_path / "rewards.py").write_text(
        "import asyncio\nasync def f(prompts, responses):\n    await asyncio.sleep(99)\n"
    )
    outcome = accord_command("ppo", {"reward": [{"function": f"{tmp_path}/rewards.py:f", "timeout": 0.2}]})
    assert outcome.code == 1 and "reward f did not return within 0.2 s" in outcome.error
