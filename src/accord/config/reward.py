"""What scores a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

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
    "models",
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
    """One source of scores. Give exactly one of `model`, `models`, `function`, `classifier`, `lexicon`, `verifier`, `regex`,
    `format`, `length`, `repetition`, `code`, `url` and `judge`."""

    model: str | None = None
    """Folder or hub name of a sequence-classification model with one label, or of a PEFT adapter that is one. An adapter on
    the policy's own base shares that base's memory."""
    models: tuple[str, ...] = ()
    """Several reward models as one source, two or more: an ensemble, see `combine`."""
    combine: Literal["mean", "min", "uwo"] = "mean"
    """What `models` say together (Coste et al. 2023, arXiv:2310.02743): the mean; the worst case; or the mean minus `coef` times
    the variance between the members."""
    coef: float = Field(0.1, ge=0)
    """Weight of the variance in `combine: uwo`."""
    process: Literal["min", "prod", "last", "mean", "sum", "tokens"] | None = None
    """For process reward models (`accord reward` with `algorithm.level: step`): how the probabilities of a response's steps
    become its score. Lightman et al. 2023 (arXiv:2305.20050) take the product or the minimum. `tokens`: they do not; each is a
    score at the last token of its step."""
    step: str | None = Field(None, min_length=1)
    """The text between two steps of a response; by default what is stored with the model."""
    normalized: bool | None = None
    """Whether scores are brought to mean 0 and variance 1 by what is stored with the model; by default if it is stored."""
    offload: bool = False
    """Keep a reward model with weights of its own in main memory while it is not asked, and not on the accelerator."""
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
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            found = f"given: {', '.join(given)}" if given else "given: none"
            kinds = [f"`{kind}`" for kind in KINDS]
            raise ValueError(f"give exactly one of {', '.join(kinds[:-1])} and {kinds[-1]} ({found})")
        self._check_models()
        if self.function is not None and not self.function.rpartition(":")[0]:
            raise ValueError(f"a reward function is written FILE.py:NAME or package.module:NAME, not {self.function!r}")
        if self.function is None and self.timeout != type(self).model_fields["timeout"].default:
            raise ValueError(
                f"`timeout` here is for a function; that of `{given[0]}` goes into its own options, if it has one"
            )
        return self

    def _check_models(self) -> None:
        """What belongs to reward models, and to several of them."""
        if len(self.models) == 1:
            raise ValueError("`models` is for two reward models or more; give one as `model`")
        alien = {
            "models": ("combine", "coef") if not self.models else (),
            "model or models": ("process", "step", "normalized", "offload") if not self.paths else (),
        }
        for owner, keys in alien.items():
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if given:
                raise ValueError(f"`{'`, `'.join(given)}` goes with {owner}")
        if self.step is not None and self.process is None:
            raise ValueError("`step` goes with `process`: it says where a response's steps end")
        if self.process == "tokens" and self.models:
            raise ValueError(
                "`process: tokens` gives no score of the whole response, which `models` combine; choose another `process`, "
                "or give the models as sources of their own"
            )
        if self.process is not None and self.normalized:
            raise ValueError("`process` reads probabilities, which are not normalised: leave out `normalized`")

    @model_serializer(mode="wrap")
    def _without_other_kinds(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The one kind and what belongs to it: eleven kinds that are not there would bury it."""
        given: dict[str, Any] = handler(self)
        dropped = {kind for kind in KINDS if not given.get(kind)}
        dropped |= {"timeout"} if self.function is None else set()
        dropped |= {"process", "step", "normalized", "offload"} if not self.paths else set()
        dropped |= {"combine", "coef"} if not self.models else set()
        return {key: value for key, value in given.items() if key not in dropped}

    @property
    def kind(self) -> str:
        """The one of `KINDS` that is given."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def paths(self) -> tuple[str, ...]:
        """The reward models it names."""
        return (self.model,) if self.model is not None else self.models

    @property
    def roles(self) -> tuple[str, ...]:
        """The role that each of `paths` plays."""
        role = f"reward/{self.label}"
        return (role,) if self.model is not None else tuple(f"{role}/{n}" for n, _ in enumerate(self.models, 1))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the source cannot do without; a function says itself what it takes."""
        options = getattr(self, self.kind)
        return options.columns if isinstance(options, Kind) else ()

    @property
    def reads_tokens(self) -> bool:
        """Whether the source reads the policy's token ids, and not text alone."""
        return bool(self.paths) or getattr(self.length or self.repetition, "unit", None) == "tokens"

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
        if self.models:
            return "ensemble"
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
            if term.process is not None:
                raise ValueError(
                    f"reward {term.label}: a process reward model reads the steps of the policy's own tokens, and a server gets "
                    "texts: give it to the recipe itself, or serve models of whole answers"
                )
            if term.offload:
                raise ValueError(
                    f"reward {term.label}: `offload` makes room for the policy while a run does not ask the model, and a server "
                    "has no policy: leave it out"
                )
            if term.reads_tokens and not term.paths:
                raise ValueError(
                    f"reward {term.label} counts the policy's tokens, and a server gets texts: give it `unit: words`"
                )
        return self
