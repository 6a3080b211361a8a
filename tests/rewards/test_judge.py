"""A judge behind a real server that speaks chat completions."""

from __future__ import annotations

import pytest

from accord.config import JudgeConfig
from accord.errors import ConfigError, RewardError
from accord.rewards import JudgeReward
from rewards.scripted import chat, reply, server


def judge(script, **options) -> JudgeReward:
    given = {"address": f"{script.address}/v1/", "model": "judge-1", "pause": 0.01, "deadline": 20}
    return JudgeReward(JudgeConfig(**given | options), "judge")


def marks(body):
    """2 for the wrong answer, 10 for the others."""
    return chat("Wrong.\n2" if "five" in body["messages"][-1]["content"] else "Right: 10/10")


def test_marks_are_scaled_to_between_0_and_1(rollouts):
    with server(reply(marks)) as script:
        assert judge(script).score(rollouts) == [1.0, 0.2, 1.0]
        assert judge(script, scale=False).score(rollouts) == [10.0, 2.0, 10.0]
    body = next(body for body in script.bodies if "five" in body["messages"][0]["content"])
    assert body["model"] == "judge-1" and body["temperature"] == 0.0 and body["max_tokens"] == 512
    assert "from 0 (useless) to 10 (perfect)" in body["messages"][0]["content"]
    assert "[Prompt]\n3+3=\n\n[Response]\nfive\n" in body["messages"][0]["content"]
    assert script.headers[0]["path"] == "/v1/chat/completions"


def test_the_prompt_may_name_columns_and_rows_without_them_have_no_score(rollouts):
    with server(reply(chat("5"))) as script:
        options = {"prompt": "Gold {answer}, said {response}. {{json}}", "system": "You are strict."}
        assert judge(script, **options).score(rollouts) == [0.5, 0.5, None]
    said = sorted(body["messages"][1]["content"] for body in script.bodies)
    assert said == ["Gold 4, said 4. {json}", "Gold 6, said five. {json}"]
    assert script.bodies[0]["messages"][0] == {"role": "system", "content": "You are strict."}


def test_braces_of_a_response_are_text(rollouts):
    from dataclasses import replace

    with server(reply(chat("5"))) as script:
        judge(script, prompt="{response}").score([replace(rollouts[0], response_text="{prompt} {0} {")])
    assert script.bodies[0]["messages"][0]["content"] == "{prompt} {0} {"


@pytest.mark.parametrize(
    ("options", "text", "mark"),
    [
        ({}, "First 3, then 8", 8.0),
        ({}, "Score: 8/10", 8.0),
        ({}, "8.5 / 10.", 8.5),
        ({}, "8.5", 8.5),
        ({}, "I say .5", 0.5),
        ({}, "Score:.5/1", 0.5),
        ({"min": -1}, "-.5", -0.5),
        ({}, "Let me see ...8", 8.0),
        ({}, "see fig.3", 3.0),
        ({}, "in 1.2.3", 3.0),
        ({}, "none", None),
        ({}, "11", None),
        ({}, "-1", None),
        ({"min": -5}, "-1", -1.0),
        ({"json_key": "score"}, 'Well, {"score": 3, "why": "2"}', 3.0),
        ({"json_key": "score"}, '{"why": {"score": 1}, "score": "4"}', 4.0),
        ({"json_key": "score"}, '```json\n{"score": 6}\n``` 9', 6.0),
        ({"json_key": "score"}, '{"score": 3} no: {"score": 5}', 5.0),
        ({"json_key": "score"}, '{"mark": 3} 7', None),
        ({"json_key": "score"}, '{"score": true}', None),
        ({"json_key": "score"}, '{"score": 1e999}', None),
        ({"json_key": "score"}, '{"score": 1' + "0" * 400 + "}", None),
        ({"regex": r"Mark: (\d+)"}, "Mark: 3. Mark: 4. 9", 4.0),
        ({"regex": r"Mark: (\w+)"}, "Mark: good", None),
    ],
)
def test_how_a_mark_is_read(options, text, mark):
    config = JudgeConfig(address="http://127.0.0.1:1", model="m", scale=False, **options)
    assert JudgeReward(config, "judge").mark(text) == mark


def test_a_reply_without_a_mark_is_asked_for_again(rollouts):
    with server(reply(chat("I cannot say.")), reply(chat("7"))) as script:
        source = judge(script)
        assert source.score(rollouts[:1]) == [0.7]
        assert source.take_counts() == {"repeated": 0, "no_mark": 1}
    assert [message["role"] for message in script.bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert script.bodies[1]["messages"][1]["content"] == "I cannot say."


def cut(text: str, reason: str) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_number_in_a_reply_that_was_cut_is_no_mark(reason, rollouts):
    thinking = cut("Let me think. The response gives 3", reason)
    with server(reply(thinking), reply(cut("Mark: 7", "stop"))) as script:
        source = judge(script)
        assert source.score(rollouts[:1]) == [0.7]
        assert source.take_counts()["no_mark"] == 1
    with server(reply(thinking)) as script, pytest.raises(
        RewardError, match=r"asked 2 times .* the last reply, cut (at `max_tokens`|by the endpoint's filter): 'Let me think"
    ):  # fmt: skip
        judge(script, questions=2).score(rollouts[:1])


def test_a_judge_that_never_gives_a_mark_is_an_error_or_none(rollouts):
    with server(reply(chat("I cannot say."))) as script:
        with pytest.raises(
            RewardError, match=r"no mark from 0 to 10 .* asked 2 times about sample 0 .*'I cannot say.'"
        ):
            judge(script, questions=2).score(rollouts)
        assert len(script.bodies) == 6
        source = judge(script, questions=1, on_unparsable="none")
        assert source.score(rollouts) == [None, None, None]
        assert source.take_counts()["no_mark"] == 3


FAULTS = {
    "no_completion": (reply({"object": "error"}), "the answer is no chat completion: {'object': 'error'}"),
    "odd_choices": (reply({"choices": ["x"]}), "the answer is no chat completion"),
    "no_choices": (reply({"choices": []}), "the answer is no chat completion"),
    "no_such_model": (reply({"error": {"message": "no model"}}, 404), "HTTP 404 .*no model"),
    "busy": (reply({}, 503), r"attempts: 2: 1\. HTTP 503"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judge_that_fails_is_an_error(fault, rollouts):
    act, said = FAULTS[fault]
    with server(act) as script, pytest.raises(RewardError, match=f"reward judge: .*{said}"):
        judge(script, attempts=2).score(rollouts)


def test_a_refusal_without_content_is_a_reply_without_a_mark(rollouts):
    refused = {"choices": [{"message": {"role": "assistant", "content": None, "refusal": "no"}}]}
    with server(reply(refused)) as script:
        assert judge(script, questions=1, on_unparsable="none").score(rollouts[:1]) == [None]


def test_the_key_comes_from_the_environment_and_is_not_in_the_recipe(rollouts, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with server(reply(chat("5"))) as script:
        source = judge(script, key="JUDGE_KEY")
        source.score(rollouts[:1])
    assert script.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in source.config.model_dump_json()
    monkeypatch.setenv("JUDGE_KEY", " ")
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        judge(script, key="JUDGE_KEY")
