"""Which weights a run starts from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Section


class ModelConfig(Section):
    """The base model, and the tokenizer that belongs to it."""

    path: str
    """Folder of a Hugging Face model, folder of a PEFT adapter (training goes on from it), or name of a model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. `auto`: the checkpoint's own for a frozen base, but float32 for weights that are trained, since
    steps of 1e-5 vanish in bfloat16's 8 bits of mantissa, and float32 on a CPU without instructions for the checkpoint's own,
    which would be ten to forty times slower there."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Precision of the linear layers of frozen weights, with an adapter to learn on them: `int8` (LLM.int8's codes,
    arXiv:2208.07339) or `nf4` (QLoRA with double quantisation, arXiv:2305.14314). `dtype` is then the type of the rest, and the
    one to compute in. Holds for all frozen models of the run that read the policy's tokens. Needs the extra `quant`."""
    chat_template: str | None = None
    """For a tokenizer without a chat template: `chatml`, `transcript` (as HH-RLHF writes), or the path of a jinja file."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off unless you have read that code."""
    gguf_file: str | None = None
    """The GGUF file to read, if `path` is a folder or hub name that holds one; `path` may also be the file itself. Its weights
    are dequantised on loading."""
    router_aux_coef: float | None = Field(None, ge=0)
    """Weight of the load-balancing loss of a mixture-of-experts policy (Switch Transformers, arXiv:2101.03961, equation 4).
    `null`: the checkpoint's own `router_aux_loss_coef`. 0: off."""

    share_prefixes: bool = True
    """Compute what sequences of a micro-batch begin with alike (the prompt of several answers) once for all of them, where the
    model can. Changes memory and speed, and the result by rounding alone; `false` is for finding out."""

    @property
    def source(self) -> str:
        """Where the base is: `path`, or the GGUF file in it."""
        return self.path if self.gguf_file is None else f"{self.path}/{self.gguf_file}"

    @model_validator(mode="after")
    def _file_fits(self) -> Self:
        if self.gguf_file is not None and (not self.gguf_file.endswith(".gguf") or self.path.endswith(".gguf")):
            raise ValueError(
                "`gguf_file` names a .gguf file in the folder or repository `path`; where `path` is the file, leave it out"
            )
        if self.quantize != "none" and self.source.endswith(".gguf"):
            raise ValueError(
                f"`quantize: {self.quantize}` reads safetensors one tensor at a time, and a GGUF file is dequantised as a whole; "
                "start from the model's safetensors"
            )
        return self


class ReferenceConfig(Section):
    """What the KL divergence is measured against."""

    source: Literal["start", "model", "shared_layers"] = "start"
    """`start`: the policy as it was when the run began (the base with adapters off, or a frozen copy of the adapter that
    the run started from, or of fresh virtual tokens, or of the weights for full fine-tuning). `model`: another model, see
    `path`. `shared_layers`: for full fine-tuning, `start` with the lower layers held in common and frozen, see `k`."""
    path: str | None = None
    """Folder or hub name of the reference, for `source: model`."""
    offload: bool = False
    """Keep a reference with weights of its own in main memory while it is not asked, and not on the accelerator."""
    k: int | None = Field(None, ge=1)
    """For `source: shared_layers`: the embeddings and the first k layers do not learn, and policy and reference hold them
    once, so the reference takes the memory of the other layers alone."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "model") != (self.path is not None):
            raise ValueError("`path` goes with `source: model`, and `source: model` needs a `path`")
        if (self.source == "shared_layers") != (self.k is not None):
            raise ValueError("`k` goes with `source: shared_layers`, and `source: shared_layers` needs a `k`")
        if self.offload and self.source == "shared_layers":
            raise ValueError(
                "`offload` moves weights that nobody else reads, and `source: shared_layers` reads the policy's"
            )
        return self


class CriticConfig(Section):
    """What predicts the score for the advantage estimate."""

    source: Literal["adapter", "policy_trunk", "model"] | None = None
    """`adapter`: own adapter and value head on the shared base. `policy_trunk`: a value head on the policy's hidden states.
    `model`: its own model, see `path`. Default: `adapter` when the policy has one, else `policy_trunk`."""
    start: Literal["zero", "reward", "saved"] = "zero"
    """`zero`: a value head that starts at 0. `reward`: adapter and head start as a copy of the first reward model's
    (OpenRLHF and InstructGPT, arXiv:2203.02155 appendix C.4, start the critic from the reward model). `saved`: the critic
    that an earlier run or session saved beside the policy at `model.path`."""
    path: str | None = None
    """Folder or hub name, for `source: model`. A reward model's score head becomes the value head."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the critic's weights, its value head included; `null`: `train.learning_rate`."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "model") != (self.path is not None):
            raise ValueError("`path` goes with `source: model`, and `source: model` needs a `path`")
        if self.source == "policy_trunk" and self.start == "reward":
            raise ValueError("`start: reward` needs a critic with weights of its own: use `source: adapter` or `model`")
        if self.source == "model" and self.start == "saved":
            raise ValueError(
                "`start: saved` is for an adapter or a head; a saved model is named by `path`: FOLDER/critic"
            )
        return self
