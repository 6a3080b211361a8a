"""The recipe's adapter as peft's config, and what of a model it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from accord.config import AdaLoraConfig, AdapterConfig, IA3Config, LoraConfig, PrefixConfig, PromptConfig, PTuningConfig
from accord.errors import ConfigError
from accord.model.loading import trunk_of

METHOD_OF: dict[str, str] = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "IA3": "ia3",
    "PROMPT_TUNING": "prompt",
    "PREFIX_TUNING": "prefix",
    "P_TUNING": "ptuning",
}
"""peft's name of a method -> `adapter.method`."""


def peft_config(config: AdapterConfig, tokenizer: str) -> peft.PeftConfig:
    """The same as peft says it.

    Args:
        config: of any method.
        tokenizer: folder or hub name, for virtual tokens that start as a text.
    """
    task = "CAUSAL_LM"
    if isinstance(config, LoraConfig):
        return peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft computes alpha / r, whatever the type
            lora_dropout=config.dropout,
            target_modules=_targets(config.targets),
            use_rslora=config.rslora,
            use_dora=config.dora,
            task_type=task,
        )
    if isinstance(config, AdaLoraConfig):
        return peft.AdaLoraConfig(
            init_r=config.init_r,
            target_r=config.target_r,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=_targets(config.targets),
            deltaT=config.every,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orthogonality,
            total_step=1,  # the learner knows how many there will be, and sets it
            task_type=task,
        )
    if isinstance(config, IA3Config):
        feedforward = None if config.feedforward is None else list(config.feedforward)
        return peft.IA3Config(target_modules=_targets(config.targets), feedforward_modules=feedforward, task_type=task)
    if isinstance(config, PromptConfig):
        kinds = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}
        return peft.PromptTuningConfig(
            num_virtual_tokens=config.tokens,
            prompt_tuning_init=kinds[config.init],
            prompt_tuning_init_text=config.text,
            tokenizer_name_or_path=tokenizer if config.init == "text" else None,
            task_type=task,
        )
    if isinstance(config, PrefixConfig):
        return peft.PrefixTuningConfig(
            num_virtual_tokens=config.tokens,
            init_weights="zero" if config.init == "zero" else None,
            prefix_projection=config.projection,
            encoder_hidden_size=config.hidden,  # type: ignore[arg-type]  # None: the width of a layer's keys
            task_type=task,
        )
    assert isinstance(config, PTuningConfig)
    return peft.PromptEncoderConfig(
        num_virtual_tokens=config.tokens,
        encoder_reparameterization_type=config.encoder.upper(),
        encoder_hidden_size=config.hidden,
        encoder_num_layers=config.layers or 2,
        encoder_dropout=config.dropout,
        task_type=task,
    )


def check_targets(targets: str | Sequence[str] | None, base: str, model: PreTrainedModel) -> None:
    """Refuse to adapt layers on which nothing would be learnt.

    Args:
        targets: `adapter.targets`.
        base: the model, for the message.
        model: it may be without weights.

    Raises:
        ConfigError: one of them is a layer that the family reads past.
    """
    past = PAST_LAYER.get(model.config.model_type, ())
    if not past or targets is None or targets == "all-linear":
        return
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        asked = re.fullmatch(targets, name) if isinstance(targets, str) else _ends_with_one(name, targets)
        if asked and last in past and isinstance(module, nn.Linear):
            raise ConfigError(
                f"adapter.targets: {base} ({model.config.model_type}) multiplies with the weight of {last} itself instead of "
                f"calling the layer, so an adapter on it would never learn; leave {last} out"
            )


def _ends_with_one(name: str, targets: Sequence[str]) -> bool:
    """Whether peft takes a module for one of the targets."""
    return any(f".{name}".endswith(f".{target}") for target in targets)


def check_dora(what: str, base: str, widths: Iterable[int]) -> None:
    """Refuse DoRA on an NF4 base whose layers are not whole blocks.

    Args:
        what: that is DoRA: a key of the recipe or a saved adapter.
        base: the model, for the message.
        widths: `in_features` of its layers that are, or will be, NF4.

    Raises:
        ConfigError: one of them is no multiple of 64.
    """
    odd = next((width for width in widths if width % 64), None)
    if odd is not None:
        raise ConfigError(
            f"{what}: peft dequantises weights with bitsandbytes, which gets NF4 wrong on a CPU for a width of {odd}, no "
            f"multiple of 64, as {base} has; use model.quantize: int8 or none, or an adapter without DoRA (dora: false)"
        )


def kept_options(config: Any) -> dict[str, Any]:
    """What a saved adapter is, in the words of the recipe's section: the options that a run which goes on from it cannot change.
    Dropout of layers is none of them, and networks that made virtual tokens are gone.

    Args:
        config: peft's, of a method that recipes have.
    """
    options: dict[str, Any] = {}
    if hasattr(config, "target_modules"):
        targets = config.target_modules
        options["targets"] = targets if isinstance(targets, str) or targets is None else tuple(sorted(targets))
    if isinstance(config, peft.AdaLoraConfig):
        return options | {
            "init_r": config.init_r,
            "target_r": config.target_r,
            "alpha": config.lora_alpha,
            "every": config.deltaT,
            "beta1": config.beta1,
            "beta2": config.beta2,
            "orthogonality": config.orth_reg_weight,
        }
    if isinstance(config, peft.LoraConfig):
        more = {"rslora": config.use_rslora, "dora": config.use_dora}
        return options | {"r": config.r, "alpha": config.lora_alpha} | more
    if isinstance(config, peft.IA3Config):
        return options | {"feedforward": tuple(sorted(config.feedforward_modules or ()))}
    options["tokens"] = config.num_virtual_tokens
    if isinstance(config, peft.PrefixTuningConfig):
        options |= {"projection": False, "hidden": None}
    if isinstance(config, peft.PromptEncoderConfig):
        options |= {"dropout": 0.0}
    return options


def leaves_out_layers(model: PreTrainedModel) -> bool:
    """Whether the adapters on a base leave out a layer that `all-linear` would reach."""
    unsuited = unsuited_layers(model) or ()
    wrapped = {id(inner) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for inner in layer.modules()}
    output = model.get_output_embeddings()
    return any(
        isinstance(module, (nn.Linear, Conv1D))
        and id(module) not in wrapped
        and module is not output
        and not _ends_with_one(name, unsuited)
        for name, module in model.named_modules()
    )


def _targets(targets: str | tuple[str, ...] | None) -> Any:
    return list(targets) if isinstance(targets, tuple) else targets


FUSED = {
    *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"),  # of these peft refuses it too
    *("bamba", "granitemoehybrid", "zamba2"),
}
"""Families that hand the weight of `out_proj` to a kernel instead of calling the layer."""


PAST_LAYER = {"mamba": ("x_proj", "dt_proj"), "falcon_mamba": ("x_proj", "dt_proj"), "jamba": ("dt_proj",)}
"""Families that multiply with the weight of a linear layer themselves instead of calling the layer (`dt_proj`), or hand it to a
kernel where there is one (`x_proj`): an adapter on it would never learn."""


def unsuited_layers(model: PreTrainedModel) -> list[str] | None:
    """Linear layers that `all-linear` leaves out: those of an image tower, which no text reaches, and those of state-space layers
    whose weight is read past any adapter, by their code or by fused kernels."""
    inside = {id(module) for module in trunk_of(model).modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside and module is not model.get_output_embeddings()
    ]
    if model.config.model_type in FUSED:
        names.append("out_proj")
    names += PAST_LAYER.get(model.config.model_type, ())
    return names or None


@contextmanager
def ordinary_layers(model: PreTrainedModel, config: peft.PeftConfig) -> Iterator[None]:
    """peft's own layers of IA3 and AdaLoRA over bitsandbytes' give float32 where the base computes in 16 bits; over ours, which
    are linear layers like any other, it is to put its ordinary ones."""
    flags = ("is_loaded_in_8bit", "is_loaded_in_4bit")
    wanted = config.peft_type in (peft.PeftType.IA3, peft.PeftType.ADALORA)
    before = {flag: getattr(model, flag) for flag in flags if wanted and getattr(model, flag, False)}
    for flag in before:
        setattr(model, flag, False)
    try:
        yield
    finally:
        for flag, value in before.items():
            setattr(model, flag, value)
