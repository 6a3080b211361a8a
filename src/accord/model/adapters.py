"""Several adapters on one base, over the peft library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.config import LoraConfig, ModelConfig
from accord.errors import ConfigError, ModelError
from accord.model.loading import distinct_padding, is_scorer, load_tokenizer, load_weights, locate, quiet_progress
from accord.model.score_facts import read_facts, write_facts

WEIGHTS = "adapter_model.safetensors"
HEAD_KEY = "base_model.model.score.weight"
"""Where peft keeps the head of a sequence classifier."""


class AdapterSet:
    """The adapters of one base model. At most one is active at a time, and none outside of `active`.

    The base's own modules are wrapped in place by peft, so the trunk that a role holds sees whichever adapter is active.
    """

    def __init__(self, model: PreTrainedModel, base_path: str) -> None:
        self.model = model
        # Saved adapters name their base; a relative path would be right in one working directory only.
        self.base_path = str(Path(base_path).resolve()) if Path(base_path).exists() else base_path
        self.wrapped: peft.PeftModel | None = None
        self._now: tuple[str | None, bool] = (None, False)

    def add(self, name: str, config: peft.LoraConfig) -> None:
        """Put a fresh adapter on the base.

        Raises:
            ConfigError: no module of the model has a name that the adapter targets.
        """
        config.base_model_name_or_path = self.base_path
        try:
            if self.wrapped is None:
                self.wrapped = peft.get_peft_model(self.model, config, adapter_name=name)
            else:
                self.wrapped.add_adapter(name, config)
        except ValueError as error:
            raise ConfigError(f"adapter.targets: {error}") from error
        self._switch(*self._now)
        self.model.eval()  # peft's new dropout starts in training mode, and would act in rollouts until the first update

    def load(self, name: str, folder: Path) -> Tensor | None:
        """Put a saved adapter on the base; returns the weight of its score head if it is a sequence classifier's."""
        config = peft.PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, peft.LoraConfig):
            raise ModelError(f"{folder} is a {config.peft_type} adapter; roles on a shared base take LoRA")
        config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", False
        self.add(name, config)
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"{folder} holds an adapter's config, but not its weights: there is no {WEIGHTS}")
        tensors = load_file(folder / WEIGHTS)
        head = tensors.pop(HEAD_KEY, None)
        result: Any = peft.set_peft_model_state_dict(self.wrapped, tensors, adapter_name=name)
        missing = [key for key in result.missing_keys if f".{name}." in key]
        if result.unexpected_keys or missing:
            raise ModelError(
                f"{folder} does not fit its base {self.base_path}: {len(result.unexpected_keys)} tensors have no place, "
                f"{len(missing)} are missing, such as {next(iter(result.unexpected_keys or missing))}"
            )
        return head

    def copy(self, source: str, target: str) -> None:
        """Add an adapter with the same shape and weights as another."""
        assert self.wrapped is not None
        self.add(target, self._config(source))
        tensors = peft.get_peft_model_state_dict(self.wrapped, adapter_name=source)
        peft.set_peft_model_state_dict(self.wrapped, tensors, adapter_name=target)

    def _config(self, name: str) -> peft.LoraConfig:
        assert self.wrapped is not None
        return cast("peft.LoraConfig", copy.deepcopy(self.wrapped.peft_config[name]))

    @contextmanager
    def active(self, name: str | None, trains: bool) -> Iterator[None]:
        """Run with one adapter on, or with all off; afterwards all is as before. Only parameters of an active adapter that
        trains take gradients.

        Backward must run inside too: autograd drops the gradient of a parameter that no longer requires one.
        """
        before = self._now
        self._switch(name, trains)
        try:
            yield
        finally:
            self._switch(*before)

    def _switch(self, name: str | None, trains: bool) -> None:
        self._now = (name, trains)
        if self.wrapped is None:
            return
        tuner: Any = self.wrapped.base_model
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self.wrapped.set_adapter(name, inference_mode=not trains)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of one adapter by name; empty if there is no such adapter."""
        part = f".{name}."
        named = self.wrapped.named_parameters() if self.wrapped is not None else ()
        return {key: parameter for key, parameter in named if part in key and "lora_" in key}

    def save(self, name: str, folder: Path, head: Tensor | None = None) -> None:
        """Write an adapter that plain peft loads: over a causal model, or over a classifier if a score head is given."""
        assert self.wrapped is not None
        tensors = peft.get_peft_model_state_dict(self.wrapped, adapter_name=name, save_embedding_layers=False)
        config = self._config(name)
        config.base_model_name_or_path, config.inference_mode = self.base_path, True
        if head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            tensors[HEAD_KEY] = head.detach().reshape(1, -1)
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


def lora_config(config: LoraConfig) -> peft.LoraConfig:
    """The recipe's adapter as peft's config."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft computes alpha / r, whatever the type
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def merge(adapter: Path, output: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Path:
    """Fold an adapter into its base and save an ordinary model: W + (alpha / r) B A, added in float32, stored in `dtype`.

    A reward model's adapter gives a sequence-classification model.

    Raises:
        ModelError: the folder is not an adapter, or its base cannot be loaded.
    """
    location = locate(str(adapter))
    if location.adapter is None:
        raise ModelError(
            f"{adapter} is a whole model, so there is nothing to merge: it can be used as model.path as it is"
        )
    scorer = is_scorer(location)
    cpu = torch.device("cpu")
    config = ModelConfig(path=str(adapter), trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(config, location)
    base = load_weights(
        location.base, torch.float32, cpu, scorer=scorer, headless=scorer, trust_remote_code=trust_remote_code
    )
    merged = peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    if scorer:
        merged.config.pad_token_id = distinct_padding(tokenizer)
    with quiet_progress():
        merged.to(dtype).save_pretrained(output)
    tokenizer.save_pretrained(output)
    facts = read_facts(location) if scorer else None
    if facts is not None:
        write_facts(output, facts)
    return output
