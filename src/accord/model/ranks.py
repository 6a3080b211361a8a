"""AdaLoRA's budget: which ranks are kept, and the penalty that keeps the factors orthogonal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraConfig, RankAllocator
from torch import Tensor, nn


class RankBudget:
    """Drives peft's rank allocator for one adapter (Zhang et al. 2023, arXiv:2303.10512, algorithm 1).

    peft's own `update_and_allocate` and forward pass serve one trainable adapter a model and a loss a forward pass; roles on
    one base have several, and a loss is cut into micro-batches.

    Args:
        model: the base with the adapter's layers in it.
        config: of the adapter, with its schedule.
        name: of the adapter.
    """

    def __init__(self, model: nn.Module, config: AdaLoraConfig, name: str) -> None:
        self.model, self.config, self.name = model, config, name
        self.allocator: Any = RankAllocator(model, config, name)
        self.pattern: dict[str, list[bool]] | None = None
        """Of each matrix, the ranks that are kept; `None` before the first pruning."""

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The factors, by their names in the model."""
        return {key: weight for key, weight in self.model.named_parameters() if _belongs(key, self.name)}

    def penalty(self) -> Tensor:
        """Mean over all P and Q of |P^T P - I| and |Q Q^T - I| (Frobenius), as peft takes it; the paper squares the norms
        (equation 4)."""
        norms = []
        for key, weight in self.weights.items():
            if "lora_E" in key or weight.numel() == 0:
                continue
            gram = weight @ weight.T if "lora_A" in key else weight.T @ weight
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return torch.stack(norms).mean()

    def allocate(self, step: int) -> None:
        """Note the importance of each rank, and set the least important to zero; after the optimiser's step and before its
        gradients are cleared, as peft does. A step that did not reach this adapter leaves the importance as it was.

        Args:
            step: optimiser steps taken, from 1.
        """
        assert self.config.total_step is not None
        last = self.config.total_step - self.config.tfinal
        if step < last:
            if all(weight.grad is not None for weight in self.weights.values()):
                _, pattern = self.allocator.update_and_allocate(self.model, step)
                self.pattern = pattern or self.pattern
        elif (step == last or self.pattern is None) and self.allocator.exp_avg_ipt:
            _, self.pattern = self.allocator.update_and_allocate(self.model, step, force_mask=True)
        elif self.pattern is not None:
            self.allocator.mask_using_rank_pattern(self.model, self.pattern)

    def kept(self) -> dict[str, list[bool]] | None:
        """The ranks to save: those that the last pruning kept, and any that grew again since."""
        if self.pattern is None:
            return None
        grown = {
            key: (weight.detach() != 0).view(-1).tolist() for key, weight in self.weights.items() if key in self.pattern
        }
        return {key: [a or b for a, b in zip(kept, grown[key], strict=True)] for key, kept in self.pattern.items()}

    def mean_rank(self) -> float:
        """Ranks in use, mean over the matrices."""
        if self.pattern is None:
            return float(self.config.init_r)
        return sum(sum(kept) for kept in self.pattern.values()) / len(self.pattern)

    # --- state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Importance and pattern, by name."""
        result = {f"importance/{key}": value for key, value in self.allocator.exp_avg_ipt.items()}
        result |= {f"uncertainty/{key}": value for key, value in self.allocator.exp_avg_unc.items()}
        return result | {f"kept/{key}": torch.tensor(kept) for key, kept in (self.pattern or {}).items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.allocator.reset_ipt()
        pattern = {}
        weights = self.weights
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "kept":
                pattern[name] = value.tolist()
                continue
            own = self.allocator.exp_avg_ipt if kind == "importance" else self.allocator.exp_avg_unc
            own[name] = value.to(weights[name].device, copy=True)
            self.allocator.ipt.setdefault(name, torch.zeros_like(own[name]))
        self.pattern = pattern or None


def _belongs(key: str, name: str) -> bool:
    return key.endswith(tuple(f".lora_{part}.{name}" for part in "ABE"))
