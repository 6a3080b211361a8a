"""Rewards that are models."""

from __future__ import annotations

from collections.abc import Sequence

from accord.batch import TokenBatch
from accord.model.score_facts import ScoreFacts
from accord.model.scorer import Scorer
from accord.rewards.protocol import checked_scores
from accord.types import Rollout


class ModelReward:
    """Scores prompt and response with a reward role, at the last token of the response.

    The token ids are the policy's own, so the reward model must share the policy's tokenizer; the recipe checks it.

    Args:
        scorer: has the role.
        role: the reward role.
        label: name in metrics and errors.
        facts: with the mean and standard deviation to normalise by, if scores are to be normalised.
    """

    def __init__(self, scorer: Scorer, role: str, label: str, facts: ScoreFacts | None = None) -> None:
        self.scorer = scorer
        self.role = role
        self.label = label
        self.facts = facts or ScoreFacts()

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        ids = [rollout.prompt_ids + rollout.response_ids for rollout in rollouts]
        batch = TokenBatch.from_sequences(ids, [[False] * len(sequence) for sequence in ids])
        scores = [self.facts.normalize(score) for score in self.scorer.sequence_scores(self.role, batch).tolist()]
        return checked_scores(self.label, scores, rollouts)
