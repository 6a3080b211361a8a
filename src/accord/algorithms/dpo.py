"""Direct preference optimisation and its family: pairs and the reference's log-probabilities in, one loss out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from accord.algorithms.base import Denominators, Metrics, RoleUpdate, Stateless
from accord.algorithms.pairs import answers, pair_batch
from accord.batch import TokenBatch
from accord.config import DPOConfig
from accord.data import EncodedPair, TokenSequence
from accord.losses import aot_values, dpo, matched
from accord.losses.dpo import AOT
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.masking import targets_per_sequence

JoinRanks = Callable[[Tensor], tuple[Tensor, slice]]
"""The values of all ranks end to end, and where this rank's lie among them."""


def one_rank_alone(values: Tensor) -> tuple[Tensor, slice]:
    """The values of one rank."""
    return values, slice(0, len(values))


class DPO(Stateless):
    """Learns to raise the chosen answer above the rejected one, relative to the reference.

    Attributes:
        reference: log-probability (nats) of all target tokens of each sequence under the reference; filled before the first
            step. `None`: there is no reference, and each is 0.
        join_ranks: how ranks exchange values, for the losses that sort over a whole step.
    """

    uses_dropout = True
    temperature = 1.0

    def __init__(self, config: DPOConfig) -> None:
        self.config = config
        self.reference: Mapping[TokenSequence, float] | None = None
        self.join_ranks: JoinRanks = one_rank_alone

    def prepare(self, items: Sequence[EncodedPair], scorer: Scorer) -> tuple[TokenBatch, Metrics]:
        """Both answers of each pair, with their reference log-probabilities, and for AOT with what each is compared to."""
        batch = pair_batch(items)
        sequences = [sequence for pair in items for sequence in (pair.chosen, pair.rejected)]
        ref = [0.0 if self.reference is None else self.reference[sequence] for sequence in sequences]
        batch = batch.with_streams(ref_logprobs_N=torch.tensor(ref, dtype=torch.float32))
        if self.config.loss in AOT:
            batch = batch.with_streams(match_N=self._match(batch, scorer))
        return batch, {}

    def _match(self, batch: TokenBatch, scorer: Scorer) -> Tensor:
        """What each sequence is compared with, from the weights before the step: float32 [N]. The step takes the whole batch, so
        that the ranks are those of its gradient, however it is cut into micro-batches."""
        assert batch.ref_logprobs_N is not None
        scale_N = 1 / targets_per_sequence(batch) if self.config.length_normalize else torch.ones(batch.sequences)
        policy_N, ref_N = scorer.sequence_logprobs("policy", batch) * scale_N, batch.ref_logprobs_N * scale_N
        values_P, others_P = aot_values(
            chosen_P=policy_N[0::2],
            rejected_P=policy_N[1::2],
            ref_chosen_P=ref_N[0::2],
            ref_rejected_P=ref_N[1::2],
            loss=self.config.loss,
        )
        values_P, own = self.join_ranks(values_P)
        others_P, _ = self.join_ranks(others_P)
        chosen_P = matched(values_P=values_P, others_P=others_P)[own]
        rejected_P = matched(values_P=others_P, others_P=values_P)[own]
        return torch.stack([chosen_P, rejected_P], dim=1).flatten()

    def roles(self) -> tuple[RoleUpdate, ...]:
        """The policy learns."""
        return (RoleUpdate("policy"),)

    def loss(
        self, role: str, outputs: Outputs, batch: TokenBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.dpo` over the pairs."""
        config, ref_N, match_N = self.config, batch.ref_logprobs_N, batch.match_N
        assert ref_N is not None
        return dpo(
            **answers(outputs.logprobs_T, batch),
            ref_chosen_P=ref_N[0::2],
            ref_rejected_P=ref_N[1::2],
            pairs=denominators.sequences / 2,
            loss=config.loss,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            length_normalize=config.length_normalize,
            f_divergence=config.f_divergence,
            f_alpha=config.f_alpha,
            discopop_tau=config.discopop_tau,
            sft_coef=config.sft_coef,
            margins_P=None if batch.margins_N is None else batch.margins_N[0::2],
            margin_coef=config.margin_coef,
            chosen_match_P=None if match_N is None else match_N[0::2],
            rejected_match_P=None if match_N is None else match_N[1::2],
        )
