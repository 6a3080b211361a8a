"""What a real forward and backward pass takes: autograd's hooks and PyTorch's profiler count the bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from accord.batch import TokenBatch
from accord.config import ModelConfig
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.ops import products

LENGTHS = (64, 64, 64, 64)


@dataclass(frozen=True)
class Measured:
    """Bytes."""

    saved: int
    """Kept for backward, parameters left out."""
    peak: int
    """Most that was allocated at once, forward and backward."""
    frozen: int
    """Most of a pass without gradients."""
    left: int
    """Gradients of weights."""


def batch_of(vocabulary: int, lengths: tuple[int, ...] = LENGTHS, common: int = 0) -> TokenBatch:
    """Random tokens, the first ones in common; the second half of each sequence is learnt."""
    prompt = torch.randint(5, vocabulary, (common,)).tolist()
    ids = [[*prompt, *torch.randint(5, vocabulary, (length - common,)).tolist()] for length in lengths]
    masks = [[index >= length / 2 for index in range(length)] for length in lengths]
    return TokenBatch.from_sequences(ids, masks)


def policy_of(folder: Path, adapter: Any, dtype: str) -> Roles:
    """The policy on the model of a folder."""
    roles = Roles(ModelConfig(path=str(folder), dtype=dtype), adapter, torch.device("cpu"))
    roles.add_policy()
    return roles


def measure(
    folder: Path, adapter: Any, dtype: str = "auto", lengths: tuple[int, ...] = LENGTHS, common: int = 0
) -> Measured:
    """Run a policy forward and backward, as on a processor that has instructions for every type."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "fast_types", lambda: frozenset({"float32", "bfloat16", "float16"}))
        return _measure(policy_of(folder, adapter, dtype), lengths, common)


def _measure(roles: Roles, lengths: tuple[int, ...], common: int) -> Measured:
    roles.train_mode(True)
    batch = batch_of(roles.model.config.get_text_config().vocab_size, lengths, common)
    weights = list(roles.model.parameters())
    with roles.use("policy", train=True) as role:
        saved = _saved(lambda: forward(role, batch), weights)

        def both() -> None:
            logprobs_T = forward(role, batch).logprobs_T
            assert logprobs_T is not None
            logprobs_T.sum().backward()

        both()  # what is made once, such as buffers of the libraries, is not measured
        _forget(weights)
        peak, left = _allocated(both)
    with torch.no_grad(), roles.use("policy") as role:
        frozen, _ = _allocated(lambda: forward(role, batch))
    return Measured(saved, peak, frozen, left)


def _saved(run: Callable[[], Any], weights: list[torch.nn.Parameter]) -> int:
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in sizes:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(sizes.values())


def _forget(weights: list[torch.nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = None


def _allocated(run: Callable[[], Any]) -> tuple[int, int]:
    """Most bytes of tensors that were alive at once, and those alive in the end, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    results: Any = trace.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    alive = most = 0
    for _, size in events:
        alive += size
        most = max(most, alive)
    return most, alive
