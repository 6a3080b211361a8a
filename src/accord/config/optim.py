"""Which optimiser takes the steps, and how its learning rate moves: a name and keywords, checked without torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from accord.config.base import Section


def plain(name: str) -> str:
    """A name as it is looked up: `Paged_AdamW-8bit` and `pagedadamw8bit` are one."""
    return name.replace("_", "").replace("-", "").lower()


_TORCH = ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]
_BITSANDBYTES = [
    "AdEMAMix",
    "AdEMAMix8bit",
    "Adagrad8bit",
    "Adam8bit",
    "AdamW8bit",
    "LAMB",
    "LAMB8bit",
    "LARS",
    "LARS8bit",
    "Lion",
    "Lion8bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedLion",
    "PagedLion8bit",
    "RMSprop8bit",
    "SGD8bit",
]
OPTIMIZERS: dict[str, str] = (
    {plain(name): f"torch.optim.{name}" for name in _TORCH}
    | {plain(name): f"bitsandbytes.optim.{name}" for name in _BITSANDBYTES}
    | {"adafactor": "transformers.optimization.Adafactor"}
)
"""Name -> class. Torch has an Adafactor, too: `torch.optim.Adafactor`, by its path."""

OWN_SCHEDULES = ("cosine", "linear", "constant")
"""Warm-up, then down to `min_learning_rate` (or not at all)."""
_TRANSFORMERS = [
    "constant_with_warmup",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "greedy",
    "inverse_sqrt",
    "polynomial",
    "warmup_stable_decay",
]
_TORCH_SCHEDULES = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "StepLR",
]
SCHEDULES: dict[str, str] = (
    {name: name for name in OWN_SCHEDULES}
    | {plain(name): f"transformers:{name}" for name in _TRANSFORMERS}
    | {plain(name): f"torch.optim.lr_scheduler.{name}" for name in _TORCH_SCHEDULES}
)
"""Name -> ours, one of transformers' `get_scheduler`, or a class."""
BY_METRIC = ("greedy", "reducelronplateau")
"""Schedules that watch a number, and so need `metric`."""


class Choice(Section):
    """A name and the keywords that go to what it names. Written as the name alone, or as `{name: ..., keyword: value}`."""

    model_config = ConfigDict(extra="allow")
    table: ClassVar[Mapping[str, str]] = {}
    kind: ClassVar[str] = ""
    refused: ClassVar[Mapping[str, str]] = {}
    """Names that there are and that cannot work here, with the reason."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Keywords that are given elsewhere in the recipe, or not at all."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping):
            return value
        if value and "name" not in value:
            raise ValueError(
                f"{', '.join(map(str, value))} was given without a `name`; write {{name: ..., {next(iter(value))}: ...}}"
            )
        return {key: entry if key == "name" else _number(entry, key) for key, entry in value.items()}

    @model_validator(mode="after")
    def _known(self) -> Choice:
        key, last = plain(self.name), plain(self.name.rpartition(".")[2])
        if last in self.refused:
            raise ValueError(f"{self.kind} {self.name}: {self.refused[last]}")
        if key not in self.table and "." not in self.name:
            near = difflib.get_close_matches(key, self.table, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(self.table))}"
            raise ValueError(
                f"unknown {self.kind} {self.name!r}: {hint} A class is also found by its path, package.module.Class"
            )
        for keyword in self.keywords:
            if keyword in self.elsewhere:
                raise ValueError(f"`{keyword}` is no keyword of a {self.kind} here: {self.elsewhere[keyword]}")
        return self

    @model_serializer(mode="plain")
    def _dump(self) -> Any:
        given = {key: getattr(self, key) for key in type(self).model_fields if key != "name"}
        rest = {key: value for key, value in {**given, **self.keywords}.items() if value is not None}
        return {"name": self.name, **rest} if rest else self.name

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core)]}

    @property
    def keywords(self) -> dict[str, Any]:
        """What goes to the constructor."""
        return dict(self.model_extra or {})

    @property
    def target(self) -> str:
        """What the name stands for."""
        return self.table.get(plain(self.name), self.name)


def _number(value: Any, key: Any) -> Any:
    """YAML 1.1 takes `1e-8` for text; lists become tuples, as optimisers have them; and a number is finite."""
    if isinstance(value, (list, tuple)):
        return tuple(_number(entry, key) for entry in value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{key}` is {value}; a number must be finite")
    return value


class OptimizerConfig(Choice):
    """What takes the steps. `adamw`, or `{name: adamw, betas: [0.9, 0.95]}`: a name, upper or lower case, and its keywords.
    Of torch: adadelta, adagrad, adam, adamax, adamw, asgd, muon, nadam, radam, rmsprop, rprop, sgd; of transformers:
    adafactor; of bitsandbytes (extra `quant`): lion, adam8bit, adamw8bit, lion8bit, paged_adamw and its other 8-bit and paged
    ones; any other by its path, package.module.Class."""

    table: ClassVar[Mapping[str, str]] = OPTIMIZERS
    kind: ClassVar[str] = "optimizer"
    refused: ClassVar[Mapping[str, str]] = {
        "lbfgs": "it evaluates the loss several times in a step, and a step here has one; take adamw",
        "sparseadam": "it takes sparse gradients, and those of a language model are dense; take adam",
    }
    elsewhere: ClassVar[Mapping[str, str]] = {
        "lr": "see train.learning_rate, train.head_learning_rate, train.lora_plus_ratio and critic.learning_rate",
        "weight_decay": "see train.weight_decay, which leaves heads and norms alone",
        "params": "the recipe's roles say what learns",
    }

    name: str = "adamw"
    """A name of the list above, or a path."""


class ScheduleConfig(Choice):
    """Course of the learning rate. `cosine`, or `{name: polynomial, power: 2}`: a name and its keywords. Ours (cosine, linear,
    constant) warm up and end at `min_learning_rate`; those of transformers (polynomial, inverse_sqrt, cosine_with_restarts,
    warmup_stable_decay, ...) get `warmup` and the run's length; torch's (OneCycleLR, StepLR, ...) bring their own course, and
    `warmup` is not theirs. The number of steps and the bounds of the rate are filled in where a schedule has such a keyword."""

    table: ClassVar[Mapping[str, str]] = SCHEDULES
    kind: ClassVar[str] = "schedule"
    refused: ClassVar[Mapping[str, str]] = {
        plain(name): "it is made of functions or of other schedules; give it as `scheduler=` to accord.PPO"
        for name in ("LambdaLR", "MultiplicativeLR", "ChainedScheduler", "SequentialLR")
    }
    elsewhere: ClassVar[Mapping[str, str]] = {
        "optimizer": "see train.optimizer",
        "last_epoch": "a resumed run knows where it was",
    }

    name: str = "cosine"
    """A name of the list above, or a path."""
    metric: str | None = Field(None)
    """What reduce_lr_on_plateau and greedy watch: a number that each optimiser step logs, such as `reward/loss`."""

    @model_validator(mode="after")
    def _metric_fits(self) -> ScheduleConfig:
        if plain(self.name) in BY_METRIC and self.metric is None:
            raise ValueError(f"schedule {self.name} watches a number: give its name as `metric`, such as sft/loss")
        if self.metric is not None and plain(self.name) in self.table and plain(self.name) not in BY_METRIC:
            raise ValueError(f"schedule {self.name} depends on the step alone, so it has no use for `metric`")
        if self.target in OWN_SCHEDULES and self.keywords:
            raise ValueError(
                f"schedule {self.name} has no keywords (given: {', '.join(self.keywords)}); see train.warmup and "
                "train.min_learning_rate"
            )
        return self
