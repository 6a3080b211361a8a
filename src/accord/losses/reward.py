"""Reward modelling."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bradley_terry(
    *, chosen_P: Tensor, rejected_P: Tensor, pairs: Tensor, margins_P: Tensor | None = None, centre_coef: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Probability that the chosen answer wins, under Bradley and Terry's model.

    loss = sum_p [-log sigmoid(r_c - r_r - margin) + centre_coef (r_c + r_r)^2] / pairs

    Stiennon et al. 2020 (arXiv:2009.01325); margin: Llama 2 (arXiv:2307.09288, equation 2); centring: Eisenstein et al. 2023
    (arXiv:2312.09244).

    Args:
        chosen_P, rejected_P: scores, float32 [P].
        pairs: number of pairs of the whole step, scalar.
        margins_P: by how much the chosen answer is better, float32 [P], in units of the score.
        centre_coef: weight of the centring term.

    Returns:
        The loss (scalar) and `reward/*` metrics. A tie counts as half right in the accuracy.
    """
    difference_P = chosen_P - rejected_P
    required_P = difference_P if margins_P is None else difference_P - margins_P
    ranking = -functional.logsigmoid(required_P).sum() / pairs
    loss = ranking + centre_coef * (chosen_P + rejected_P).square().sum() / pairs
    right_P = (difference_P > 0).float() + 0.5 * (difference_P == 0).float()
    metrics = {
        "reward/loss": ranking,
        "reward/accuracy": right_P.sum() / pairs,
        "reward/margin": difference_P.sum() / pairs,
        "reward/chosen_mean": chosen_P.sum() / pairs,
        "reward/rejected_mean": rejected_P.sum() / pairs,
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
