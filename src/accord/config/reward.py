"""What scores a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from accord.config.base import Section
from accord.config.reward_kinds import (
    ClassifierConfig,
    CodeConfig,
    FormatConfig,
    JudgeConfig,
    Kind,
    LengthConfig,
    LexiconConfig,
    RegexConfig,
    RepetitionConfig,
    UrlConfig,
    VerifierConfig,
)

KINDS = (
    "model",
    "function",
    "classifier",
    "lexicon",
    "verifier",
    "regex",
    "format",
    "length",
    "repetition",
    "code",
    "url",
    "judge",
)
"""Keys of a term that say what it is; a term has exactly one."""


def refuse_same_labels(terms: Sequence[RewardTerm]) -> None:
    """Two sources of one name would be one metric.

    Raises:
        ValueError: names those that occur twice.
    """
    labels = [term.label for term in terms]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two rewards are called {', '.join(twice)}; give each a `name` of its own")


class RewardTerm(Section):
    """One source of scores. Give exactly one of `model`, `function`, `classifier`, `lexicon`, `verifier`, `regex`, `format`,
    `length`, `repetition`, `code`, `url` and `judge`."""

    model: str | None = None
    """Folder or hub name of a sequence-classification model with one label, or of a PEFT adapter that is one. An adapter on
    the policy's own base shares that base's memory."""
    function: str | None = None
    """`FILE.py:NAME` or `package.module:NAME` of a Python function (sync or async)
    `f(prompts: list[str], responses: list[str], **columns) -> list[float | None]`; `None` means "does not apply"."""
    classifier: ClassifierConfig | None = None
    lexicon: LexiconConfig | None = None
    verifier: VerifierConfig | None = None
    regex: RegexConfig | None = None
    format: FormatConfig | None = None
    length: LengthConfig | None = None
    repetition: RepetitionConfig | None = None
    code: CodeConfig | None = None
    url: UrlConfig | None = None
    judge: JudgeConfig | None = None
    weight: float = 1.0
    """The score is the sum of weight x value over the sources that apply."""
    name: str | None = None
    """Name in metrics and errors; by default the function's name, the model's folder, or the kind."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that one call of an `async` function may take. The other kinds have limits of their own."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Read `rewards.py:brevity` as a function, `http://...` as a reward server, and any other text as a model."""
        if not isinstance(value, str):
            return value
        if value.startswith(("http://", "https://")):
            return {"url": value}
        head, colon, tail = value.rpartition(":")
        is_function = bool(colon) and tail.isidentifier() and len(head) > 1
        return {"function": value} if is_function else {"model": value}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"given: {', '.join(given)}" if given else "given: none"
            kinds = [f"`{kind}`" for kind in KINDS]
            raise ValueError(f"give exactly one of {', '.join(kinds[:-1])} and {kinds[-1]} ({found})")
        if self.function is not None and not self.function.rpartition(":")[0]:
            raise ValueError(f"a reward function is written FILE.py:NAME or package.module:NAME, not {self.function!r}")
        if self.function is None and self.timeout != type(self).model_fields["timeout"].default:
            raise ValueError(
                f"`timeout` here is for a function; that of `{given[0]}` goes into its own options, if it has one"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_other_kinds(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The one kind and what belongs to it: eleven kinds that are not there would bury it."""
        given: dict[str, Any] = handler(self)
        dropped = {kind for kind in KINDS if given.get(kind) is None} | (
            {"timeout"} if self.function is None else set()
        )
        return {key: value for key, value in given.items() if key not in dropped}

    @property
    def kind(self) -> str:
        """The one of `KINDS` that is given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the source cannot do without; a function says itself what it takes."""
        options = getattr(self, self.kind)
        return options.columns if isinstance(options, Kind) else ()

    @property
    def reads_tokens(self) -> bool:
        """Whether the source reads the policy's token ids, and not text alone."""
        return self.model is not None or getattr(self.length or self.repetition, "unit", None) == "tokens"

    @property
    def label(self) -> str:
        """The name under which scores of this source appear."""
        if self.name:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        if self.verifier is not None:
            return self.verifier.type
        if self.lexicon is not None and self.lexicon.words == "vader":
            return "vader"
        path = self.model if self.classifier is None else self.classifier.model
        if path is None:
            return self.kind
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        named = [part for part in parts if part != "model"]
        return named[-1] if named else "model"


class ServedRewards(Section):
    """The rewards of `accord serve-reward`."""

    reward: tuple[RewardTerm, ...] = Field(min_length=1)
    """Sources; the server answers with their weighted sum."""

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        refuse_same_labels(self.reward)
        for term in self.reward:
            if term.reads_tokens and term.model is None:
                raise ValueError(
                    f"reward {term.label} counts the policy's tokens, and a server gets texts: give it `unit: words`"
                )
        return self
