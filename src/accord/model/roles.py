"""One base, four roles."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from accord.config import AdapterConfig, CriticConfig, ModelConfig, ReferenceConfig
from accord.errors import ModelError
from accord.model.adapters import SCORE, AdapterSet
from accord.model.classifiers import HEADS, ClassFacts, head_shape, read_labels, refuse_classes, saved_head
from accord.model.critic import read_value_head, saved_critic
from accord.model.device import visiting
from accord.model.folding import LoraLayer, folded, folded_layers
from accord.model.forward import Role, why_whole
from accord.model.heads import ClassHead, ScalarHead, score_head
from accord.model.loading import (
    Location,
    head_size,
    is_scorer,
    load_tokenizer,
    load_weights,
    locate,
    refuse_scorer,
    trunk_of,
    weight_type,
)
from accord.model.merging import check_mergeable, folded_in, has_virtual_tokens, refuse_changed_base
from accord.model.methods import peft_config
from accord.model.prompts import VirtualTokens
from accord.model.sharing import share_layers
from accord.model.tensors import LazyTensor

START = "start"
"""Name of the frozen copy of the adapter that a run started from, or began with."""


FOLD_IN = (
    "so all weights (`adapter: null`) cannot learn from there; give --adapter.method as it was, or start from its base"
)


class Roles:
    """A base model, its adapters, and the roles they play together.

    Attributes:
        tokenizer: the base's.
        model: the base itself (a causal language model).
        adapters: those on the base.
        roles: by name: `policy`, `reference`, `critic`, `reward`, or `reward/<label>` for several rewards.
    """

    def __init__(
        self,
        config: ModelConfig,
        adapter: AdapterConfig | None,
        device: torch.device,
        tensors: Mapping[str, LazyTensor] | None = None,
    ) -> None:
        """Load the base; `adapter` says what will learn on it, `None` that the base itself learns.

        Args:
            config: where it is, and in which precision it is held.
            adapter: see above.
            device: where it goes.
            tensors: the base's weights, in place of those in its folder; see `load_weights`.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded, or all weights should learn from virtual tokens.
        """
        self.config, self.device, self.adapter_config = config, device, adapter
        self.location = locate(config.source)
        if adapter is None and self.location.adapter is not None:
            check_mergeable(self.location.adapter, FOLD_IN)
        elif self.location.adapter is not None:
            refuse_changed_base(self.location.adapter)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(config, self.location)
        self.dtype = weight_type(config, self.location, adapter is None, device)
        self.model: PreTrainedModel = self._load(self.location, trained=adapter is None, tensors=tensors)
        self.adapters = AdapterSet(self.model, self.location.base, thin=getattr(adapter, "dtype", "auto") == "auto")
        self.roles: dict[str, Role] = {}
        if adapter is not None:
            self.model.requires_grad_(False)
            if self.location.adapter is not None:
                self.adapters.load(START, self.location.adapter, HEADS)  # heads are taken by what learns one
        elif self.location.adapter is not None:
            self._fold_in(self.location.adapter)
        self.model.eval()

    def _load(
        self,
        location: Location,
        scorer: bool = False,
        trained: bool = False,
        tensors: Mapping[str, LazyTensor] | None = None,
    ) -> PreTrainedModel:
        return load_weights(
            location.base,
            weight_type(self.config, location, trained, self.device),
            self.device,
            scorer=scorer,
            headless=scorer and location.adapter is not None,
            trust_remote_code=self.config.trust_remote_code,
            quantize="none" if trained else self.config.quantize,
            tensors=tensors,
        )

    def _fold_in(self, folder: Path) -> None:
        """Full fine-tuning from an adapter: the adapter becomes part of the weights that learn."""
        self.model = folded_in(self.model, folder)
        self.model.requires_grad_(True)
        self.adapters = AdapterSet(self.model, self.location.base)

    def _role(self, name: str, trunk: nn.Module, output: Any = None, adapter: str | None = None, **parts: Any) -> Role:
        """A role that shares prefixes if its trunk can."""
        shares = self.config.share_prefixes and why_whole(trunk, parts.get("prompt")) is None
        return Role(name, trunk, output, adapter, shares=shares, **parts)

    # --- adding roles ------------------------------------------------------------------------------------------------

    def add_policy(self, critic: CriticConfig | None = None) -> None:
        """The model that learns; with a value head of its own if the critic sits on its trunk."""
        self._new_adapter("policy")
        on_trunk = critic is not None and critic.source == "policy_trunk"
        saved = on_trunk and critic is not None and critic.start == "saved"
        head = read_value_head(saved_critic(self.config.path, "policy_trunk")) if saved else None
        self.roles["policy"] = self._role(
            "policy",
            trunk_of(self.model),
            output=self._output_layer(),
            adapter="policy" if self.adapter_config is not None else None,
            prompt=self.adapters.prompt("policy"),
            value_head=self._new_head(head) if on_trunk else None,
            trains=True,
        )

    def _new_adapter(self, name: str) -> None:
        """A learning adapter: a copy of the one that the run starts from, with the recipe's dropout, or a fresh one."""
        if self.adapter_config is None:
            return
        if self.location.adapter is not None:
            self.adapters.copy(START, name, getattr(self.adapter_config, "dropout", None))
        else:
            self.adapters.add(name, peft_config(self.adapter_config, self.location.base))

    def _new_head(self, weight: torch.Tensor | None = None) -> ScalarHead:
        return ScalarHead(head_size(self.model), weight).to(self.device)

    def _output_layer(self) -> nn.Linear:
        layer = self.model.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise ModelError(
                f"the output layer of {self.config.path} is a {type(layer).__name__}; log-probabilities are computed from "
                "its weight in tiles, so it must be a plain linear layer: leave it out of adapter.targets"
            )
        return layer

    def add_reference(self, config: ReferenceConfig) -> None:
        """What the KL is measured against; frozen. Call after `add_policy`: virtual tokens change what the model says from
        the start, so the policy's are copied."""
        if config.source == "model":
            assert config.path is not None
            model, prompt = self._own_model(config.path)
            output = model.get_output_embeddings()
            self._place(
                self._role("reference", trunk_of(model), output, shared=False, prompt=prompt, offload=config.offload)
            )
        elif self.adapter_config is None:
            frozen = (
                copy.deepcopy(self.model).requires_grad_(False)
                if config.k is None
                else share_layers(self.model, config.k)
            )
            output = frozen.get_output_embeddings()
            self._place(self._role("reference", trunk_of(frozen), output, shared=False, offload=config.offload))
        else:
            adapter = START if self.location.adapter is not None else None
            if adapter is None and not self.adapter_config.mergeable:
                self.adapters.copy("policy", START)
                adapter = START
            prompt = self.adapters.prompt(adapter)
            self.roles["reference"] = self._role(
                "reference", trunk_of(self.model), self._output_layer(), adapter, prompt=prompt
            )

    def _own_model(
        self, path: str, scorer: bool = False, trained: bool = False
    ) -> tuple[PreTrainedModel, VirtualTokens | None]:
        """A separate model, frozen unless it is to be trained; an adapter is folded into it, or stays on it where its weights are
        not float32 (which would round away what it has learnt), or its virtual tokens are given beside it."""
        location = locate(path)
        if scorer:
            refuse_classes(path, location, "a reward model")
        if scorer and not is_scorer(location, self.config.trust_remote_code):
            raise ModelError(f"{path} is not a reward model: neither a sequence classifier nor an adapter that is one")
        if location.adapter is not None and trained:
            check_mergeable(
                location.adapter,
                "a critic whose weights all learn starts from a whole model; or use critic.source: adapter",
            )
        model = self._load(location, scorer, trained)
        prompt = None
        stays = not trained and (self.config.quantize != "none" or model.dtype != torch.float32)
        if location.adapter is not None and (stays or has_virtual_tokens(location.adapter)):
            adapters = AdapterSet(model.requires_grad_(False), location.base, self.adapters.thin)
            self._set_score(model, adapters.load(START, location.adapter, ("score",)))
            prompt = adapters.prompt(START)
            adapters.hold(START)
        elif location.adapter is not None:
            model = folded_in(model, location.adapter)
        return model.eval().requires_grad_(trained), prompt

    @staticmethod
    def _set_score(model: PreTrainedModel, head: Mapping[str, Tensor]) -> None:
        """Give a classifier the score head that came with an adapter."""
        if SCORE in head:
            layer: Any = model.score
            layer.weight.data.copy_(head[SCORE])

    def add_reward(self, path: str, name: str = "reward", stepwise: bool = False, offload: bool = False) -> None:
        """A frozen reward model: an adapter on the shared base if it was trained on that base, else its own model, which may
        wait in main memory (`offload`) while it is not asked."""
        location = locate(path)
        if location.adapter is not None and self.adapter_config is not None and self._shares(location):
            refuse_classes(path, location, "a reward model")
            adapter = name.replace("/", "_").replace(".", "_")
            weight = self.adapters.load(adapter, location.adapter, ("score",)).get(SCORE)
            if weight is None:
                raise ModelError(f"{path} is an adapter without a score head, so it is not a reward model")
            head = self._new_head(weight).requires_grad_(False)
            prompt = self.adapters.prompt(adapter)
            trunk = trunk_of(self.model)
            self.roles[name] = self._role(
                name, trunk, adapter=adapter, score_head=head, stepwise=stepwise, prompt=prompt
            )
            return
        model, prompt = self._own_model(path, scorer=True)
        head = score_head(model).to(self.device).requires_grad_(False)
        trunk = trunk_of(model)
        self._place(
            self._role(name, trunk, score_head=head, shared=False, stepwise=stepwise, prompt=prompt, offload=offload)
        )

    def _place(self, role: Role) -> None:
        """Add a role with weights of its own, and let them wait where they are to."""
        self.roles[role.name] = role
        for part in role.parts if role.offload else ():
            part.to("cpu")

    def _shares(self, location: Location) -> bool:
        """Whether an adapter can be put on the shared base: it was trained there, and no other kind of layers is in the way."""
        assert location.adapter is not None
        return self._is_base(location.base) and self.adapters.carries(location.adapter)

    def _is_base(self, base: str) -> bool:
        same_path = Path(base).exists() and Path(base).resolve() == Path(self.location.base).resolve()
        return base == self.location.base or same_path

    def add_scorer(self, stepwise: bool = False) -> None:
        """A reward model that learns: own adapter (or the base itself) and a score head, which starts at 0; or, going on from
        an adapter that is a reward model, as that one's.

        Raises:
            ModelError: the base's family has no sequence classifier in transformers that could be saved.
        """
        refuse_scorer(self.location.base, self.model.config)
        self._new_adapter("reward")
        adapter = "reward" if self.adapter_config is not None else None
        start = self.location.adapter
        goes_on = start is not None and is_scorer(self.location) and read_labels(self.location) is None
        head = self._new_head(saved_head(start, "score")["weight"] if start is not None and goes_on else None)
        trunk, prompt = trunk_of(self.model), self.adapters.prompt(adapter)
        self.roles["reward"] = self._role(
            "reward", trunk, adapter=adapter, score_head=head, stepwise=stepwise, trains=True, prompt=prompt
        )

    def add_classifier(self, facts: ClassFacts) -> None:
        """A classifier that learns: own adapter (or the base itself) and a head that starts at random; or, going on from an
        adapter with the same labels, from its head.

        Raises:
            ModelError: the base's family has no such classifier in transformers that could be saved.
        """
        shape = head_shape(self.location.base, self.model.config, facts.level)
        self._new_adapter("classifier")
        adapter = "classifier" if self.adapter_config is not None else None
        spread = float(getattr(self.model.config.get_text_config(), "initializer_range", None) or 0.02)
        head = ClassHead(head_size(self.model), len(facts.labels), spread, shape.bias)
        if self.location.adapter is not None and read_labels(self.location) == facts:
            head.load_state_dict(saved_head(self.location.adapter, shape.name))
        trunk, prompt = trunk_of(self.model), self.adapters.prompt(adapter)
        self.roles["classifier"] = self._role(
            "classifier", trunk, adapter=adapter, class_head=head.to(self.device), trains=True, prompt=prompt
        )

    def add_critic(self, config: CriticConfig) -> None:
        """What predicts scores, unless it sits on the policy's trunk; call after the rewards, which it may start from."""
        if config.source == "policy_trunk":
            return
        reward = next((role for name, role in self.roles.items() if name.startswith("reward")), None)
        if config.source == "model":
            assert config.path is not None
            scorer = config.start == "reward" or is_scorer(locate(config.path), self.config.trust_remote_code)
            model, _ = self._own_model(config.path, scorer, trained=True)
            head = score_head(model).to(self.device) if scorer else ScalarHead(head_size(model)).to(self.device)
            self.roles["critic"] = self._role("critic", trunk_of(model), value_head=head, shared=False, trains=True)
            return
        if config.start == "reward":
            if reward is None or not reward.shared or reward.adapter is None or reward.score_head is None:
                raise ModelError(
                    "critic.start: reward copies an adapter, but the reward model is not an adapter on the policy's base "
                    f"{self.location.base}; use critic: {{source: model, path: <the reward model>}}"
                )
            self.adapters.copy(reward.adapter, "critic")
            head = self._new_head(reward.score_head.weight)
        elif config.start == "saved":
            head = self._new_head(self._load_critic())
        else:
            self._new_adapter("critic")
            head = self._new_head()
        prompt = self.adapters.prompt("critic")
        self.roles["critic"] = self._role(
            "critic", trunk_of(self.model), adapter="critic", value_head=head, trains=True, prompt=prompt
        )

    def plan(self, steps: int) -> None:
        """Tell adapters that change while they learn how many optimiser steps there will be.

        Raises:
            ConfigError: too few for the adapter's schedule.
        """
        learning = {role.adapter: role for role in self.roles.values() if role.trains and role.adapter is not None}
        self.adapters.plan(self.adapter_config, learning, steps)

    @property
    def virtual_tokens(self) -> int:
        """The most virtual tokens that a role puts before each sequence; they take positions too."""
        return max((role.prompt.tokens for role in self.roles.values() if role.prompt is not None), default=0)

    def _load_critic(self) -> torch.Tensor:
        """Put the critic's adapter that was saved beside the policy on the base; returns the weight of its head."""
        folder = saved_critic(self.config.path, "adapter")
        location = locate(str(folder))
        weight = self.adapters.load("critic", folder, ("score",)).get(SCORE) if self._is_base(location.base) else None
        if weight is None:
            raise ModelError(f"{folder} is no critic of {self.location.base}: an adapter on {location.base}")
        return weight

    # --- using roles -------------------------------------------------------------------------------------------------

    @contextmanager
    def use(self, name: str, train: bool = False) -> Iterator[Role]:
        """Switch to a role; with `train`, its weights take gradients, and backward must run inside."""
        role = self.roles[name]
        if not role.shared:
            with visiting(role.parts if role.offload else (), self.device):
                yield role
            return
        with self.adapters.active(role.adapter, trains=train and role.trains):
            yield role

    def foldable(self, name: str) -> list[LoraLayer] | None:
        """The layers that a role's adapter changes, if it can be folded into all of them; see `folding`."""
        role = self.roles[name]
        return folded_layers(role.trunk, role.adapter) if role.shared and role.adapter is not None else None

    @contextmanager
    def folded(self, name: str, seed: int) -> Iterator[None]:
        """A role's adapter is part of its base for a while, and off; inside `use`. See `folding.folded`."""
        adapter, layers = self.roles[name].adapter, self.foldable(name)
        assert adapter is not None and layers is not None
        with folded(layers, adapter, seed), self.adapters.active(None, trains=False):
            yield

    def trainable(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of a role that learn, by a name that stays the same from run to run."""
        role = self.roles[name]
        if not role.trains:
            return {}
        if not role.shared or role.adapter is None:
            return role.learnt()
        own = {f"adapter.{key}": parameter for key, parameter in self.adapters.parameters(role.adapter).items()}
        return own | role.heads()

    def train_mode(self, on: bool) -> None:
        """Dropout on or off, in everything that learns."""
        for role in self.roles.values():
            if role.trains:
                role.trunk.train(on)
                if role.prompt is not None:
                    role.prompt.encoder.train(on)
