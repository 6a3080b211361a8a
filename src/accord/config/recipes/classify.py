"""Options of `accord classify`: the algorithm's own, and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from accord.config.algorithm import AlgorithmConfig
from accord.config.recipe import ExampleRecipe
from accord.types import LabelledText, LabelledTokens, Record


class ClassifyConfig(AlgorithmConfig):
    """Classifier of texts or of words: cross-entropy of a linear head on the last hidden state. With
    `adapter.method: prefix` this is p-tuning v2 (Liu et al. 2021, arXiv:2110.07602)."""

    type: Literal["classify"] = "classify"
    level: Literal["sequence", "token"] = "sequence"
    """What has a class: a whole text (rows with `text` and `label`), or each word of one (`tokens` and `labels`)."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, by number. By default those that the rows have: numbers by size, names by the alphabet."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567, section 7: 0.1)."""

    @field_validator("labels", mode="before")
    @classmethod
    def _names(cls, labels: Any) -> Any:
        """YAML reads some names as numbers or truth values; the rows have these as names too."""
        if not isinstance(labels, (list, tuple)):
            return labels
        names = {True: "true", False: "false"}
        return [names[x] if isinstance(x, bool) else str(x) if isinstance(x, int) else x for x in labels]

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels) or "" in labels):
            raise ValueError(f"labels are two or more different names (given: {', '.join(labels) or 'none'})")
        return labels


class ClassifyRecipe(ExampleRecipe):
    """`accord classify`: learn which class a text has, or each of its words."""

    # 1e-4 with LoRA as for reward models, which prefix tuning's factor makes 5e-3 (p-tuning v2's code: 5e-3 to 1e-2 mostly);
    # all weights: BERT (Devlin et al. 2018, arXiv:1810.04805, appendix A.3) tries 2e-5, 3e-5 and 5e-5.
    adapter_learning_rate: ClassVar[float] = 1e-4
    full_learning_rate: ClassVar[float] = 2e-5
    has_heads: ClassVar[bool] = True
    reads: ClassVar[type[Record]] = LabelledText

    algorithm: ClassifyConfig = ClassifyConfig()

    @property
    def rows_become(self) -> type[Record]:
        """What a row of its data becomes, with these settings."""
        return LabelledTokens if self.algorithm.level == "token" else LabelledText
