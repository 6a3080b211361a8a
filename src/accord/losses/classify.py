"""Classification: which of several labels a text, or each of its words, has."""

from __future__ import annotations

from torch import Tensor


def classify(
    *, logits_KC: Tensor, classes_K: Tensor, tokens: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the right class, or of a mixture of it with the uniform distribution.

    loss = -sum_k [(1 - eps) log p_k(y_k) + eps / C sum_c log p_k(c)] / tokens

    Label smoothing: Szegedy et al. 2015 (arXiv:1512.00567, section 7).

    Args:
        logits_KC: of each class at each place where one is read, float32 [K, C].
        classes_K: number of the right class, int64 [K], from 0 to C - 1.
        tokens: number of these places of the whole optimiser step, scalar.
        label_smoothing: eps, from 0 to 1.

    Returns:
        The loss (scalar), `classify/loss`, and `classify/accuracy`: the share of places where the right class has the greatest
        logit; one of n that share it for 1/n.
    """
    logprobs_KC = logits_KC.log_softmax(dim=-1)
    right_K = logprobs_KC.gather(1, classes_K[:, None]).squeeze(1)
    entropy_K = -right_K
    if label_smoothing:
        entropy_K = (1 - label_smoothing) * entropy_K - label_smoothing * logprobs_KC.sum(dim=-1) / logprobs_KC.shape[1]
    loss = entropy_K.sum() / tokens
    greatest_KC = (logits_KC == logits_KC.amax(dim=-1, keepdim=True)).float()
    hit_K = greatest_KC.gather(1, classes_K[:, None]).squeeze(1) / greatest_KC.sum(dim=-1)
    return loss, {"classify/loss": loss.detach(), "classify/accuracy": hit_K.sum() / tokens}
