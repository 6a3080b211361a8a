"""Rewards from a server: `accord serve-reward`, or anything that speaks its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accord.config import UrlConfig
from accord.errors import ConfigError
from accord.rewards.client import HttpClient
from accord.rewards.protocol import checked_scores
from accord.types import Rollout

HEALTH_SECONDS = 10.0


class UrlReward:
    """Asks a reward server for the scores of texts.

    The protocol: `POST /score` with `{"prompts": [...], "responses": [...], "columns": {name: [...]}}` is answered by
    `{"scores": [...]}`, a number or null each. `GET /health` is answered with status 200 and any JSON, of which
    `max_batch` and `needs_key` are read.

    Raises:
        ConfigError: the key's variable is not set; or the server needs a key, or takes fewer responses in a request.
        RewardError: nobody answers at the address, or it refuses the key.
    """

    def __init__(self, config: UrlConfig, label: str) -> None:
        self.config, self.label = config, label
        self._client = HttpClient(config, label)
        health = self._client.get("/health", min(config.timeout, HEALTH_SECONDS))
        self._check(health if isinstance(health, dict) else {})

    def _check(self, health: Mapping[str, Any]) -> None:
        """What would only show after the first rollouts."""
        if health.get("needs_key") is True and self.config.key is None:
            raise ConfigError(
                f"reward {self.label}: {self.config.address} asks for a key: give the name of the environment variable that "
                "holds it as `url.key`"
            )
        most = health.get("max_batch")
        if isinstance(most, int) and 0 < most < self.config.batch_size:
            raise ConfigError(
                f"reward {self.label}: `url.batch_size` is {self.config.batch_size}, and {self.config.address} takes {most} "
                f"responses in a request at most: set it to {most} or less"
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One score for each rollout; see `RewardSource.score`."""
        size = self.config.batch_size
        batches = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

        def scores(number: int, answer: Any) -> list[Any]:
            found = answer.get("scores") if isinstance(answer, dict) else None
            if not isinstance(found, list):
                raise ValueError(f'the answer has no list "scores": {str(answer)[:200]}')
            if len(found) != len(batches[number]):
                raise ValueError(f"{len(found)} scores came back for {len(batches[number])} responses")
            return found

        answers = self._client.post_all("/score", [request_body(batch) for batch in batches], scores)
        return checked_scores(self.label, [score for answer in answers for score in answer], rollouts)

    def take_counts(self) -> dict[str, int]:
        """See `CountingSource`."""
        return self._client.counts.take()


def request_body(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """A request of the protocol: texts, and the columns of the rows."""
    names = sorted({name for rollout in rollouts for name in rollout.columns})
    return {
        "prompts": [rollout.prompt_text for rollout in rollouts],
        "responses": [rollout.response_text for rollout in rollouts],
        "columns": {name: [rollout.columns.get(name) for rollout in rollouts] for name in names},
    }
