"""The plain data that moves through Accord. No torch here: these types are read by every layer.

One way, no way back: rows of a file become `Example`, `PreferencePair`, `LabelledResponse`, `StepwiseExample`, `LabelledText`,
`LabelledTokens` or `Prompt`; prompts become `Rollout`s; all of them become token ids in a `TokenBatch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Columns: TypeAlias = Mapping[str, Any]
"""Columns of a row that Accord does not read itself; they are handed to reward functions by name."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str


Text: TypeAlias = str | tuple[Message, ...]
"""Plain text, or a conversation that a chat template will turn into text."""


@dataclass(frozen=True, slots=True)
class Example:
    """Something to imitate: the completion is learnt, the prompt is given.

    Plain text to learn as a whole has an empty prompt. In a conversation the prompt ends before the first assistant
    turn, and every assistant turn of the completion is learnt.
    """

    prompt: Text
    completion: Text
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which a person or a rule preferred the first."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None
    """By how much the chosen answer is better, in units of reward; `None` where nobody said."""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """One answer with a thumb up or down."""

    prompt: Text
    completion: Text
    label: bool
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepwiseExample:
    """One answer in steps, each of which somebody judged."""

    prompt: Text
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    """How good each step is, from 0 to 1: a verdict, or the share of good ends that followed it."""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and the class that it belongs to."""

    text: str
    label: str
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """The words of a text, each with the class that it belongs to."""

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    """One for each word."""
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to answer; the columns travel to the reward functions."""

    prompt: Text
    columns: Columns = field(default_factory=dict)


Record: TypeAlias = (
    Example | PreferencePair | LabelledResponse | StepwiseExample | LabelledText | LabelledTokens | Prompt
)
"""Any validated row."""

FinishReason: TypeAlias = Literal["stop", "length"]
"""`stop`: the model ended its response with a stop token or stop string. `length`: it was cut at the limit."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response, with all that later stages need to learn from it."""

    prompt_ids: tuple[int, ...]
    """Token ids of the prompt, as the engine received them."""
    response_ids: tuple[int, ...]
    """Sampled token ids, the stop token included when there is one; never empty."""
    sampler_logprobs: tuple[float, ...]
    """Log-probability (nats) of each response token under the distribution it was drawn from."""
    finish_reason: FinishReason
    prompt_text: str
    response_text: str
    """The response as text, without the stop token."""
    columns: Columns = field(default_factory=dict)
    group: int = 0
    """Rollouts with the same number answer the same prompt."""
    version: int = 0
    """Version of the policy weights that sampled the response; -1: it was not sampled, but comes from the data."""
    score: float | None = None
    """Weighted sum of the reward sources that score whole responses; `None` until they have been asked."""
    token_scores: tuple[float, ...] | None = None
    """Weighted sum of the sources that score each token, one for each of `response_ids`, on top of `score`; `None` if there are
    none."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """What each reward source said, summed over the tokens if it scores them; `None` where the source does not apply."""

    learnt_ids: tuple[bool, ...] | None = None
    """Which of `response_ids` are the assistant's, where a response from the data holds turns of others, too; `None`: all."""
    greedy: Rollout | None = None
    """The scored greedy response to the same prompt, where one was asked for; it is compared with, and not learnt from."""

    @property
    def total_score(self) -> float:
        """Score of the response with those of its tokens: what responses are compared by.

        Raises:
            ValueError: no source has been asked.
        """
        if self.score is None:
            raise ValueError("the rollout has no score yet")
        return self.score + sum(self.token_scores or ())
