"""Odds ratio preference optimisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accord.losses.pairs import logistic, nll_per_token, pair_metrics

NEARLY_CERTAIN = -1e-6
"""Greatest mean log-probability of which odds are taken: at 0 they are infinite."""


def orpo(
    *,
    chosen_P: Tensor,
    rejected_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    pairs: Tensor,
    beta: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the chosen answers, and the odds by which they beat the rejected ones (Hong et al. 2024, arXiv:2403.07691,
    equations 4 and 7).

    p(y) = exp(log p(y | x) / |y|);  odds(y) = p / (1 - p)
    loss = sum_p [-log p(chosen) / |chosen| - beta log sigmoid(log odds(chosen) - log odds(rejected))] / pairs

    The likelihood is that of the answer given the prompt, as in the paper's formulas; TRL's counts the prompt's tokens too.

    Args:
        chosen_P, rejected_P: log-probability (nats) of all target tokens of each answer, float32 [P].
        chosen_lengths_P, rejected_lengths_P: number of target tokens, float32 [P].
        pairs: number of pairs of the whole step, scalar.
        beta: weight of the odds-ratio term (the paper's lambda).

    Returns:
        The loss (scalar), and `orpo/loss`, `orpo/nll`, `orpo/log_odds`, `rewards/*` (beta times the mean log-probability, as
        TRL logs them), `logps/*`.
    """
    chosen_mean_P, rejected_mean_P = chosen_P / chosen_lengths_P, rejected_P / rejected_lengths_P
    log_odds_P = _log_odds(chosen_mean_P) - _log_odds(rejected_mean_P)
    nll = nll_per_token(logprobs_P=chosen_P, lengths_P=chosen_lengths_P).sum() / pairs
    loss = nll + beta * logistic(logits_P=log_odds_P).sum() / pairs
    metrics = {"orpo/loss": loss, "orpo/nll": nll, "orpo/log_odds": log_odds_P.sum() / pairs}
    return loss, {name: value.detach() for name, value in metrics.items()} | pair_metrics(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        chosen_rewards_P=beta * chosen_mean_P,
        rejected_rewards_P=beta * rejected_mean_P,
        pairs=pairs,
    )


def _log_odds(logs_P: Tensor) -> Tensor:
    """log p - log(1 - p), given log p. 1 - p is taken by the form that keeps its digits (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))")."""
    logs_P = logs_P.clamp(max=NEARLY_CERTAIN)
    likely_P = torch.log(-torch.expm1(logs_P))
    unlikely_P = torch.log1p(-torch.exp(logs_P))
    return logs_P - torch.where(logs_P > -math.log(2), likely_P, unlikely_P)
