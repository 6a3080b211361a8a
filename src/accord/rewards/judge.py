"""A language model as the judge, behind any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import regex

from accord.config import JudgeConfig
from accord.errors import RewardError
from accord.rewards.client import HttpClient
from accord.rewards.protocol import Counts, checked_scores, describe
from accord.types import Rollout

NUMBER = re.compile(r"([-+]?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+))(?:\s*/\s*\d+(?:\.\d+)?)?")
"""A number; of `8/10` the 8. A point alone begins one where no word, number or other point stands before it: `...8` is 8."""
REGEX_SECONDS = 5.0
CUT = {"length": "cut at `max_tokens`", "content_filter": "cut by the endpoint's filter"}
"""Reasons to finish that leave a reply without its end, where the mark is: what a number in the rest means is not known."""
AGAIN = "Your reply has no mark that can be read. Reply again, and end with the mark in the form that was asked for."


class JudgeReward:
    """Asks a language model for a mark of each response; `None` for rows without a column that the prompt names.

    Raises:
        ConfigError: the key's variable is not set.
    """

    def __init__(self, config: JudgeConfig, label: str) -> None:
        self.config, self.label = config, label
        self._client = HttpClient(config, label)
        self._counts = Counts("no_mark")

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        deadline = time.monotonic() + self.config.deadline
        scores: list[float | None] = [None] * len(rollouts)
        left = {i: self._messages(r) for i, r in enumerate(rollouts) if self._applies(r)}
        replies: dict[int, tuple[str, str | None]] = {}
        for _ in range(self.config.questions):
            asked = list(left)
            bodies = [self._body(left[i]) for i in asked]
            answers = self._client.post_all("/chat/completions", bodies, lambda _, answer: _reply(answer), deadline)
            for index, reply in zip(asked, answers, strict=True):
                (text, cut), replies[index] = reply, reply
                scores[index] = self.mark(text) if cut is None else None
                if scores[index] is not None:
                    del left[index]
                else:
                    self._counts.add("no_mark")
                    left[index] = [
                        *left[index],
                        {"role": "assistant", "content": text},
                        {"role": "user", "content": AGAIN},
                    ]
            if not left:
                break
        if left and self.config.on_unparsable == "error":
            index = min(left)
            text, cut = replies[index]
            how = f", {CUT[cut]}" if cut else ""
            raise RewardError(
                f"reward {self.label}: no mark from {self.config.min:g} to {self.config.max:g} can be read from the reply of "
                f"{self.config.model}, asked {self.config.questions} times about {describe(index, rollouts[index])}; the last "
                f"reply{how}: {text[:300]!r}. Change `prompt`, `json_key` or `regex`, or set `on_unparsable: none`"
            )
        return checked_scores(self.label, scores, rollouts)

    def take_counts(self) -> dict[str, int]:
        """See `CountingSource`."""
        return self._client.counts.take() | self._counts.take()

    def mark(self, reply: str) -> float | None:
        """The mark in a reply, scaled if wanted; `None` if there is none within the bounds."""
        config = self.config
        if config.json_key is not None:
            value = _from_json(reply, config.json_key)
        elif config.regex is not None:
            value = _last_group(config.regex, reply)
        else:
            numbers = NUMBER.findall(reply)
            value = float(numbers[-1]) if numbers else None
        if value is None or not config.min <= value <= config.max:
            return None
        return (value - config.min) / (config.max - config.min) if config.scale else value

    def _applies(self, rollout: Rollout) -> bool:
        return all(rollout.columns.get(name) is not None for name in self.config.columns)

    def _messages(self, rollout: Rollout) -> list[dict[str, str]]:
        config = self.config
        own = {"prompt": rollout.prompt_text, "response": rollout.response_text}
        bounds = {"min": f"{config.min:g}", "max": f"{config.max:g}"}
        text = config.prompt.format_map({**rollout.columns, **own, **bounds})
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        return [*system, {"role": "user", "content": text}]

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        config = self.config
        return {
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }


def _reply(answer: Any) -> tuple[str, str | None]:
    """The text of a chat completion, and the key of `CUT` where it lacks its end."""
    try:
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"the answer is no chat completion: {str(answer)[:200]}") from None
    return content if isinstance(content, str) else "", reason if str(reason) in CUT else None


def _last_group(pattern: str, reply: str) -> float | None:
    try:
        found = list(regex.finditer(pattern, reply, timeout=REGEX_SECONDS))
    except TimeoutError:
        return None
    return _number(found[-1].group(1)) if found else None


def _from_json(reply: str, key: str) -> float | None:
    """The key's number in the last JSON object of a reply that has it."""
    decoder, found = json.JSONDecoder(), None
    start = reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except ValueError:
            value, end = None, start + 1
        if isinstance(value, dict) and key in value:
            found = _number(value[key])
        start = reply.find("{", end)
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
