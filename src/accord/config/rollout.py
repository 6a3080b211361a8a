"""How the policy is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from accord.config.base import Section


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
    dropped groups. 0: no group is dropped."""
    max_sequences: int = Field(64, ge=1)
    """Sequences decoded together."""

    def warnings(self) -> list[str]:
        """Settings that run, but seldom do what is wanted."""
        if self.top_k == 0 and self.top_p == 1.0:
            return []
        return [
            "rollout.top_k / rollout.top_p: responses are drawn from a truncated distribution, while the log-probs that are "
            "trained are of the whole one; `sampling/logprob_difference_max` shows by how much they differ. Use top_k: 0 "
            "and top_p: 1 for training."
        ]
