"""Options of `accord kto`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.model import ReferenceConfig
from accord.config.recipe import ExampleRecipe
from accord.types import LabelledResponse, Record


class KTOConfig(AlgorithmConfig):
    """Kahneman-Tversky optimisation: w (1 - sigmoid(+-(r - beta z))) with r = beta (log policy - log reference) (Ethayarajh et
    al. 2024, arXiv:2402.01306, equation 8)."""

    type: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0)
    """Weight of the log-ratio: the greater, the closer to the reference (TRL: 0.1)."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of a thumb up. The paper asks for weight x number of thumbs up to be 1 to 4/3 times that of thumbs down."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of a thumb down."""
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`apo_zero_unpaired`: rewards are compared with 0 (D'Oosterlinck et al. 2024, arXiv:2408.06266): `kto` with `kl: false`."""
    kl: bool = True
    """Estimate z, the policy's drift, from prompts with other rows' answers. `false`: z = 0, and two passes fewer a step."""

    @model_validator(mode="before")
    @classmethod
    def _apo_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("loss") == "apo_zero_unpaired" and "kl" not in value:
            return {**value, "kl": False}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.loss == "apo_zero_unpaired" and self.kl:
            raise ValueError("`loss: apo_zero_unpaired` compares rewards with 0, so `kl: true` has no meaning with it")
        return self


class KTORecipe(ExampleRecipe):
    """`accord kto`: learn from answers with a thumb up or down."""

    # TRL's KTOConfig: 1e-6 for full fine-tuning, within the 5e-7 to 5e-6 that its guide advises; ten times that with LoRA.
    adapter_learning_rate: ClassVar[float] = 1e-5
    full_learning_rate: ClassVar[float] = 1e-6
    reads: ClassVar[type[Record]] = LabelledResponse

    reference: ReferenceConfig = ReferenceConfig()
    algorithm: KTOConfig = KTOConfig()

    @model_validator(mode="after")
    def _has_others(self) -> Self:
        if self.algorithm.kl and self.train.batch_size < 2:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, and kto estimates its KL term from prompts with the answers of "
                "other rows of the step: use 2 or more (TRL's guide: 16 to 128), or algorithm.kl: false"
            )
        return self
