"""What an engine is: token ids in, sampled token ids with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from accord.types import FinishReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that tokens are drawn from, and when a response ends."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 = all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a response; they are part of it."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end a response; they are part of it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response wanted."""

    prompt_ids: tuple[int, ...]
    seed: int
    """Draws of this response depend on this number alone, not on what else is in the batch."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One response sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from (after temperature, top-k and top-p), in nats."""
    finish_reason: FinishReason


Progress = Callable[[int, int], None]
"""Called with (responses finished, tokens sampled) since the last call."""

OnToken = Callable[[int, int], None]
"""Called with (number of the request, token id) as soon as a token is sampled; an exception it raises ends the sampling."""


class Engine(Protocol):
    """Samples responses."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """One completion for each request, in the same order.

        Raises:
            GenerationError: a request cannot be sampled; nothing is returned for the others, so nothing is lost unseen.
        """
        ...

    def load(self, weights: Mapping[str, Any] | None, version: int) -> None:
        """Take over the policy's weights; `None` when they are shared with the learner and are already there."""
        ...

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""
        ...
