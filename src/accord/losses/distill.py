"""Distillation."""

from __future__ import annotations

from torch import Tensor

from accord.ops.masking import masked_sum


def distill(*, divergences_T: Tensor, mask_T: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean divergence of the student from the teacher: sum_t D_t / tokens (Agarwal et al. 2023, arXiv:2306.13649, equation 2).

    Args:
        divergences_T: of the whole distributions at each token, float32 [T]; see `ops.divergence`.
        mask_T: true for the tokens learnt, bool [T].
        tokens: number of these of the whole step, scalar.

    Returns:
        The loss (scalar) and `distill/divergence`.
    """
    loss = masked_sum(divergences_T, mask_T) / tokens
    return loss, {"distill/divergence": loss.detach()}
