"""What scores a rollout."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from accord.config.base import Section


class RewardTerm(Section):
    """One source of scores. Give exactly one of `model` and `function`."""

    model: str | None = None
    """Folder or hub name of a sequence-classification model with one label, or of a PEFT adapter that is one. An adapter on
    the policy's own base shares that base's memory."""
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
        if (self.model is None) == (self.function is None):
            raise ValueError("give exactly one of `model` and `function`")
        if self.function is not None and not self.function.rpartition(":")[0]:
            raise ValueError(f"a reward function is written FILE.py:NAME or package.module:NAME, not {self.function!r}")
        return self

    @property
    def label(self) -> str:
        """The name under which scores of this source appear."""
        if self.name:
            return self.name
        if self.function is not None:
            return self.function.rpartition(":")[2]
        parts = [part for part in (self.model or "").replace("\\", "/").split("/") if part not in ("", ".", "..")]
        named = [part for part in parts if part != "model"]
        return named[-1] if named else "model"
