"""Which weights a run starts from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from accord.config.base import Section


class ModelConfig(Section):
    """The base model, and the tokenizer that belongs to it."""

    path: str
    """Folder of a Hugging Face model, folder of a PEFT adapter (training goes on from it), or name of a model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. `auto`: the checkpoint's own for a frozen base, float32 for weights that are trained, since
    steps of 1e-5 vanish in bfloat16's 8 bits of mantissa."""
    chat_template: str | None = None
    """For a tokenizer without a chat template: `chatml`, `transcript` (as HH-RLHF writes), or the path of a jinja file."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off unless you have read that code."""


class ReferenceConfig(Section):
    """What the KL divergence is measured against."""

    source: Literal["start", "model"] = "start"
    """`start`: the policy as it was when the run began (the base with adapters off, or a frozen copy of the adapter that
    the run started from, or of fresh virtual tokens, or of the weights for full fine-tuning). `model`: another model, see
    `path`."""
    path: str | None = None
    """Folder or hub name of the reference, for `source: model`."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "model") != (self.path is not None):
            raise ValueError("`path` goes with `source: model`, and `source: model` needs a `path`")
        return self


class CriticConfig(Section):
    """What predicts the score for the advantage estimate."""

    source: Literal["adapter", "policy_trunk", "model"] | None = None
    """`adapter`: own adapter and value head on the shared base. `policy_trunk`: a value head on the policy's hidden states.
    `model`: its own model, see `path`. Default: `adapter` when the policy has one, else `policy_trunk`."""
    start: Literal["zero", "reward"] = "zero"
    """`zero`: a value head that starts at 0. `reward`: adapter and head start as a copy of the first reward model's
    (OpenRLHF and InstructGPT, arXiv:2203.02155 appendix C.4, start the critic from the reward model)."""
    path: str | None = None
    """Folder or hub name, for `source: model`. A reward model's score head becomes the value head."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "model") != (self.path is not None):
            raise ValueError("`path` goes with `source: model`, and `source: model` needs a `path`")
        if self.source == "policy_trunk" and self.start == "reward":
            raise ValueError("`start: reward` needs a critic with weights of its own: use `source: adapter` or `model`")
        return self
