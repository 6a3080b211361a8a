"""What scores a rollout."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section


class RewardTerm(Section):
    """One source of scores. Give exactly one of `model`, `models` and `function`."""

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
    process: Literal["min", "prod", "last", "mean", "sum"] | None = None
    """For process reward models (`accord reward` with `algorithm.level: step`): how the probabilities of a response's steps
    become its score. Lightman et al. 2023 (arXiv:2305.20050) take the product or the minimum."""
    step: str | None = Field(None, min_length=1)
    """The text between two steps of a response; by default what is stored with the model."""
    normalized: bool | None = None
    """Whether scores are brought to mean 0 and variance 1 by what is stored with the model; by default if it is stored."""
    function: str | None = None
    """`FILE.py:NAME` or `package.module:NAME` of a Python function (sync or async)
    `f(prompts: list[str], responses: list[str], **columns) -> list[float | None]`; `None` means "does not apply"."""
    weight: float = 1.0
    """The score is the sum of weight x value over the sources that apply."""
    name: str | None = None
    """Name in metrics and errors; by default the function's name or the model's folder."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Read `rewards.py:brevity` as a function and any other text as a model."""
        if not isinstance(value, str):
            return value
        head, colon, tail = value.rpartition(":")
        is_function = bool(colon) and tail.isidentifier() and len(head) > 1
        return {"function": value} if is_function else {"model": value}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.model is not None, bool(self.models), self.function is not None)) != 1:
            raise ValueError("give exactly one of `model`, `models` and `function`")
        if len(self.models) == 1:
            raise ValueError("`models` is for two reward models or more; give one as `model`")
        alien = {
            "models": ("combine", "coef") if not self.models else (),
            "model or models": ("process", "step", "normalized") if not self.paths else (),
        }
        for owner, keys in alien.items():
            given = [key for key in keys if key in self.model_fields_set and getattr(self, key) is not None]
            if given and any(getattr(self, key) != type(self).model_fields[key].default for key in given):
                raise ValueError(f"`{'`, `'.join(given)}` goes with {owner}")
        if self.step is not None and self.process is None:
            raise ValueError("`step` goes with `process`: it says where a response's steps end")
        if self.process is not None and self.normalized:
            raise ValueError("`process` reads probabilities, which are not normalised: leave out `normalized`")
        if self.function is not None and not self.function.rpartition(":")[0]:
            raise ValueError(f"a reward function is written FILE.py:NAME or package.module:NAME, not {self.function!r}")
        return self

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
    def label(self) -> str:
        """The name under which scores of this source appear."""
        if self.name:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        if self.models:
            return "ensemble"
        parts = [part for part in (self.model or "").replace("\\", "/").split("/") if part not in ("", ".", "..")]
        named = [part for part in parts if part != "model"]
        return named[-1] if named else "model"
