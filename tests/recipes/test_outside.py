"""Responses of others as rollouts: token ids, ends, log-probabilities, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import accord
from accord.errors import DataError
from accord.recipes.outside import outside_rollouts
from accord.types import Message, Rollout


@pytest.fixture(scope="module")
def session(base: Path) -> accord.PPO:
    return accord.PPO({"model": {"path": str(base), "chat_template": "chatml"}, "rollout": {"temperature": 0.7}})


@pytest.fixture
def make(session: accord.PPO):
    def call(queries, responses, end: bool = True) -> list[Rollout]:
        return outside_rollouts(queries, responses, session.encoder, session.scorer, end=end)

    return call


def test_two_texts_are_tokenised_as_one_and_end(make, session):
    (rollout,) = make(["the film was"], [" good and fine"])
    tokenizer = session.roles.tokenizer
    whole = tuple(tokenizer("the film was good and fine")["input_ids"])
    assert rollout.prompt_ids + rollout.response_ids == (*whole, tokenizer.eos_token_id)
    assert rollout.prompt_ids == tuple(session.encoder.encode_prompt("the film was"))
    assert tokenizer.decode(rollout.response_ids[:-1]) == " good and fine"
    assert (rollout.finish_reason, rollout.prompt_text, rollout.response_text) == (
        "stop",
        "the film was",
        " good and fine",
    )
    assert rollout.score is None


def test_without_an_end_the_response_counts_as_cut(make, session):
    (ended,), (cut,) = make(["the film"], [" was odd"]), make(["the film"], [" was odd"], end=False)
    assert cut.response_ids == ended.response_ids[:-1] and cut.finish_reason == "length"
    assert ended.response_ids[-1] == session.encoder.eos_id


def test_token_ids_are_taken_as_they_are(make, session):
    eos = session.encoder.eos_id
    query, response = [9, 20, 31], torch.tensor([40, 41, eos])
    (rollout,) = make([query], [response])
    assert (rollout.prompt_ids, rollout.response_ids) == ((9, 20, 31), (40, 41, eos))
    assert rollout.finish_reason == "stop"
    assert make([query], [[40, 41]])[0].finish_reason == "length"
    assert rollout.response_text == session.roles.tokenizer.decode([40, 41])


def test_ids_of_texts_give_the_rollout_of_the_texts(make):
    (text,) = make(["the film was"], [" slow"])
    (ids,) = make([text.prompt_ids], [text.response_ids])
    (mixed,) = make(["the film was"], [text.response_ids])
    for other in (ids, mixed):
        assert (other.prompt_ids, other.response_ids) == (text.prompt_ids, text.response_ids)
        assert other.sampler_logprobs == text.sampler_logprobs
    (tail,) = make([text.prompt_ids], [" slow"])
    assert tail.response_ids == text.response_ids


def test_a_conversation_goes_through_the_chat_template(make, session):
    (rollout,) = make([(Message("user", "how was it?"),)], ["good"])
    text = session.roles.tokenizer.decode(rollout.prompt_ids)
    assert text.endswith("<|im_start|>assistant\n") and "how was it?" in text
    assert rollout.prompt_text == text
    assert session.roles.tokenizer.decode(rollout.response_ids[:-1]).startswith("good")
    assert rollout.response_ids[-1] == session.encoder.eos_id


def test_log_probabilities_are_the_policy_s_own_at_the_temperature(make, session):
    """By plain transformers, one at a time."""
    rollouts = make(["the film was", "a cast"], [" good", [40, 41, 42]])
    model = session.roles.model
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.response_ids)[:, None]).squeeze(-1)
        assert torch.allclose(torch.tensor(rollout.sampler_logprobs), expected, atol=1e-5)


def test_groups_are_the_queries(make):
    assert [rollout.group for rollout in make(["a film"] * 3, [" a", " b", " c"])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("queries", "responses", "message"),
    [
        (["a"], ["b", "c"], "1 queries and 2 responses were given"),
        ([], [], "at least one response"),
        (["a film"], [[]], "response 0 is empty; it has at least one token, its end"),
        ([[]], [[5]], "query 0 is empty"),
        (["a film"], [[5, 9_999]], r"response 0 holds 9999, which is no token id: the tokenizer's are 0 to \d+"),
        (["a film"], [[5, 0.5]], "response 0 holds 0.5, which is no token id"),
        (["a film"], [None], "response 0 is a NoneType; give a text or token ids"),
    ],
)
def test_what_cannot_be_learnt_from(make, queries, responses, message):
    with pytest.raises(DataError, match=message):
        make(queries, responses)


def test_nothing_and_no_end(make):
    (rollout,) = make(["a film"], [""])
    assert len(rollout.response_ids) == 1  # the end alone
    with pytest.raises(DataError, match="response 0 is empty"):
        make(["a film"], [""], end=False)
