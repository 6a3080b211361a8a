"""How the policy is sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from accord.config.base import Section

MOST = 256
"""Sequences beyond which more gain little. SmolLM2-135M in bfloat16 on one core, context 128: 459 tokens/s with 64 rows, 599 with
128, 712 with 192, 746 with 256 (docs/rollouts.md)."""
SHARE = 4
"""The cache takes at most one part in so many of the memory that the weights leave."""


def sequences_that_fit(room: int, row: int) -> int:
    """Sequences decoded together where the engine chooses: as many as a share of the memory holds, at most `MOST`, at least one.

    Args:
        room: bytes of the device that the weights leave.
        row: bytes of the keys and values of the longest sequence.
    """
    return max(1, min(MOST, room // SHARE // row))


class SpeculativeConfig(Section):
    """Drafts of several tokens, checked in one step. The responses are the same as without, only faster where they repeat their
    prompt or themselves (summaries, edits, code); elsewhere slower."""

    ngram: int = Field(3, ge=1)
    """A draft is what followed the last so many tokens when they stood before in the prompt or the response."""
    tokens: int = Field(4, ge=1)
    """Longest draft."""


class RolloutConfig(Section):
    """Sampling of responses."""

    engine: Literal["native"] = "native"
    """What samples."""
    samples: int = Field(1, ge=1)
    """Responses to each prompt."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Log-probabilities are trained at the same temperature."""
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens only; 0 = all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability only; 1 = all."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, besides the model's own stop tokens."""
    dynamic_sampling: int = Field(0, ge=0)
    """Groups whose responses all have one score teach nothing: they are dropped, and other prompts sampled in their place, in up
    to this many further rounds (DAPO, arXiv:2503.14476, section 3.2; verl's recipe: 10). What is missing then is filled up with
    dropped groups. 0: no group is dropped. Only for what compares the responses to one prompt."""
    max_sequences: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Sequences decoded together. auto: as many as a quarter of the device's memory holds beside the weights that sample, at most
    256, where throughput becomes flat."""
    merge_adapter: bool | Literal["auto"] = "auto"
    """Fold a LoRA adapter into the base while sampling, which takes the memory of one copy of the layers it changes. In float32
    that is exact but for rounding, in bfloat16 it is rounded up or down at random. auto: where it can be done, the copy takes at
    most an eighth of the device's memory, and there are enough tokens to sample."""
    speculative: SpeculativeConfig | None = None
    """Speculative decoding by n-gram look-up; null = off."""

    @field_validator("stop")
    @classmethod
    def _stop_says_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty text would end each response at its first token; leave it out")
        return value

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        if self.top_k == 0 and self.top_p == 1.0:
            return []
        return [
            "rollout.top_k / rollout.top_p: responses are drawn from a truncated distribution, while the log-probs that are "
            "trained are of the whole one; `sampling/logprob_difference_max` shows by how much they differ. Use top_k: 0 "
            "and top_p: 1 for training."
        ]
