"""Contrastive preference optimisation."""

from __future__ import annotations

from torch import Tensor

from accord.losses.pairs import hinge, logistic, nll_per_token, pair_metrics, squared


def cpo(
    *,
    chosen_P: Tensor,
    rejected_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    pairs: Tensor,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalize: bool = False,
    sft_coef: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Preference without a reference, and the likelihood of the chosen answer (Xu et al. 2024, arXiv:2401.08417, equation 3).

    z = beta (log p(chosen) - log p(rejected)), or of log-probabilities per token with `length_normalize`
    loss = sum_p [-log sigmoid(z), max(0, 1 - z), or (z / beta - 1 / (2 beta))^2] / pairs
           + sft_coef sum_p [-log p(chosen) / |chosen|] / pairs

    The likelihood term is per token, as in the authors' code; the paper's equation has the sum over the answer.

    Args:
        chosen_P, rejected_P: log-probability (nats) of all target tokens of each answer, float32 [P].
        chosen_lengths_P, rejected_lengths_P: number of target tokens, float32 [P].
        pairs: number of pairs of the whole step, scalar.
        beta, sft_coef, length_normalize: see above.
        loss: `sigmoid`, `hinge` or `ipo`.
        label_smoothing: see `logistic`.

    Returns:
        The loss (scalar), and `cpo/loss`, `cpo/nll` if it has a weight, `rewards/*` (beta times the log-probability that the
        loss compares), `logps/*`.
    """
    chosen_score_P = chosen_P / chosen_lengths_P if length_normalize else chosen_P
    rejected_score_P = rejected_P / rejected_lengths_P if length_normalize else rejected_P
    differences_P = chosen_score_P - rejected_score_P
    of_pairs = {
        "sigmoid": logistic(logits_P=beta * differences_P, smoothing=label_smoothing),
        "hinge": hinge(logits_P=beta * differences_P),
        "ipo": squared(differences_P=differences_P, beta=beta),
    }
    total = preference = of_pairs[loss].sum() / pairs
    metrics = {"cpo/loss": preference.detach()}
    if sft_coef:
        nll = nll_per_token(logprobs_P=chosen_P, lengths_P=chosen_lengths_P).sum() / pairs
        total, metrics["cpo/nll"] = total + sft_coef * nll, nll.detach()
    return total, metrics | pair_metrics(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        chosen_rewards_P=beta * chosen_score_P,
        rejected_rewards_P=beta * rejected_score_P,
        pairs=pairs,
    )
