"""What the losses of pairs share: functions of a difference of scores, the likelihood of the chosen answer, the metrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MAX_EXPONENT = 15.0
"""Beyond this an exponential goes on along its tangent: as steep as it was, and far inside float32 with its square."""


def logistic(*, logits_P: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - eps) log sigmoid(z) - eps log sigmoid(-z), of each pair: float [P].

    With eps = 0 the likelihood of the choice under Bradley and Terry's model; with eps > 0 the conservative form for labels
    that are wrong with probability eps (cDPO: Mitchell 2023, "A note on DPO with noisy preferences and relationship
    to IPO").
    """
    right_P, wrong_P = -functional.logsigmoid(logits_P), -functional.logsigmoid(-logits_P)
    return (1 - smoothing) * right_P + smoothing * wrong_P if smoothing else right_P


def hinge(*, logits_P: Tensor) -> Tensor:
    """max(0, 1 - z) of each pair: float [P] (SLiC-HF, arXiv:2305.10425; as a loss of log-ratios RSO, arXiv:2309.06657)."""
    return functional.relu(1 - logits_P)


def squared(*, differences_P: Tensor, beta: float) -> Tensor:
    """(difference - 1 / (2 beta))^2 of each pair: float [P] (IPO, arXiv:2310.12036, equation 17, where beta is tau)."""
    return (differences_P - 1 / (2 * beta)).square()


def power_log(*, logs: Tensor, alpha: float) -> Tensor:
    """(1 - u^-alpha) / alpha, given log u; tends to log u for alpha -> 0. Any shape.

    The derivative of the alpha-divergence's generator (f-DPO, arXiv:2309.16240, table 1; alpha = 1 is the forward KL), and
    AlphaPO's reward (arXiv:2501.03884). Where -alpha log u passes `MAX_EXPONENT` it goes on along its tangent.
    """
    if alpha == 0:
        return logs
    exponents = -alpha * logs
    within = exponents.clamp(max=MAX_EXPONENT)
    return -(torch.expm1(within) + torch.exp(within) * (exponents - within)) / alpha


def nll_per_token(*, logprobs_P: Tensor, lengths_P: Tensor) -> Tensor:
    """-log p(answer) / |answer| of each pair: float [P] (RPO, arXiv:2404.19733, equation 1; ORPO, arXiv:2403.07691)."""
    return -logprobs_P / lengths_P


def pair_metrics(
    *, chosen_P: Tensor, rejected_P: Tensor, chosen_rewards_P: Tensor, rejected_rewards_P: Tensor, pairs: Tensor
) -> dict[str, Tensor]:
    """The field's metrics of pairs; each is a sum over the pairs divided by their number in the whole step.

    Args:
        chosen_P, rejected_P: log-probability of each whole answer, float32 [P].
        chosen_rewards_P, rejected_rewards_P: rewards as the loss sees them, float32 [P].
        pairs: number of pairs of the whole step, scalar.

    Returns:
        `rewards/*` and `logps/*`. A tie counts as half right.
    """
    margins_P = chosen_rewards_P - rejected_rewards_P
    right_P = (margins_P > 0).float() + 0.5 * (margins_P == 0).float()
    metrics = {
        "rewards/chosen": chosen_rewards_P.sum() / pairs,
        "rewards/rejected": rejected_rewards_P.sum() / pairs,
        "rewards/accuracies": right_P.sum() / pairs,
        "rewards/margins": margins_P.sum() / pairs,
        "logps/chosen": chosen_P.sum() / pairs,
        "logps/rejected": rejected_P.sum() / pairs,
    }
    return {name: value.detach() for name, value in metrics.items()}
