"""Simple preference optimisation, and AlphaPO."""

from __future__ import annotations

from torch import Tensor

from accord.losses.pairs import hinge, logistic, nll_per_token, pair_metrics, power_log


def simpo(
    *,
    chosen_P: Tensor,
    rejected_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    pairs: Tensor,
    beta: float,
    gamma_beta_ratio: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    alpha: float = 0.0,
    sft_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean log-probabilities as rewards, and a margin (Meng et al. 2024, arXiv:2405.14734, equation 6).

    r(y) = log p(y) / |y|, or with alpha (1 - exp(-alpha log p(y) / |y|)) / alpha (AlphaPO, arXiv:2501.03884)
    z = beta (r(chosen) - r(rejected)) - gamma,  gamma = gamma_beta_ratio beta
    loss = sum_p [-log sigmoid(z), or max(0, 1 - z)] / pairs + sft_coef sum_p [-log p(chosen) / |chosen|] / pairs

    Args:
        chosen_P, rejected_P: log-probability (nats) of all target tokens of each answer, float32 [P].
        chosen_lengths_P, rejected_lengths_P: number of target tokens, float32 [P].
        pairs: number of pairs of the whole step, scalar.
        beta, gamma_beta_ratio, alpha, sft_coef: see above.
        loss: `sigmoid` or `hinge`.
        label_smoothing: see `logistic`.

    Returns:
        The loss (scalar), and `simpo/loss`, `simpo/nll` if it has a weight, `rewards/*` (beta r), `logps/*`.
    """
    chosen_reward_P = beta * power_log(logs=chosen_P / chosen_lengths_P, alpha=alpha)
    rejected_reward_P = beta * power_log(logs=rejected_P / rejected_lengths_P, alpha=alpha)
    logits_P = chosen_reward_P - rejected_reward_P - gamma_beta_ratio * beta
    of_pairs = {"sigmoid": logistic(logits_P=logits_P, smoothing=label_smoothing), "hinge": hinge(logits_P=logits_P)}
    total = preference = of_pairs[loss].sum() / pairs
    metrics = {"simpo/loss": preference.detach()}
    if sft_coef:
        nll = nll_per_token(logprobs_P=chosen_P, lengths_P=chosen_lengths_P).sum() / pairs
        total, metrics["simpo/nll"] = total + sft_coef * nll, nll.detach()
    return total, metrics | pair_metrics(
        chosen_P=chosen_P,
        rejected_P=rejected_P,
        chosen_rewards_P=chosen_reward_P,
        rejected_rewards_P=rejected_reward_P,
        pairs=pairs,
    )
