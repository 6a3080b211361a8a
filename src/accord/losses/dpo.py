"""Direct preference optimisation and its family, as options of one loss.

Of each answer y: ratio = log p(y) - log p_ref(y), score s = f'(exp ratio), by f-divergence (f-DPO, arXiv:2309.16240, table
1; constants cancel): reverse_kl: ratio; forward_kl: 1 - exp(-ratio); js: log 2 + log sigmoid(ratio); alpha: (1 - exp(-alpha
ratio)) / alpha. `length_normalize` divides s by |y|. With z = beta (s_c - s_r) - margin_coef margin and eps the smoothing:

sigmoid       -(1 - eps) log sigmoid(z) - eps log sigmoid(-z)                     eps > 0: cDPO, see `logistic`
robust        [-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)] / (1 - 2 eps)     rDPO, arXiv:2403.00409
hinge         max(0, 1 - z)                                                      arXiv:2309.06657
ipo           (s_c - s_r - 1 / (2 beta))^2                                       arXiv:2310.12036, equation 17
exo           KL([sigmoid(z), sigmoid(-z)] || [1 - eps, eps])                    arXiv:2402.00856, equation 16
discopop      (1 - w) (-log sigmoid(z)) + w exp(-z),  w = sigmoid(z / tau)       arXiv:2406.08414, equation 5
nca           -log sigmoid(a) - [log sigmoid(-a) + log sigmoid(-b)] / 2          arXiv:2402.05369
sppo          (s_c - 1 / (2 beta))^2 + (s_r + 1 / (2 beta))^2                    arXiv:2405.00675, equation 4.7
apo_zero      1 - sigmoid(a) + sigmoid(b)                                        arXiv:2408.06266, equation 7
apo_down      sigmoid(a) + 1 - sigmoid(a - b)                                    arXiv:2408.06266, equation 8
aot           `logistic` of beta (value - match); see `aot_values`               arXiv:2406.05882
aot_unpaired  the same, of chosen against rejected answers

with a = beta s_c, b = beta s_r. SPPO's preference of the chosen answer is taken as certain, and beta = 1 / eta.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from accord.losses.pairs import hinge, logistic, nll_per_token, pair_metrics, power_log, squared

AOT = ("aot", "aot_unpaired")
"""Losses that compare sorted values of a whole step; see `aot_values`."""


def dpo(
    *,
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    chosen_lengths_P: Tensor,
    rejected_lengths_P: Tensor,
    pairs: Tensor,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    length_normalize: bool = False,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
    discopop_tau: float = 0.05,
    sft_coef: float = 0.0,
    margins_P: Tensor | None = None,
    margin_coef: float = 0.0,
    chosen_match_P: Tensor | None = None,
    rejected_match_P: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of pairs from their log-probabilities under policy and reference (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    Scores, divergences and the formula of each loss are in the docstring of this module.

    loss = sum_p loss_p / pairs + sft_coef sum_p [-log p(chosen) / |chosen|] / pairs      (RPO, arXiv:2404.19733, equation 1)

    Args:
        chosen_P, rejected_P: log-probability (nats) of all target tokens of each answer, float32 [P].
        ref_chosen_P, ref_rejected_P: the same under the reference, no gradient.
        chosen_lengths_P, rejected_lengths_P: number of target tokens, float32 [P].
        pairs: number of pairs of the whole step, scalar.
        loss, beta, label_smoothing, length_normalize, f_divergence, f_alpha, discopop_tau, sft_coef: see there.
        margins_P: by how much the chosen answer is better, float32 [P]; demanded of the rewards (ODPO, arXiv:2402.10571).
        margin_coef: weight of the margins.
        chosen_match_P, rejected_match_P: for the AOT losses, what `matched` gave for the whole step, float32 [P].

    Returns:
        The loss (scalar), and `dpo/loss`, `dpo/nll` if it has a weight, `rewards/*` (beta s), `logps/*`.
    """
    chosen_scale_P = 1 / chosen_lengths_P if length_normalize else torch.ones_like(chosen_lengths_P)
    rejected_scale_P = 1 / rejected_lengths_P if length_normalize else torch.ones_like(rejected_lengths_P)
    chosen_score_P = divergence(log_ratios_P=chosen_P - ref_chosen_P, kind=f_divergence, alpha=f_alpha) * chosen_scale_P
    rejected_score_P = (
        divergence(log_ratios_P=rejected_P - ref_rejected_P, kind=f_divergence, alpha=f_alpha) * rejected_scale_P
    )
    if loss in AOT:
        assert chosen_match_P is not None and rejected_match_P is not None
        values_P, others_P = aot_values(
            chosen_P=chosen_P * chosen_scale_P,
            rejected_P=rejected_P * rejected_scale_P,
            ref_chosen_P=ref_chosen_P * chosen_scale_P,
            ref_rejected_P=ref_rejected_P * rejected_scale_P,
            loss=loss,
        )
        losses_P = _sorted(values_P, others_P, chosen_match_P, rejected_match_P, loss, beta, label_smoothing)
    elif loss in OF_EACH:
        losses_P = OF_EACH[loss](chosen_score_P, rejected_score_P, beta)
    else:
        differences_P = chosen_score_P - rejected_score_P
        demanded_P = 0.0 if margins_P is None else margin_coef * margins_P
        losses_P = of_difference(
            differences_P=differences_P,
            logits_P=beta * differences_P - demanded_P,
            loss=loss,
            beta=beta,
            label_smoothing=label_smoothing,
            discopop_tau=discopop_tau,
        )
    preference = losses_P.sum() / pairs
    metrics = {"dpo/loss": preference.detach()}
    total = preference
    if sft_coef:
        nll = nll_per_token(logprobs_P=chosen_P, lengths_P=chosen_lengths_P).sum() / pairs
        total, metrics["dpo/nll"] = total + sft_coef * nll, nll.detach()
    rewards = {"chosen_rewards_P": beta * chosen_score_P, "rejected_rewards_P": beta * rejected_score_P}
    return total, metrics | pair_metrics(chosen_P=chosen_P, rejected_P=rejected_P, **rewards, pairs=pairs)


def divergence(*, log_ratios_P: Tensor, kind: str, alpha: float = 0.5) -> Tensor:
    """Score of each answer from its log-ratio, by the divergence that holds the policy to the reference; see above."""
    match kind:
        case "reverse_kl":
            return log_ratios_P
        case "forward_kl":
            return power_log(logs=log_ratios_P, alpha=1.0)
        case "js":
            return math.log(2) + functional.logsigmoid(log_ratios_P)
        case "alpha":
            return power_log(logs=log_ratios_P, alpha=alpha)
    raise ValueError(f"unknown f_divergence {kind!r}: reverse_kl, forward_kl, js, alpha")


def of_difference(
    *,
    differences_P: Tensor,
    logits_P: Tensor,
    loss: str,
    beta: float,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
) -> Tensor:
    """Losses that see the difference of a pair's scores alone, float [P]; formulas above."""
    match loss:
        case "sigmoid":
            return logistic(logits_P=logits_P, smoothing=label_smoothing)
        case "robust":
            right_P, wrong_P = logistic(logits_P=logits_P), logistic(logits_P=-logits_P)
            return ((1 - label_smoothing) * right_P - label_smoothing * wrong_P) / (1 - 2 * label_smoothing)
        case "hinge":
            return hinge(logits_P=logits_P)
        case "ipo":
            return squared(differences_P=differences_P, beta=beta)
        case "exo":
            log_right_P, log_wrong_P = functional.logsigmoid(logits_P), functional.logsigmoid(-logits_P)
            from_right_P = log_right_P.exp() * (log_right_P - math.log1p(-label_smoothing))
            return from_right_P + log_wrong_P.exp() * (log_wrong_P - math.log(label_smoothing))
        case "discopop":
            blend_P = logits_P / discopop_tau
            # w exp(-z) as one exponential: for a hopeless pair w is 0 and exp(-z) infinite.
            exponential_P = torch.exp(functional.logsigmoid(blend_P) - logits_P)
            return torch.sigmoid(-blend_P) * logistic(logits_P=logits_P) + exponential_P
    raise ValueError(f"unknown loss {loss!r}")


def _nca(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    chosen_P, rejected_P = beta * chosen_P, beta * rejected_P
    down_P = functional.logsigmoid(-chosen_P) + functional.logsigmoid(-rejected_P)
    return -functional.logsigmoid(chosen_P) - 0.5 * down_P


def _sppo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    return (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()


def _apo_zero(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)


def _apo_down(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P - rejected_P))


OF_EACH: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "nca": _nca,
    "sppo": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}
"""Losses that see each answer's score by itself."""


def aot_values(
    *, chosen_P: Tensor, rejected_P: Tensor, ref_chosen_P: Tensor, ref_rejected_P: Tensor, loss: str
) -> tuple[Tensor, Tensor]:
    """The two sets of values whose distributions AOT compares, k-th smallest with k-th smallest (arXiv:2406.05882).

    aot: log p(chosen) - log p(rejected) under the policy, and under the reference (the second has no gradient).
    aot_unpaired: the log-ratios of chosen answers, and of rejected ones.

    Returns:
        Two times float [P].
    """
    if loss == "aot":
        return chosen_P - rejected_P, ref_chosen_P - ref_rejected_P
    return chosen_P - ref_chosen_P, rejected_P - ref_rejected_P


def matched(*, values_P: Tensor, others_P: Tensor) -> Tensor:
    """For each value, the member of `others_P` that has its rank: float [P]."""
    result_P = torch.empty_like(others_P)
    result_P[values_P.argsort(stable=True)] = others_P.sort().values
    return result_P


def _sorted(
    values_P: Tensor,
    others_P: Tensor,
    chosen_match_P: Tensor,
    rejected_match_P: Tensor,
    loss: str,
    beta: float,
    smoothing: float,
) -> Tensor:
    """`logistic` of the matched differences.

    Sorting couples the pairs of a step, and a micro-batch has only some of them. But a value's gradient depends on the others
    only through the one that has its rank, which is known before the step: so each is compared with a number. Of two sets that
    both learn, each side is compared with its match, which counts every term twice, once for the gradient of each side.
    """
    one_P = logistic(logits_P=beta * (values_P - chosen_match_P), smoothing=smoothing)
    if loss == "aot":
        return one_P
    both_P = one_P + logistic(logits_P=beta * (rejected_match_P - others_P), smoothing=smoothing)
    return both_P - 0.5 * both_P.detach()
