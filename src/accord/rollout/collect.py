"""From prompts to scored rollouts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy
from transformers import PreTrainedTokenizerBase

from accord.errors import GenerationError
from accord.rollout.protocol import Completion, Engine, Progress, Request, Sampling
from accord.types import Columns, Rollout


class TokenPrompt(Protocol):
    """A prompt as token ids."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def columns(self) -> Columns: ...


class Scores(Protocol):
    """Anything that sets the scores of rollouts, such as `MixedReward`."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]: ...


@runtime_checkable
class Counting(Protocol):
    """Scores that also count what happened, by `label/event`, since they were last asked."""

    def take_counts(self) -> dict[str, int]: ...


@runtime_checkable
class Drafting(Protocol):
    """An engine that may decode speculatively."""

    def take_drafts(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True)
class Collection:
    """Scored rollouts, and how long each part took (seconds)."""

    rollouts: list[Rollout]
    rollout_seconds: float
    reward_seconds: float
    reward_counts: Mapping[str, int] = field(default_factory=dict)
    """What the reward sources counted, by `label/event`."""
    drafts: tuple[int, int] | None = None
    """Tokens of drafts, and how many of them were right; only of an engine that decodes speculatively."""

    def sampled(self) -> list[Rollout]:
        """All responses that the engine made: each greedy one, too, once for its group."""
        greedy = {rollout.group: rollout.greedy for rollout in self.rollouts if rollout.greedy is not None}
        return [*self.rollouts, *greedy.values()]


class Collector:
    """Samples `samples` responses to each prompt and scores them.

    Args:
        engine, tokenizer, sampling: how responses are drawn and become text.
        rewards: what scores them; `None` leaves them without a score.
        samples: responses to each prompt.
        seed: of the run.
        greedy: also take the greedy response to each prompt, and score it; see `Rollout.greedy`.
    """

    def __init__(
        self,
        engine: Engine,
        rewards: Scores | None,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        samples: int,
        seed: int,
        greedy: bool = False,
    ) -> None:
        self.greedy = greedy
        self.engine, self.rewards, self.tokenizer = engine, rewards, tokenizer
        self.sampling, self.samples, self.seed = sampling, samples, seed

    def collect(
        self,
        prompts: Sequence[TokenPrompt],
        iteration: int,
        progress: Progress | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Collection:
        """Rollouts of one iteration, in the order of the prompts.

        The seed of each response is made from (seed, iteration, prompt number, sample number), so a resumed run draws the
        same ones, and so do several ranks together that share the prompts of one.

        Args:
            prompts: what to answer.
            iteration: from 0.
            progress: told of finished responses and sampled tokens.
            numbers: the prompts' numbers in the whole iteration; 0, 1, ... if not given.

        Raises:
            GenerationError, RewardError: nothing is dropped, so the whole collection fails.
        """
        started = time.perf_counter()
        numbered = list(zip(numbers or range(len(prompts)), prompts, strict=True))
        places = [(number, prompt, s) for number, prompt in numbered for s in range(self.samples)]
        requests = [Request(prompt.ids, response_seed(self.seed, iteration, n, s)) for n, prompt, s in places]
        completions = self._generate(requests, self.sampling, progress)
        rollouts = [self._rollout(prompt, n, done) for (n, prompt, _), done in zip(places, completions, strict=True)]
        likeliest = self._greedy(numbered) if self.greedy else []
        drafts = self.engine.take_drafts() if isinstance(self.engine, Drafting) else None
        sampled = time.perf_counter()
        counts: dict[str, int] = {}
        if self.rewards is not None:
            scored = self.rewards.score([*rollouts, *likeliest])
            rollouts, likeliest = scored[: len(rollouts)], scored[len(rollouts) :]
            counts = self.rewards.take_counts() if isinstance(self.rewards, Counting) else {}
        if likeliest:
            of_prompt = {rollout.group: rollout for rollout in likeliest}
            rollouts = [replace(rollout, greedy=of_prompt[rollout.group]) for rollout in rollouts]
        return Collection(rollouts, sampled - started, time.perf_counter() - sampled, counts, drafts)

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None
    ) -> Sequence[Completion]:
        completions = self.engine.generate(requests, sampling, progress)
        if len(completions) != len(requests):
            raise GenerationError(f"the engine gave {len(completions)} completions for {len(requests)} requests")
        return completions

    def _greedy(self, numbered: Sequence[tuple[int, TokenPrompt]]) -> list[Rollout]:
        """The likeliest token each time, from the whole distribution."""
        sampling = replace(self.sampling, temperature=0.0, top_k=0, top_p=1.0)
        completions = self._generate([Request(prompt.ids, 0) for _, prompt in numbered], sampling, None)
        return [self._rollout(prompt, n, done) for (n, prompt), done in zip(numbered, completions, strict=True)]

    def _rollout(self, prompt: TokenPrompt, group: int, completion: Completion) -> Rollout:
        text_ids = list(completion.token_ids)
        if text_ids[-1] in self.sampling.stop_ids:
            text_ids.pop()  # not every stop token is a special one, which `decode` leaves out
        return Rollout(
            prompt_ids=prompt.ids,
            response_ids=completion.token_ids,
            sampler_logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            prompt_text=prompt.text,
            response_text=str(self.tokenizer.decode(text_ids, skip_special_tokens=True)),
            columns=prompt.columns,
            group=group,
            version=self.engine.version,
        )


def response_seed(seed: int, iteration: int, prompt: int, sample: int) -> int:
    """A number for each response, well mixed: neighbouring responses get unrelated ones."""
    return int(numpy.random.SeedSequence((seed, iteration, prompt, sample)).generate_state(1, numpy.uint64)[0] >> 1)
