"""The adapter that learns: one section for each method, keyed on `method`; `lora` when it is not given."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from accord.config.base import Section


class Adapter(Section):
    """What the sections of all methods share."""

    learning_rate_factor: ClassVar[float] = 1.0
    """The recipe's learning rate for LoRA is multiplied by this."""
    mergeable: ClassVar[bool] = True
    """Whether the adapter can be folded into the base."""

    def describe(self) -> str:
        """One phrase for the header of a run."""
        raise NotImplementedError


class LoraConfig(Adapter):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W + (alpha / r) B A. Defaults: rank and scale of the QLoRA and TRL
    examples, all linear layers (Dettmers et al. 2023, arXiv:2305.14314, section 4: needed to match full fine-tuning)."""

    method: Literal["lora"] = "lora"
    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input, in the updates of `sft`, `csft`, `reward`, `classify`, `rejection` and of the
    methods on pairs (`dpo`, `orpo`, `simpo`, `cpo`); off in all others. The reference has none."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names to adapt (a text is a regular expression), or `all-linear`: every linear layer but the output layer."""
    rslora: bool = False
    """Rank-stabilised: scale alpha / sqrt(r), so that a high rank still learns (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Magnitude and direction of the weights learn apart (Liu et al. 2024, arXiv:2402.09353); slower."""
    dtype: Literal["auto", "float32"] = "auto"
    """Type in which its products are computed. `auto`: the base's own, as autocast and QLoRA do; the adapter itself stays in
    float32 and so do its optimiser's steps. `float32`: as plain peft computes; slower over a bfloat16 base. DoRA, dropout while
    it acts and quantised bases are computed as peft computes them in any case."""

    def describe(self) -> str:
        """One phrase for the header of a run."""
        kind = ("rank-stabilised " if self.rslora else "") + ("DoRA" if self.dora else "lora")
        return f"{kind} r={self.r}"


class AdaLoraConfig(Adapter):
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): updates P E Q whose ranks are pruned, least important first, from `init_r`
    to `target_r` on average, while the run goes on. The loop drives the schedule."""

    # The paper's experiments (appendix) use 5e-4 to 2e-3, a few times what the same authors give LoRA.
    learning_rate_factor: ClassVar[float] = 5.0

    method: Literal["adalora"] = "adalora"
    init_r: int = Field(12, ge=2)
    """Rank of each matrix at the start (peft: 12; the paper: 1.5 times the target)."""
    target_r: int = Field(8, ge=1)
    """Mean rank over all matrices at the end (peft: 8)."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / init_r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input, in the updates of `sft`, `csft`, `reward`, `classify`, `rejection` and of the
    methods on pairs (`dpo`, `orpo`, `simpo`, `cpo`); off in all others. The reference has none."""
    targets: str | tuple[str, ...] = "all-linear"
    """Module names to adapt (a text is a regular expression), or `all-linear`: every linear layer but the output layer."""
    warmup: float = Field(0.1, ge=0)
    """Before the first rank is pruned: a share of all steps if below 1, else a number of steps (own choice)."""
    final: float = Field(0.3, ge=0)
    """After the last rank is pruned: a share of all steps if below 1, else a number of steps (own choice)."""
    every: int = Field(1, ge=1)
    """Steps from one pruning to the next (peft: 1)."""
    orthogonality: float = Field(0.5, ge=0)
    """Weight of the penalty that keeps P and Q orthogonal, once an optimiser step (peft: 0.5; the paper: 0.1 to 0.5)."""
    beta1: float = Field(0.85, gt=0, lt=1)
    """Smoothing of the importance (the paper: 0.85)."""
    beta2: float = Field(0.85, gt=0, lt=1)
    """Smoothing of the importance's uncertainty (the paper: 0.85)."""

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        if self.target_r >= self.init_r:
            raise ValueError(
                f"target_r ({self.target_r}) must be below init_r ({self.init_r}), or there is nothing to prune; "
                "`method: lora` has a fixed rank"
            )
        if self.warmup < 1 and self.final < 1 and self.warmup + self.final >= 1:
            raise ValueError(
                f"warmup ({self.warmup:g}) and final ({self.final:g}) leave no steps for pruning between them"
            )
        return self

    def schedule(self, steps: int) -> tuple[int, int]:
        """Steps before the first pruning and after the last, for a run of so many steps.

        Raises:
            ValueError: none are left between them.
        """
        before, after = (int(part * steps) if part < 1 else int(part) for part in (self.warmup, self.final))
        if before >= steps - after:
            raise ValueError(
                f"adapter.warmup ({before} steps) and adapter.final ({after}) leave none of the run's {steps} optimiser steps "
                "for pruning; lower them, train longer, or use --adapter.method lora"
            )
        return before, after

    def describe(self) -> str:
        """One phrase for the header of a run."""
        return f"adalora r={self.init_r} to {self.target_r}"


class IA3Config(Adapter):
    """IA3 (Liu et al. 2022, arXiv:2205.05638): one learnt factor for each key, value and feed-forward feature."""

    # The paper: 3e-3, with Adafactor.
    learning_rate_factor: ClassVar[float] = 15.0

    method: Literal["ia3"] = "ia3"
    targets: str | tuple[str, ...] | None = None
    """Module names to scale; by default keys, values and the last feed-forward layer, by peft's table of architectures."""
    feedforward: tuple[str, ...] | None = None
    """Those of `targets` whose input is scaled instead of their output; goes with `targets`."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.targets is None) != (self.feedforward is None):
            raise ValueError(
                "`targets` and `feedforward` go together: `feedforward` names those of `targets` whose input is scaled "
                "(`[]` for none); give both, or neither for the architecture's own"
            )
        if isinstance(self.targets, tuple) and not set(self.feedforward or ()) <= set(self.targets):
            raise ValueError(
                f"`feedforward` {list(self.feedforward or ())} must be among `targets` {list(self.targets)}"
            )
        return self

    def describe(self) -> str:
        """One phrase for the header of a run."""
        return "ia3"


class PromptConfig(Adapter):
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): embeddings of virtual tokens before each sequence."""

    # 3e-2 for SFT, as in peft's prompt tuning examples; the paper: 0.3, with Adafactor.
    learning_rate_factor: ClassVar[float] = 150.0
    mergeable: ClassVar[bool] = False

    method: Literal["prompt"] = "prompt"
    tokens: int = Field(20, ge=1)
    """Virtual tokens (the paper finds 20 to 100 enough)."""
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    """How they start: `random` numbers, embeddings of random tokens of the `vocabulary` (the paper: better than random), or
    those of a `text`."""
    text: str | None = Field(None, min_length=1)
    """For `init: text`; repeated or cut to the number of tokens."""

    @model_validator(mode="before")
    @classmethod
    def _text_means_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("text") is not None and "init" not in value:
            return {**value, "init": "text"}
        return value

    @model_validator(mode="after")
    def _text_fits(self) -> Self:
        if (self.init == "text") != (self.text is not None):
            raise ValueError("`text` goes with `init: text`, and `init: text` needs a `text`")
        return self

    def describe(self) -> str:
        """One phrase for the header of a run."""
        return f"prompt tuning, {self.tokens} virtual tokens"


class PrefixConfig(Adapter):
    """Prefix tuning (Li and Liang 2021, arXiv:2101.00190): keys and values of virtual tokens in every layer. With a score or
    classification head on top this is p-tuning v2 (Liu et al. 2021, arXiv:2110.07602)."""

    # 1e-2 for SFT, as in peft's prefix tuning examples and within p-tuning v2's range (5e-3 to 1e-2 without projection).
    learning_rate_factor: ClassVar[float] = 50.0
    mergeable: ClassVar[bool] = False

    method: Literal["prefix"] = "prefix"
    tokens: int = Field(20, ge=1)
    """Virtual tokens (the paper: 10 for tables to text, 200 for summaries)."""
    init: Literal["random", "zero"] = "random"
    """How keys and values start: `random` (peft's default, which disturbs the model at first) or `zero`."""
    projection: bool = False
    """Learn the prefix through a two-layer network, which is dropped when the adapter is saved (the paper: steadier)."""
    hidden: int | None = Field(None, ge=1)
    """Width of that network; by default that of a layer's keys."""

    @model_validator(mode="after")
    def _hidden_fits(self) -> Self:
        if self.hidden is not None and not self.projection:
            raise ValueError("`hidden` is the width of the projection, so it goes with `projection: true`")
        return self

    def describe(self) -> str:
        """One phrase for the header of a run."""
        return f"prefix tuning, {self.tokens} virtual tokens{', projected' if self.projection else ''}"


class PTuningConfig(Adapter):
    """P-tuning (Liu et al. 2021, arXiv:2103.10385): prompt tuning whose embeddings come out of a small network. The network is
    dropped when the adapter is saved."""

    # 1e-3 for SFT, as in peft's p-tuning examples: the network learns at the rates of networks.
    learning_rate_factor: ClassVar[float] = 5.0
    mergeable: ClassVar[bool] = False

    method: Literal["ptuning"] = "ptuning"
    tokens: int = Field(20, ge=1)
    """Virtual tokens (peft's examples: 20)."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers, or the paper's bidirectional LSTM."""
    hidden: int = Field(128, ge=1)
    """Width of the network (peft's examples: 128)."""
    layers: int | None = Field(None, ge=1)
    """Layers of the LSTM; 2 by default."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout between the LSTM's layers, in the updates of `sft`, `csft`, `reward`, `classify`, `rejection` and of the
    methods on pairs (`dpo`, `orpo`, `simpo`, `cpo`); off in all others. The reference has none."""

    @model_validator(mode="after")
    def _lstm_only(self) -> Self:
        if self.encoder == "mlp" and (self.layers is not None or self.dropout):
            raise ValueError("`layers` and `dropout` are the LSTM's: they go with `encoder: lstm`")
        return self

    def describe(self) -> str:
        """One phrase for the header of a run."""
        return f"p-tuning ({self.encoder}), {self.tokens} virtual tokens"


METHODS: dict[str, type[Adapter]] = {
    "lora": LoraConfig,
    "adalora": AdaLoraConfig,
    "ia3": IA3Config,
    "prompt": PromptConfig,
    "prefix": PrefixConfig,
    "ptuning": PTuningConfig,
}
"""`adapter.method` -> its section."""


def method_of(value: Any) -> str | None:
    """The method of a section that is a mapping, an object, or not given; `None` if it is something else."""
    if isinstance(value, dict):
        return str(value.get("method", "lora"))
    return getattr(value, "method", None)


AdapterConfig = Annotated[
    Annotated[LoraConfig, Tag("lora")]
    | Annotated[AdaLoraConfig, Tag("adalora")]
    | Annotated[IA3Config, Tag("ia3")]
    | Annotated[PromptConfig, Tag("prompt")]
    | Annotated[PrefixConfig, Tag("prefix")]
    | Annotated[PTuningConfig, Tag("ptuning")],
    Discriminator(
        method_of,
        custom_error_type="adapter_method",
        custom_error_message=f"`method` must be one of {', '.join(METHODS)}, and the section a mapping such as {{method: lora}}",
    ),
]


def check_steps(adapter: Adapter | None, train: Section, algorithm: Section) -> None:
    """Refuse AdaLoRA in a run that is too short for its schedule, where the number of steps is known before the data.

    Raises:
        ValueError: see `AdaLoraConfig.schedule`.
    """
    steps = getattr(train, "steps", None)
    iterations = getattr(train, "iterations", None)
    if iterations is not None:
        steps = iterations * getattr(algorithm, "epochs", 1) * getattr(algorithm, "minibatches", 1)
    if isinstance(adapter, AdaLoraConfig) and steps is not None:
        adapter.schedule(steps)
