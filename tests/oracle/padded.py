"""Random ragged rollouts in both shapes: end to end as we have them, and padded as others do."""

from __future__ import annotations

import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from accord.batch import TokenBatch


class Padded:
    """Prompts and responses of random lengths; streams go from [T] to [N, longest response] and back.

    Args:
        seed: of everything here.
        sequences: how many.
        vocabulary: ids are drawn from 3 to this.
    """

    def __init__(self, seed: int, sequences: int = 6, vocabulary: int = 250) -> None:
        draw = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.prompts = [[draw.randrange(3, vocabulary) for _ in range(draw.randint(1, 7))] for _ in range(sequences)]
        self.responses = [[draw.randrange(3, vocabulary) for _ in range(draw.randint(1, 9))] for _ in range(sequences)]
        self.batch = TokenBatch.from_sequences(
            [p + r for p, r in zip(self.prompts, self.responses, strict=True)],
            [[False] * len(p) + [True] * len(r) for p, r in zip(self.prompts, self.responses, strict=True)],
        )
        lengths = torch.tensor([len(r) for r in self.responses])
        self.width = int(lengths.max())
        self.mask = torch.arange(self.width)[None, :] < lengths[:, None]
        """bool [N, longest response]"""

    @property
    def tokens(self) -> Tensor:
        return torch.tensor(float(self.batch.targets))

    @property
    def sequences(self) -> Tensor:
        return torch.tensor(float(self.batch.sequences))

    def stream(self, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Random numbers for the response tokens, 0 elsewhere: float64 [T]."""
        values = shift + scale * torch.randn(self.batch.tokens, generator=self.generator, dtype=torch.float64)
        return values.masked_fill(~self.batch.target_mask_T, 0.0)

    def pad(self, stream_T: Tensor, garbage: float = 7.5) -> Tensor:
        """[T] -> [N, longest response]; what is padding holds garbage, which must not matter."""
        padded = torch.full(self.mask.shape, garbage, dtype=stream_T.dtype)
        return padded.masked_scatter(self.mask, stream_T[self.batch.target_mask_T])

    def inputs(self, **streams: Tensor) -> dict[str, Any]:
        """What the trainers of TRL are given: prompts padded on the left, completions on the right."""
        longest = max(map(len, self.prompts))
        left = torch.tensor([[0] * (longest - len(p)) + p for p in self.prompts])
        right = torch.tensor([r + [0] * (self.width - len(r)) for r in self.responses])
        counts = torch.tensor([len(p) for p in self.prompts])
        return {
            "prompt_ids": left,
            "prompt_mask": (torch.arange(longest)[None, :] >= longest - counts[:, None]).long(),
            "completion_ids": right,
            "completion_mask": self.mask.long(),
            "num_items_in_batch": self.tokens,
            **streams,
        }


def trainer(per_token_logps: Tensor | None = None, **settings: Any) -> SimpleNamespace:
    """What the loss of a TRL trainer reads of its `self`: one process, no accumulation, nothing optional switched on."""
    same = lambda value, *_, **__: value  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        sync_gradients=True,
        parallelism_config=None,
    )
    options = {
        "use_bias_correction_kl": False,
        "delta": None,
        "steps_per_generation": 1,
        "average_tokens_across_devices": False,
        "use_liger_kernel": False,
    }
    args = SimpleNamespace(**options | settings.pop("args", {}))
    entropies = None if per_token_logps is None else torch.zeros_like(per_token_logps)
    defaults: dict[str, Any] = {
        "_get_per_token_logps_and_entropies": lambda *_, **__: (per_token_logps, entropies, None),
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "get_tp_size": lambda: 1,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "max_completion_length": 12,
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "compute_loss_func": None,
        "label_smoother": None,
    }
    return SimpleNamespace(args=args, accelerator=accelerator, **defaults | settings)
