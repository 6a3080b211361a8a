"""Conditional supervised fine-tuning: examples whose prompts carry labels in, negative log-likelihood out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.sft import example_batch
from accord.batch import TokenBatch
from accord.data import TokenSequence
from accord.losses import sft
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


class CSFT(Stateless):
    """Learns the answers; their labels stand in the prompts already (`data.conditioning`), so the loss is that of SFT."""

    uses_dropout = True
    temperature = 1.0

    def prepare(self, items: Sequence[TokenSequence], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Examples end to end."""
        return example_batch(items), {}

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.sft` over the target tokens."""
        assert outputs.logprobs_T is not None
        return sft(logprobs_T=outputs.logprobs_T, mask_T=batch.target_mask_T, tokens=denominators.tokens)
