"""Process reward models: a response's score from those of its steps, or a score for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from accord.batch import TokenBatch
from accord.data.steps import step_ends
from accord.model.scorer import Scorer
from accord.rewards.protocol import Score, checked_rewards
from accord.types import Rollout

COMBINE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "last": lambda steps: steps[-1],
    "mean": lambda steps: sum(steps) / len(steps),
    "sum": sum,
}
"""From the probabilities of the steps to the score (Lightman et al. 2023, arXiv:2305.20050, section 2.6: product, minimum)."""
TOKENS = "tokens"
"""Instead of a key of `COMBINE`: the steps keep scores of their own."""


class ProcessReward:
    """Scores a response by its steps, each read at its last token.

    Args:
        scorer: has the role.
        role: a stepwise reward role.
        label: name in metrics and errors.
        tokenizer: of the policy.
        separator: the text between two steps.
        combine: a key of `COMBINE`; or `TOKENS`, for each step's probability at its last token and 0 at the others.
    """

    def __init__(
        self,
        scorer: Scorer,
        role: str,
        label: str,
        tokenizer: PreTrainedTokenizerBase,
        separator: str,
        combine: str,
    ) -> None:
        self.scorer, self.role, self.label = scorer, role, label
        self.tokenizer, self.separator = tokenizer, separator
        self.combine = None if combine == TOKENS else COMBINE[combine]

    def step_scores(self, rollouts: Sequence[Rollout]) -> list[dict[int, float]]:
        """For each rollout the probability that a step is good, by the index of the step's last token in the response."""
        ends = [step_ends(rollout.response_ids, self.tokenizer, self.separator) for rollout in rollouts]
        ids = [rollout.prompt_ids + rollout.response_ids for rollout in rollouts]
        masks = [
            [False] * len(rollout.prompt_ids) + [place in found for place in range(len(rollout.response_ids))]
            for rollout, found in zip(rollouts, ends, strict=True)
        ]
        batch = TokenBatch.from_sequences(ids, masks)
        scores_K = self.scorer.step_scores(self.role, batch)[batch.target_mask_T]
        values = iter(torch.sigmoid(scores_K).tolist())
        return [{place: next(values) for place in found} for found in ends]

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score for each rollout, or one for each of its tokens; see `RewardSource.score`."""
        steps = self.step_scores(rollouts)
        scores: list[Score]
        if self.combine is None:
            scores = [
                tuple(found.get(place, 0.0) for place in range(len(rollout.response_ids)))
                for found, rollout in zip(steps, rollouts, strict=True)
            ]
        else:
            scores = [self.combine(list(found.values())) for found in steps]
        return checked_rewards(self.label, scores, rollouts)
