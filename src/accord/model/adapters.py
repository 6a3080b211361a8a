"""Several adapters on one base, over the peft library."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.config import METHODS, AdaLoraConfig
from accord.errors import ConfigError, ModelError
from accord.model.adapter_files import WEIGHTS, is_factor, saved_config, saved_tensors
from accord.model.lora import use_thin_layers
from accord.model.merging import refuse_changed_base
from accord.model.methods import METHOD_OF, check_dora, ordinary_layers, unsuited_layers
from accord.model.prompts import VirtualTokens, check_virtual_tokens, fit_virtual_tokens
from accord.model.ranks import RankBudget
from accord.model.reading import choose_reading

SCORE = "score.weight"
"""The head of a sequence classifier."""


class AdapterSet:
    """The adapters of one base model. At most one is active at a time, and none outside of `active`.

    Methods that change layers (LoRA, AdaLoRA, IA3) wrap the base's own modules in place, so the trunk that a role holds sees
    whichever adapter is active; one base carries one such method, and any number of adapters of it. Methods with virtual
    tokens leave the base alone and are kept beside it: a role passes its `prompt` to the forward pass.

    Args:
        model: the base.
        base_path: its folder or hub name.
        thin: compute LoRA in the base's type; see `accord.model.lora`.
    """

    def __init__(self, model: PreTrainedModel, base_path: str, thin: bool = True) -> None:
        self.model, self.thin = model, thin
        # Saved adapters name their base; a relative path would be right in one working directory only.
        self.base_path = str(Path(base_path).resolve()) if Path(base_path).exists() else base_path
        self.wrapped: peft.PeftModel | None = None
        self.prompts: dict[str, peft.PeftModel] = {}
        self.budgets: dict[str, RankBudget] = {}
        self._now: tuple[str | None, bool] = (None, False)

    # --- adding ------------------------------------------------------------------------------------------------------

    def add(self, name: str, config: peft.PeftConfig) -> None:
        """Put a fresh adapter on the base.

        Raises:
            ConfigError: no module of the model has a name that the adapter targets, its architecture is not known, or DoRA would
                get the weights of a quantised base wrong.
        """
        if getattr(config, "use_dora", False):
            layers = (
                module for module in self.model.modules() if hasattr(module, "quant_state")
            )  # bitsandbytes' 4-bit ones
            check_dora(f"the adapter {name} is DoRA", self.base_path, (layer.in_features for layer in layers))  # type: ignore[misc]
        if not config.is_prompt_learning:
            config.task_type = task_type(self.model)
        if getattr(config, "target_modules", None) == "all-linear":
            config.exclude_modules = unsuited_layers(self.model)  # type: ignore[attr-defined]
        if self.thin and isinstance(config, peft.LoraConfig) and config.peft_type == peft.PeftType.LORA:
            use_thin_layers(config, self.model)
        try:
            with _expected():
                self._add(name, config)
        except ValueError as error:
            if "Please specify `target_modules`" in str(error):
                kind = self.model.config.model_type
                method = METHOD_OF[str(config.peft_type.value)]  # type: ignore[union-attr]
                raise ConfigError(
                    f"adapter.targets: peft has no table of {method}'s targets for {kind}, so they cannot be chosen by the "
                    "architecture; give adapter.targets and adapter.feedforward (module names such as k_proj, v_proj, down_proj)"
                ) from error
            raise ConfigError(f"adapter.targets: {error}") from error
        config.base_model_name_or_path = self.base_path
        self._switch(*self._now)
        self.model.eval()  # peft's new dropout starts in training mode, and would act in rollouts until the first update

    def _add(self, name: str, config: peft.PeftConfig) -> None:
        if config.is_prompt_learning:
            method = METHOD_OF[str(config.peft_type.value)]  # type: ignore[union-attr]
            check_virtual_tokens(method, self.base_path, choose_reading(self.base_path, self.model), self.model)
            fit_virtual_tokens(config, self.model.config)
            config.task_type = (
                "FEATURE_EXTRACTION"  # peft's class without a head, over a causal model and a classifier alike
            )
            self.prompts[name] = peft.get_peft_model(self.model, config, adapter_name=name).eval()
            return
        with ordinary_layers(self.model, config):
            self._add_layers(name, config)

    def _add_layers(self, name: str, config: peft.PeftConfig) -> None:
        if self.wrapped is None:
            if not self.model.can_generate():  # peft's class for causal models asks for what a classifier lacks
                config.task_type = "FEATURE_EXTRACTION"
            self.wrapped = peft.get_peft_model(self.model, config, adapter_name=name)
            return
        configs = self.wrapped.peft_config
        before = {other: configs[other].inference_mode for other in configs}
        if config.peft_type == peft.PeftType.ADALORA:  # peft allows one that learns; which do is decided by `active`
            for one in configs.values():
                one.inference_mode = True
        self.wrapped.add_adapter(name, config)
        for other, mode in before.items():
            configs[other].inference_mode = mode

    def carries(self, folder: Path) -> bool:
        """Whether a saved adapter can be put beside those that are here: there is no second method that changes layers."""
        config = saved_config(folder)
        if config.is_prompt_learning or self.wrapped is None:
            return True
        return all(other.peft_type == config.peft_type for other in self.wrapped.peft_config.values())

    def load(self, name: str, folder: Path, heads: Collection[str] = ()) -> dict[str, Tensor]:
        """Put a saved adapter on the base; returns the weights of its head by name, none for a causal model's.

        A network that made virtual tokens is not saved with them (by peft neither): they then learn by themselves.

        Args:
            name: which it gets.
            folder: where it lies.
            heads: modules beside the base that the caller takes weights of, such as `score`.

        Raises:
            ModelError: it is of another kind, does not fit, or changes the base by more than factors and these heads.
        """
        config = saved_config(folder)
        if config.peft_type not in METHOD_OF:
            raise ModelError(
                f"{folder} is a {config.peft_type} adapter; roles on a shared base take {', '.join(METHODS)}"
            )
        tensors = saved_tensors(folder)
        refuse_changed_base(folder)
        if isinstance(config, peft.LoraConfig):
            config.init_lora_weights = True  # all weights come from the file, and those of copies from it
        config.modules_to_save, config.task_type = None, task_type(self.model)  # type: ignore[attr-defined]
        config.inference_mode = config.is_prompt_learning
        config.base_model_name_or_path = None  # peft would compare it with how the base was named here
        try:
            self.add(name, config)
        except ConfigError as error:
            if not isinstance(
                error.__cause__, ValueError
            ):  # what peft says: it is the file's fault, and not the recipe's
                raise
            raise ModelError(f"{folder} does not fit its base {self.base_path}: {error.__cause__}") from error
        root = self._root(name)
        kept = {key: tensor for key, tensor in tensors.items() if key == "prompt_embeddings" or is_factor(key)}
        whole = {key: tensor for key, tensor in tensors.items() if key not in kept and key.startswith(root)}
        head = {key.removeprefix(root): t for key, t in whole.items() if _module(key.removeprefix(root)) in heads}
        self._refuse_whole(name, folder, {key: t for key, t in whole.items() if key.removeprefix(root) not in head})
        try:
            result: Any = peft.set_peft_model_state_dict(self._holder(name), dict(kept), adapter_name=name)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ModelError(f"{folder} does not fit its base {self.base_path}: {error}") from error
        odd = [key for key in tensors if key not in kept and not key.startswith(root)]
        missing: list[str] = []
        if name not in self.prompts:  # peft reads virtual tokens into their encoder, which fits or fails
            odd += result.unexpected_keys
            missing = [key for key in result.missing_keys if f".{name}." in f"{key}." and is_factor(key)]
        if odd or missing:
            raise ModelError(
                f"{folder} does not fit its base {self.base_path}: {len(odd)} tensors have no place, "
                f"{len(missing)} are missing, such as {next(iter(odd or missing))}"
            )
        self._switch(*self._now)
        self.model.eval()
        return head

    def _refuse_whole(self, name: str, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Refuse weights of the base that an adapter brings along (peft's `modules_to_save`, biases, new tokens): one base serves
        all roles, so there is no place for them. Those that equal the base's own are no change; peft saves such embeddings."""
        own = self._holder(name).state_dict() if tensors else {}
        other = [key for key, tensor in tensors.items() if key not in own or not _equal(own[key], tensor)]
        if other:
            modules = sorted({_module(key.removeprefix(self._root(name))) for key in other})
            raise ModelError(
                f"{folder} brings weights of whole layers beside its {METHOD_OF[self.config(name).peft_type]} adapter "
                f"({', '.join(modules[:4])}{', ...' if len(modules) > 4 else ''}), and a base that serves several roles cannot "
                f"take them: fold it in with `accord merge {folder} FOLDER` and use FOLDER"
            )

    def copy(self, source: str, target: str, dropout: float | None = None) -> None:
        """Add an adapter with the same shape and weights as another, and with a dropout of its own if one is given."""
        config = self.config(source)
        if dropout is not None and hasattr(config, "lora_dropout"):
            config.lora_dropout = dropout
        config.base_model_name_or_path = None
        self.add(target, config)
        if source in self.prompts:  # with the network that makes the virtual tokens, which peft does not save
            state = self.prompts[source].prompt_encoder[source].state_dict()
            self.prompts[target].prompt_encoder[target].load_state_dict(state)
            return
        with _expected():
            tensors = peft.get_peft_model_state_dict(
                self._holder(source), adapter_name=source, save_embedding_layers=False
            )
            peft.set_peft_model_state_dict(self._holder(target), tensors, adapter_name=target)
        self._switch(*self._now)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters."""
        return (*self.prompts, *(self.wrapped.peft_config if self.wrapped is not None else ()))

    def _holder(self, name: str) -> peft.PeftModel:
        holder = self.prompts.get(name, self.wrapped)
        assert holder is not None
        return holder

    def config(self, name: str) -> Any:
        """A copy of peft's config of an adapter."""
        return copy.deepcopy(self._holder(name).peft_config[name])

    def _root(self, name: str) -> str:
        """Where peft keeps modules of the base in a saved adapter."""
        return "base_model." if name in self.prompts else "base_model.model."

    def prompt(self, name: str | None) -> VirtualTokens | None:
        """The virtual tokens of an adapter, if it is of that kind."""
        return VirtualTokens(self.prompts[name], name) if name in self.prompts else None

    # --- switching ---------------------------------------------------------------------------------------------------

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

    def hold(self, name: str) -> None:
        """Leave one adapter on for good, frozen: for a model of its own, which nobody switches."""
        self._switch(name, False)

    def _switch(self, name: str | None, trains: bool) -> None:
        self._now = (name, trains)
        for other, prompt in self.prompts.items():
            prompt.prompt_encoder.requires_grad_(trains and other == name)
        if self.wrapped is None:
            return
        tuner: Any = self.wrapped.base_model
        if name is None or name in self.prompts:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self.wrapped.set_adapter(name, inference_mode=not trains)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of one adapter by name; empty if there is no such adapter."""
        if name in self.prompts:
            encoder = self.prompts[name].prompt_encoder[name]
            return {f"prompt_encoder.{name}.{key}": parameter for key, parameter in encoder.named_parameters()}
        named = self.wrapped.named_parameters() if self.wrapped is not None else ()
        return {key: parameter for key, parameter in named if f".{name}." in f"{key}." and is_factor(key)}

    # --- AdaLoRA's schedule ------------------------------------------------------------------------------------------

    def plan(self, config: Any, learning: Mapping[str, Any], steps: int) -> None:
        """Set the schedule of fresh AdaLoRA adapters; those that were loaded keep the ranks that they have.

        Args:
            config: the recipe's adapter; nothing is done if it is of another method.
            learning: names of the adapters that learn.
            steps: optimiser steps of the whole run.

        Raises:
            ConfigError: the run is too short.
        """
        if not isinstance(config, AdaLoraConfig) or self.wrapped is None:
            return
        try:
            before, after = config.schedule(steps)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for name in learning:
            own: Any = self.wrapped.peft_config[name]
            if own.peft_type == peft.PeftType.ADALORA and own.rank_pattern is None:
                own.total_step, own.tinit, own.tfinal = steps, before, after
                self.budgets[name] = RankBudget(self.model, own, name)

    def backward_penalty(self, name: str | None, ranks: int) -> dict[str, Tensor]:
        """Add the gradient of an adapter's own penalty, a share for each of so many ranks whose gradients will be added;
        returns the share as a metric."""
        budget = self.budgets.get(name or "")
        if budget is None:
            return {}
        share = budget.penalty() / ranks
        if budget.config.orth_reg_weight:
            (budget.config.orth_reg_weight * share).backward()
        return {"adapter/orthogonality": share.detach()}

    def after_step(self, step: int) -> dict[str, float]:
        """Prune ranks where it is time; between the optimiser's step (number `step`, from 1) and the clearing of gradients."""
        for budget in self.budgets.values():
            budget.allocate(step)
        first = next(iter(self.budgets.values()), None)
        return {} if first is None else {"adapter/rank_mean": first.mean_rank()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the weights."""
        return {
            f"{name}/{key}": tensor for name, budget in self.budgets.items() for key, tensor in budget.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        for name, budget in self.budgets.items():
            start = f"{name}/"
            budget.load_tensors({k.removeprefix(start): tensor for k, tensor in tensors.items() if k.startswith(start)})

    # --- saving ------------------------------------------------------------------------------------------------------

    def save(self, name: str, folder: Path, task: str | None = None, head: Mapping[str, Tensor] | None = None) -> None:
        """Write an adapter that plain peft loads.

        Args:
            name: of the adapter.
            folder: made if need be.
            task: peft's task type, such as SEQ_CLS or TOKEN_CLS, which says over which kind of model peft loads it; by
                default the base's own.
            head: weights of the head that was learnt, by their names in that model, such as `score.weight`.
        """
        holder = self._holder(name)
        live: Any = holder.peft_config[name]
        if name in self.budgets:
            live.rank_pattern = self.budgets[name].kept()
        with _expected():
            tensors = peft.get_peft_model_state_dict(holder, adapter_name=name, save_embedding_layers=False)
        config = self.config(name)
        config.base_model_name_or_path, config.inference_mode = self.base_path, True
        if name in self.budgets:
            live.rank_pattern = None
        head = dict(head or {})
        config.task_type = task or task_type(self.model)
        if head:
            config.modules_to_save = sorted({key.rpartition(".")[0] for key in head})
            tensors |= {self._root(name) + key: tensor.detach() for key, tensor in head.items()}
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


EXPECTED = (
    "You are trying to modify a model with PEFT for a second time",  # every adapter after the first
    "fan_in_fan_out is set to",  # GPT-2's transposed layers, which peft then treats as they are
    r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape",  # a matrix that AdaLoRA left no rank
    # peft compares AdaLoRA's names, and those of stacked experts, as if they were LoRA's modules; both ranks do apply
    "The following (rank|alpha)_pattern keys did not match",
)


@contextmanager
def _expected() -> Iterator[None]:
    """Without peft's warnings about what is meant here."""
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        yield


def _module(key: str) -> str:
    """The module that a tensor belongs to."""
    return key.rpartition(".")[0]


def _equal(own: Tensor, saved: Tensor) -> bool:
    return own.shape == saved.shape and torch.equal(own.cpu(), saved.to(own.dtype))


def task_type(model: PreTrainedModel) -> str:
    """peft's name of what a base does, from which its automatic classes choose theirs."""
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
