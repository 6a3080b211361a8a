"""Reward modelling: of whole answers from pairs, of steps from verdicts on each."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from accord.ops.masking import masked_sum


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


def process_reward(
    *, scores_T: Tensor, labels_T: Tensor, mask_T: Tensor, tokens: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Probability that each step is good: binary cross-entropy at the last token of each step.

    loss = -sum_t [y_t log sigmoid(s_t) + (1 - y_t) log sigmoid(-s_t)] / steps

    Lightman et al. 2023 (arXiv:2305.20050, section 2); labels between 0 and 1, such as the share of continuations that ended
    well: Wang et al. 2023, "Math-Shepherd" (arXiv:2312.08935, section 3).

    Args:
        scores_T: scores (logits) at the ends of steps, float32 [T].
        labels_T: how good the step is that ends at the token, float32 [T], from 0 to 1.
        mask_T: true for ends of steps, bool [T].
        tokens: number of steps of the whole optimiser step, scalar.

    Returns:
        The loss (scalar), `reward/loss`, and `reward/accuracy`: the share of steps whose score and label lie on the same side of
        0 and 1/2; half for a score or label on neither.
    """
    scores_T, labels_T = scores_T.masked_fill(~mask_T, 0.0), labels_T.masked_fill(~mask_T, 0.0)
    entropy_T = -labels_T * functional.logsigmoid(scores_T) - (1 - labels_T) * functional.logsigmoid(-scores_T)
    loss = masked_sum(entropy_T, mask_T) / tokens
    right_T = 0.5 + 0.5 * scores_T.detach().sign() * (labels_T - 0.5).sign()
    return loss, {"reward/loss": loss.detach(), "reward/accuracy": masked_sum(right_T, mask_T) / tokens}
