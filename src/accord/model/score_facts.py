"""What a reward model says about its scores besides the scores: stored beside its weights, where plain libraries pass it by."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers.utils import cached_file

from accord.errors import ModelError
from accord.model.loading import Location

FILE = "accord_reward.json"


@dataclass(frozen=True)
class ScoreFacts:
    """How a reward model is to be read."""

    level: Literal["response", "step"] = "response"
    """Whether its score is of a whole answer, or of each step at the step's last token."""
    mean: float | None = None
    """Mean score of the answers that should have 0; `None` if it was not measured."""
    std: float | None = None
    """Standard deviation of the same."""
    step: str | None = None
    """The text between two steps."""

    def normalize(self, score: float) -> float:
        """(score - mean) / standard deviation, or the score itself where they were not measured."""
        return score if self.mean is None or self.std is None else (score - self.mean) / self.std


def write_facts(folder: Path, facts: ScoreFacts) -> None:
    """Write the facts into a model's or adapter's folder."""
    (folder / FILE).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")


def read_facts(location: Location) -> ScoreFacts | None:
    """The facts of a reward model; `None` for one that has none, such as one that Accord did not train.

    Raises:
        ModelError: the file cannot be read, or does not say what it must.
    """
    source = str(location.adapter or location.base)
    path = cached_file(
        source, FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if path is None:
        return None
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        facts = ScoreFacts(**found)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{source}: {FILE} cannot be read: {error}") from error
    measured = [value for value in (facts.mean, facts.std) if value is not None]
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in measured)
    if (
        facts.level not in ("response", "step")
        or len(measured) == 1
        or not numbers
        or (facts.std is not None and facts.std <= 0)
    ):
        raise ModelError(
            f"{source}: {FILE} holds {found}; level is response or step, and mean and std are finite numbers, std above 0"
        )
    return facts
