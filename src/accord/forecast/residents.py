"""What stays in memory all through a run: weights of each role, and the optimiser's state of those that learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accord.config import Recipe
from accord.errors import ModelError
from accord.forecast.learning import Adapter, largest_linear, largest_matrix, learning_adapter, optimizer_bytes
from accord.forecast.models import Found, find_model
from accord.forecast.shapes import Architecture
from accord.forecast.tape import FLOAT
from accord.machine import fast_types

ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
STATEFUL = ("mamba", "jamba")
"""Families with state-space layers."""
VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
"""peft's names of what stands beside the layers."""
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a number in NF4: half a byte, one for the scale of 64 numbers, and a float32 for 256 such scales (QLoRA's double
quantisation, Dettmers et al. 2023, arXiv:2305.14314, section 3)."""


@dataclass(frozen=True)
class Term:
    """Some bytes, what they are and whose."""

    role: str
    what: str
    bytes: int


@dataclass(frozen=True)
class Load:
    """One model that is read: bytes that stay, and bytes of its file that are in memory beside them meanwhile."""

    bytes: int
    mapped: int


@dataclass(frozen=True)
class Learner:
    """A role whose weights learn."""

    role: str
    shape: Architecture
    item: int
    """Bytes of a number of its base."""
    adapter: Adapter | None
    """`None`: all weights."""
    frozen_layers: int = 0
    quantized: int = 0
    """Bits of the base; 0: not quantised."""
    head: int = 0
    """Numbers of its head."""
    parameters: int = 0
    """Numbers that learn, the head's aside."""
    logprobs: bool = True
    """Whether it reads the output layer."""


@dataclass
class Residents:
    """All that stays."""

    weights: list[Term] = field(default_factory=list)
    optimizer: list[Term] = field(default_factory=list)
    offloaded: list[Term] = field(default_factory=list)
    """Weights that an accelerator holds only while they score."""
    once: list[Term] = field(default_factory=list)
    """Weights that score before the first step, and are let go."""
    learners: list[Learner] = field(default_factory=list)
    frozen: list[Learner] = field(default_factory=list)
    """Roles that score, as passes without gradients."""
    loads: list[Load] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    positions: int | None = None
    """Most tokens of a sequence of the model that learns, where it has a bound."""


def weight_bytes(shape: Architecture, item: int, quantize: str = "none") -> int:
    """Bytes of a model's weights. Quantised are its linear layers; embeddings, norms and the output layer are not.

    Args:
        shape: of the model.
        item: bytes of a number that is not quantised: 2 of bfloat16, 4 of float32.
        quantize: `none`, `int8` (a byte, and a float32 for each row: LLM.int8, arXiv:2208.07339) or `nf4`.
    """
    if quantize == "none":
        return shape.parameters * item
    packed = shape.linear_parameters
    rows = sum(matrix.outputs for layer in shape.layers for matrix in layer.matrices.values())
    rest = (shape.parameters - packed) * item
    return rest + (packed + rows * FLOAT if quantize == "int8" else int(packed * NF4))


def quantization(recipe: Recipe) -> str:
    """`model.quantize` of the recipe; `none` where recipes have no such key."""
    return str(getattr(recipe.model, "quantize", "none"))


def item_of(dtype: str, shape: Architecture, trained: bool, cpu: bool = False) -> int:
    """Bytes of a weight in memory: as `accord.model.loading.weight_type` chooses.

    Args:
        dtype: `model.dtype`.
        shape: of the model.
        trained: whether its weights learn.
        cpu: whether this machine's processor computes with them.
    """
    if dtype != "auto":
        return ITEMS[dtype]
    slow = cpu and shape.dtype not in fast_types()
    return FLOAT if trained or slow else ITEMS.get(shape.dtype, FLOAT)


def residents(recipe: Recipe, cpu: bool = False) -> Residents:
    """Weights and optimiser state of all roles of a recipe, on this machine's processor or on another device.

    Raises:
        ModelError: a model is not there.
    """
    return _Plan(recipe, cpu).make()


def _check_quantizable(found: Found) -> None:
    """Refuse what a run refuses; as `accord.model.loading.check_quantizable`.

    Raises:
        ModelError: with the reason.
    """
    reason = None
    if found.quantized:
        reason = "its checkpoint is quantised already"
    elif found.shape.family in STATEFUL:
        reason = "its state-space layers read their weights past the layer, so they would read codes"
    elif any(layer.experts is not None for layer in found.shape.layers):
        reason = "its experts are no linear layers in transformers 5, so most of it would stay as it is"
    if reason is not None:
        raise ModelError(f"model.quantize: {found.base} cannot be quantised: {reason}; use model.quantize: none")


class _Plan:
    def __init__(self, recipe: Recipe, cpu: bool) -> None:
        self.recipe, self.kind, self.cpu = recipe, recipe.algorithm.type, cpu
        self.base = find_model(recipe.model.source)
        self.held = Residents(positions=self.base.positions)
        self.shape = self.base.shape
        self.quantize = quantization(recipe)
        self.full = recipe.adapter is None
        self.item = self._item(self.base, trained=self.full)
        self.adapter = None if self.full else learning_adapter(recipe.adapter, self.shape, self.base.adapter_config)
        self.bits = {"int8": 8, "nf4": 4}.get(self.quantize, 0)

    def _item(self, found: Found, trained: bool = False) -> int:
        return item_of(self.recipe.model.dtype, found.shape, trained, self.cpu)

    def make(self) -> Residents:
        role = {"reward": "reward", "classify": "classifier"}.get(self.kind, "policy")
        self._load("base", self.base, self.item, self.quantize)
        self._note(self.base)
        critic = getattr(self.recipe, "critic", None)
        on_trunk = critic is not None and critic.source == "policy_trunk"
        head = self.shape.embedding if role != "policy" or on_trunk else 0
        self._learner(role, head)
        if self.base.adapter is not None and not self.full:
            self._term("reference", "adapters", self.base.adapter_parameters * FLOAT)
        self._reference()
        self._rewards()
        if critic is not None and not on_trunk:
            self._critic(critic)
        self.held.facts |= {
            "model": f"{self.recipe.model.source} ({self.shape.parameters / 1e6:,.1f}M parameters, {self._type()})",
            "learns": f"{sum(x.parameters + x.head for x in self.held.learners) / 1e6:,.2f}M parameters",
        }
        return self.held

    def _type(self) -> str:
        names = {4: "float32", 2: "bfloat16" if self.shape.dtype != "float16" else "float16", 8: "float64"}
        return names[self.item] if self.quantize == "none" else f"{self.quantize} over {names[self.item]}"

    def _note(self, found: Found) -> None:
        if found.quantized:
            self.held.notes.append(
                f"{found.base} holds a quantised checkpoint, whose codes the forecast does not know: weights are counted whole"
            )
        why = found.shape.approximate
        if why is not None:
            self.held.notes.append(f"approximate: {why}")

    def _term(self, role: str, what: str, size: float) -> None:
        if size:
            self.held.weights.append(Term(role, what, int(size)))

    def _load(
        self, role: str, found: Found, item: int, quantize: str = "none", offload: bool = False, once: bool = False
    ) -> None:
        """A model's weights; a file of another type than is wanted is in memory, too, while it is read.

        `once`: they are asked before the first step, and then let go.
        """
        if quantize != "none":
            _check_quantizable(found)
        size = weight_bytes(found.held, item, quantize)
        stored = ITEMS.get(found.shape.dtype, FLOAT)
        mapped = 0 if stored == item else found.shape.parameters * stored
        if quantize != "none":  # tensor by tensor: the one that is being placed, as it was read
            mapped = stored * (largest_matrix(found.shape) if stored != item else largest_linear(found.shape))
        if once:
            self.held.once.append(Term(role, "base", size))
        elif offload:
            self.held.offloaded.append(Term(role, "base", size))
        else:
            self._term(role, "base", size)
        self.held.loads.append(Load(size, mapped))

    def _learner(self, role: str, head: int, name: str = "adapters") -> None:
        """The adapter (or all weights) of a role on the base, its head, and the optimiser's state."""
        shape, adapter = self.shape, self.adapter
        shared = self._shared()
        held = shape.parameters - (0 if role == "policy" else shape.output_parameters)  # a scorer has no output layer
        parameters = held - shared if adapter is None else adapter.parameters
        item = self.item if adapter is None else FLOAT
        if adapter is not None:
            self._term(role, "adapters", parameters * item)
        self._optimized(role, parameters, item, head)
        logprobs = role == "policy"
        frozen = self._k() if adapter is None else 0
        self.held.learners.append(
            Learner(role, shape, self.item, adapter, frozen, self.bits, head, parameters, logprobs)
        )

    def _optimized(self, role: str, parameters: int, item: int, head: int) -> None:
        chosen = self.recipe.train.optimizer
        self._term(role, "heads", head * FLOAT)
        state = parameters * optimizer_bytes(chosen.name, chosen.keywords, item)
        state += head * optimizer_bytes(chosen.name, chosen.keywords, FLOAT)
        self.held.optimizer.append(Term(role, "optimiser", int(state)))

    def _k(self) -> int:
        reference = getattr(self.recipe, "reference", None)
        return int(getattr(reference, "k", None) or 0)

    def _shared(self) -> int:
        """Numbers that policy and reference hold in common, and that do not learn."""
        k = self._k()
        if not k:
            return 0
        shape = self.shape
        positions = shape.other if shape.family in ("gpt2", "opt") else 0
        return shape.vocabulary * shape.embedding + sum(layer.parameters for layer in shape.layers[:k]) + positions

    def _reference(self) -> None:
        """What the policy is compared with. DPO and its kin ask it once, before the first step."""
        config = getattr(self.recipe, "reference", None)
        once = self.kind == "dpo"
        if config is None:
            return
        if config.source == "model":
            found = find_model(config.path)
            item = self._item(found)
            self._load("reference", found, item, self.quantize, getattr(config, "offload", False), once)
            self.held.frozen.append(Learner("reference", found.shape, item, None))
            return
        self.held.frozen.append(Learner("reference", self.shape, self.item, None, quantized=self.bits))
        if self.full and not (once and config.source == "start"):
            size = (self.shape.parameters - self._shared()) * self.item
            place = self.held.offloaded if getattr(config, "offload", False) else self.held.weights
            place.append(Term("reference", "base", size))
            self.held.loads.append(Load(size, 0))
        elif self.adapter is not None and self.base.adapter is None and self._virtual():
            self._term("reference", "adapters", self.adapter.parameters * FLOAT)

    def _virtual(self) -> bool:
        """Whether the adapter cannot be turned off: the reference is then a copy of it as it began."""
        return self.recipe.adapter is not None and not self.recipe.adapter.mergeable

    def _carries(self, found: Found) -> bool:
        """Whether a saved adapter can lie beside the recipe's: as `AdapterSet.carries`."""
        own, kind = self.recipe.adapter, found.adapter_config.get("peft_type")
        return own is not None and (kind in VIRTUAL or not own.mergeable or kind == own.method.upper())

    def _rewards(self) -> None:
        for term in getattr(self.recipe, "reward", ()):
            for path, role in zip(term.paths, term.roles, strict=True):
                found = find_model(path)
                shares = found.adapter is not None and found.base == self.base.base and self._carries(found)
                name = role.rpartition("/")[2] if role.startswith("reward/") else role
                if shares:
                    self._term(name, "adapters", found.adapter_parameters * FLOAT)
                    self._term(name, "heads", found.shape.embedding * FLOAT)
                    self.held.frozen.append(
                        Learner(name, self.shape, self.item, None, quantized=self.bits, logprobs=False)
                    )
                    continue
                item = self._item(found)
                self._load(name, found, item, self.quantize, getattr(term, "offload", False))
                self._note(found)
                self.held.frozen.append(Learner(name, found.shape, item, None, logprobs=False))
            if term.classifier is not None:
                self.held.notes.append(
                    f"reward {term.label}: the classifier {term.classifier.model} comes on top; its family is not forecast"
                )

    def _critic(self, config: Any) -> None:
        if config.source == "adapter":
            self._learner("critic", self.shape.embedding)
            return
        found = find_model(config.path)
        item = self._item(found, trained=True)
        self._load("critic", found, item)
        self._note(found)
        without_output = found.shape.parameters - found.shape.output_parameters
        self._optimized("critic", without_output, item, found.shape.embedding)
        self.held.learners.append(
            Learner("critic", found.shape, item, None, 0, 0, found.shape.embedding, without_output, logprobs=False)
        )
