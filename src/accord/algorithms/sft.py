"""Supervised fine-tuning: examples in, negative log-likelihood out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.batch import TokenBatch
from accord.data import TokenSequence
from accord.losses import sft
from accord.model.forward import Outputs
from accord.model.scorer import Scorer


def example_batch(items: Sequence[TokenSequence]) -> TokenBatch:
    """Examples end to end."""
    return TokenBatch.from_sequences([e.input_ids for e in items], [e.target_mask for e in items])


class SFT(Stateless):
    """Learns the target tokens of examples."""

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
        return sft(
            logprobs_T=outputs.logprobs_T,
            mask_T=batch.target_mask_T,
            tokens=denominators.tokens,
            weights_T=batch.weights_T,
        )
