"""Options of `accord csft`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.config.reward import RewardTerm
from accord.types import Example, Record


class CSFTConfig(AlgorithmConfig):
    """Conditional supervised fine-tuning: the prompt says how good the answer is, so good and bad answers are learnt alike, and
    good ones asked for (Korbak et al. 2023, arXiv:2302.08582; SteerLM, arXiv:2310.05344; Decision Transformer,
    arXiv:2106.01345)."""

    type: Literal["csft"] = "csft"
    labels: tuple[str, ...] = Field(("bad", "good"), min_length=2)
    """Words for how good an answer is, worst first. Scores are cut into as many quantiles."""
    template: str = "Quality: {label}\n{prompt}"
    """How the label stands in the prompt; in a conversation, in the last user's turn."""
    column: str = "score"
    """Column of the score or label, for rows that have neither a `label` of true or false nor two answers."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        missing = [place for place in ("{label}", "{prompt}") if self.template.count(place) != 1]
        if missing:
            raise ValueError(f"template: {' and '.join(missing)} must stand in it once (given: {self.template!r})")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: each must be another word (given: {', '.join(self.labels)})")
        return self


class CSFTRecipe(ExampleRecipe):
    """`accord csft`: learn answers of every quality, each under its label; ask for the best."""

    # As for SFT.
    adapter_learning_rate: ClassVar[float] = 2e-4
    full_learning_rate: ClassVar[float] = 2e-5
    reads: ClassVar[type[Record]] = Example
    learns_prompts: ClassVar[bool] = True

    reward: tuple[RewardTerm, ...] = ()
    """Sources that score the rows before training; without any the rows bring their scores or labels."""
    algorithm: CSFTConfig = CSFTConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_reward(cls, value: Any) -> Any:
        """Accept one reward where a list is meant."""
        if isinstance(value, dict) and isinstance(value.get("reward"), (str, dict)):
            return {**value, "reward": [value["reward"]]}
        return value

    @property
    def rows_become(self) -> type[Record] | None:
        """Rows are read as they are: a thumb down is as good an example as one up."""
        return None
