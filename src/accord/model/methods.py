"""The recipe's adapter as peft's config, and what of a model it leaves alone."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel

from accord.config import AdaLoraConfig, AdapterConfig, IA3Config, LoraConfig, PrefixConfig, PromptConfig, PTuningConfig
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


def _targets(targets: str | tuple[str, ...] | None) -> Any:
    return list(targets) if isinstance(targets, tuple) else targets


FUSED = {
    *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"),  # of these peft refuses it too
    *("bamba", "granitemoehybrid", "zamba2"),
}
"""Families that hand the weight of `out_proj` to a kernel instead of calling the layer."""


def unsuited_layers(model: PreTrainedModel) -> list[str] | None:
    """Linear layers that `all-linear` leaves out: those of an image tower, which no text reaches, and `out_proj` of
    state-space layers whose fused kernels read its weight past any adapter."""
    inside = {id(module) for module in trunk_of(model).modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside and module is not model.get_output_embeddings()
    ]
    if model.config.model_type in FUSED:
        names.append("out_proj")
    return names or None
