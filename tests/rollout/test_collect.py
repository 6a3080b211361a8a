"""Collecting: seeds, groups, texts, and nothing dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from accord.errors import GenerationError
from accord.rollout.collect import Collector, response_seed
from accord.rollout.protocol import Completion, Progress, Request, Sampling
from accord.types import Rollout


@dataclass(frozen=True)
class Prompt:
    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Echo:
    """An engine that answers with a fixed response, and remembers what it was asked."""

    answer: tuple[int, ...] = (5, 6)
    reason: str = "length"
    lost: int = 0
    version: int = 3
    asked: list[Request] = field(default_factory=list)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        self.asked = list(requests)
        done = [Completion(self.answer, tuple(-0.5 for _ in self.answer), self.reason) for _ in requests]
        return done[: len(done) - self.lost]


class Seven:
    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        return [replace(rollout, score=7.0) for rollout in rollouts]


PROMPTS = [Prompt("one", (1, 2), {"answer": "1"}), Prompt("two", (3,)), Prompt("three", (4, 4, 4))]


def collector(
    tokenizer, engine: Echo, rewards=None, samples: int = 2, stop_ids=frozenset(), seed: int = 9
) -> Collector:
    return Collector(engine, rewards, tokenizer, Sampling(4, stop_ids=stop_ids), samples, seed)


def test_rollouts_carry_everything_in_the_order_of_the_prompts(tokenizer) -> None:
    engine = Echo()
    collection = collector(tokenizer, engine, Seven()).collect(PROMPTS, iteration=0)
    assert [r.group for r in collection.rollouts] == [0, 0, 1, 1, 2, 2]
    assert [r.prompt_text for r in collection.rollouts] == ["one", "one", "two", "two", "three", "three"]
    assert [request.prompt_ids for request in engine.asked] == [r.prompt_ids for r in collection.rollouts]
    first = collection.rollouts[0]
    assert first.columns == {"answer": "1"} and first.version == 3 and first.score == 7.0
    assert (first.response_ids, first.sampler_logprobs, first.finish_reason) == ((5, 6), (-0.5, -0.5), "length")
    assert collection.rollout_seconds >= 0 and collection.reward_seconds >= 0
    assert [r.score for r in collector(tokenizer, engine).collect(PROMPTS, 0).rollouts] == [None] * 6


def test_a_response_s_seed_depends_on_its_numbers_alone(tokenizer) -> None:
    engine = Echo()
    whole = collector(tokenizer, engine)
    whole.collect(PROMPTS, iteration=4)
    seeds = [request.seed for request in engine.asked]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    collection = whole.collect([PROMPTS[2], PROMPTS[1]], iteration=4, numbers=[2, 1])
    assert [request.seed for request in engine.asked] == seeds[4:6] + seeds[2:4]
    assert [r.group for r in collection.rollouts] == [2, 2, 1, 1]
    collector(tokenizer, engine, samples=3).collect(PROMPTS, iteration=4)
    assert [request.seed for request in engine.asked][:2] == seeds[:2]
    for other in (whole.collect(PROMPTS, 5), collector(tokenizer, engine, seed=8).collect(PROMPTS, 4)):
        assert len(other.rollouts) == 6
        assert not {request.seed for request in engine.asked} & set(seeds)
    assert response_seed(9, 4, 2, 1) == seeds[5]


def test_seeds_are_the_same_on_every_machine() -> None:
    """Literals: a resumed run must draw what the interrupted one would have drawn, also after an upgrade."""
    assert response_seed(0, 0, 0, 0) == 7896617691693857887
    assert response_seed(1, 2, 3, 4) == 7661749924751933381


def test_numbers_must_match_the_prompts(tokenizer) -> None:
    with pytest.raises(ValueError, match="zip"):
        collector(tokenizer, Echo()).collect(PROMPTS, 0, numbers=[1, 2])


def test_the_text_is_without_the_stop_token(tokenizer) -> None:
    words = tuple(tokenizer.encode("good film", add_special_tokens=False))
    eos, other = tokenizer.eos_token_id, tokenizer.encode("!", add_special_tokens=False)[0]
    cases = [(words, "length"), ((*words, eos), "stop"), ((*words, other), "stop")]
    for answer, reason in cases:
        engine = Echo(answer, reason)
        rollout = collector(tokenizer, engine, stop_ids=frozenset({eos, other})).collect(PROMPTS[:1], 0).rollouts[0]
        assert rollout.response_text == "good film"
        assert rollout.response_ids == answer, "the ids keep it: it is learnt"
    rollout = collector(tokenizer, Echo((*words, other), "length")).collect(PROMPTS[:1], 0).rollouts[0]
    assert rollout.response_text == "good film!", "an ordinary token is part of the text"


def test_a_wrong_number_of_completions_is_an_error(tokenizer) -> None:
    with pytest.raises(GenerationError, match="5 completions for 6 requests"):
        collector(tokenizer, Echo(lost=1)).collect(PROMPTS, 0)


class ByLength:
    """Scores a response by its length; notes how often it was asked."""

    calls = 0

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        self.calls += 1
        return [replace(rollout, score=float(len(rollout.response_ids))) for rollout in rollouts]


class Tempered(Echo):
    """Answers with one token at temperature 0, and with two at any other."""

    def generate(self, requests, sampling, progress=None):
        self.answer = (5,) if sampling.temperature == 0 else (5, 6)
        self.samplings = [*getattr(self, "samplings", []), sampling]
        return super().generate(requests, sampling, progress)


def test_the_greedy_response_to_each_prompt_comes_beside_its_samples(tokenizer) -> None:
    engine, rewards = Tempered(), ByLength()
    sampling = Sampling(4, temperature=0.7, top_k=3, top_p=0.5, stop_texts=("!",))
    made = Collector(engine, rewards, tokenizer, sampling, 2, 9, greedy=True)
    rollouts = made.collect(PROMPTS, iteration=0, numbers=[4, 6, 8]).rollouts
    assert rewards.calls == 1 and len(rollouts) == 6
    for rollout in rollouts:
        assert rollout.score == 2.0 and rollout.greedy is not None and rollout.greedy.score == 1.0
        assert rollout.greedy.prompt_ids == rollout.prompt_ids and rollout.greedy.group == rollout.group
    assert engine.samplings[1] == replace(sampling, temperature=0.0, top_k=0, top_p=1.0)
    assert len(engine.asked) == 3


def test_no_greedy_response_is_taken_unless_asked_for(tokenizer) -> None:
    engine = Tempered()
    assert collector(tokenizer, engine, ByLength()).collect(PROMPTS, iteration=0).rollouts[0].greedy is None
    assert len(engine.samplings) == 1


class Guessing(Echo):
    """Drafts ten tokens for each call, of which three are right."""

    made = 0

    def generate(self, requests, sampling, progress=None):
        self.made += 10
        return super().generate(requests, sampling, progress)

    def take_drafts(self) -> tuple[int, int]:
        made, self.made = self.made, 0
        return made, made * 3 // 10


def test_drafts_of_a_collection_are_counted(tokenizer) -> None:
    made = collector(tokenizer, Guessing())
    assert made.collect(PROMPTS, 0).drafts == (10, 3) == made.collect(PROMPTS, 1).drafts
    assert collector(tokenizer, Echo()).collect(PROMPTS, 0).drafts is None
