"""Which weights learn how fast, and the optimiser that moves them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from accord.config import OptimizerConfig, TrainConfig
from accord.config.optim import plain
from accord.errors import ConfigError

Group: TypeAlias = dict[str, Any]
"""Weights that share their settings: `params`, `lr` (the peak), `weight_decay`, and a `label` for the metrics."""
MakeOptimizer: TypeAlias = Callable[[list[Group]], Optimizer]
"""Anything that makes an optimiser of groups, such as `torch.optim.RAdam` or a function."""

BASE = "base"
"""Label of the groups that learn at `train.learning_rate`."""
DEFAULTS: dict[str, dict[str, Any]] = {"adafactor": {"scale_parameter": False, "relative_step": False}}
"""Adafactor sets its own rates unless told not to; here the recipe sets them (as transformers' Trainer does)."""


def make_groups(weights: Mapping[str, nn.Parameter], config: TrainConfig, rates: Mapping[str, float]) -> list[Group]:
    """Sort weights by peak learning rate and weight decay.

    The rate of a head is `head_learning_rate` if given; of a role, that in `rates` (a value head is the critic's, wherever it
    sits), else `learning_rate`; LoRA's B learns `lora_plus_ratio` times as fast as the rest of its role (arXiv:2402.12354).
    Heads and one-dimensional weights (norms, biases) are not decayed.

    Args:
        weights: by name, which begins with the role's.
        config: the rates and the decay.
        rates: roles that have a rate of their own.

    Raises:
        ConfigError: `lora_plus_ratio` is given and nothing that learns is a LoRA B.
    """
    assert config.learning_rate is not None
    groups: dict[tuple[str, float, float], Group] = {}
    for name, weight in weights.items():
        head = name.endswith(("_head.weight", "_head.bias"))
        role = "critic" if ".value_head." in name else name.partition(".")[0]
        label, rate = (role, rates[role]) if role in rates else (BASE, config.learning_rate)
        if head and config.head_learning_rate is not None:
            label, rate = "head", config.head_learning_rate
        elif config.lora_plus_ratio is not None and "lora_B" in name:
            label, rate = "lora_b" if label == BASE else f"{label}_lora_b", rate * config.lora_plus_ratio
        decay = 0.0 if head or weight.ndim <= 1 else config.weight_decay
        group = groups.setdefault(
            (label, rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "label": label}
        )
        group["params"].append(weight)
    if config.lora_plus_ratio is not None and not any(label.endswith("lora_b") for label, _, _ in groups):
        raise ConfigError("train.lora_plus_ratio: no weight that learns here is a LoRA B; leave it out")
    return list(groups.values())


def make_optimizer(groups: list[Group], config: TrainConfig, make: MakeOptimizer | None = None) -> Optimizer:
    """The optimiser of the groups: what `make` gives, or the recipe's.

    Raises:
        ConfigError: there is no such optimiser, or it does not take these keywords or these weights.
    """
    if make is not None:
        optimizer = make(groups)
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"`optimizer` must make a torch.optim.Optimizer of groups; it gave a {type(optimizer).__name__}"
            )
        return optimizer
    chosen = config.optimizer
    kind = check_optimizer(config)
    try:
        # The constructor's own rate is read by some of transformers' schedules; each group has its own beside it.
        return kind(groups, lr=config.learning_rate, **DEFAULTS.get(plain(chosen.name), {}) | chosen.keywords)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"train.optimizer {chosen.name}: {error}") from error


def check_optimizer(config: TrainConfig) -> Callable[..., Optimizer]:
    """The class of the recipe's optimiser. Needs no weights, so a recipe can be refused before any are loaded.

    Raises:
        ConfigError: its package is missing, or it has no such keyword or no weight decay.
    """
    chosen: OptimizerConfig = config.optimizer
    kind = find_class(chosen.target, f"train.optimizer {chosen.name}")
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ConfigError(f"train.optimizer {chosen.name}: {chosen.target} is no torch.optim.Optimizer")
    check_keywords(kind, chosen.keywords, f"train.optimizer {chosen.name}")
    if config.weight_decay and not _takes(kind, "weight_decay"):
        raise ConfigError(
            f"train.weight_decay is {config.weight_decay:g}, and the optimizer {chosen.name} has none: set it to 0"
        )
    return kind


def check_keywords(make: Callable[..., Any], keywords: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that a class or function does not have, with the nearest that it has.

    Raises:
        ConfigError: see above.
    """
    hidden = {"self", "params", "lr", "weight_decay", "optimizer", "last_epoch"}
    known = [name for name in inspect.signature(make).parameters if name not in hidden]
    for keyword in keywords:
        if not _takes(make, keyword):
            near = difflib.get_close_matches(keyword, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"{where} has no keyword `{keyword}`: {hint}")


def _takes(make: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(make).parameters
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def find_class(path: str, where: str) -> Any:
    """What stands at `package.module.Class`.

    Raises:
        ConfigError: the package is not installed, or has no such class.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        extra = ': pip install "accord[quant]"' if module.startswith("bitsandbytes") else ""
        raise ConfigError(f"{where}: {path} needs the package {error.name}, which is not installed{extra}") from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {module} has no {name}") from error
