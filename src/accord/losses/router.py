"""Balance of the experts in mixture-of-experts models."""

from __future__ import annotations

from torch import Tensor


def router_balance(
    *, probabilities_E: Tensor, choices_E: Tensor, routed: Tensor, coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Load-balancing loss: experts that get many tokens should be less likely.

    loss = coef E sum_i f_i P_i,   f_i = choices_i / routed,   P_i = probabilities_i / routed

    Switch Transformers (Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6), over all layers at once and for k choices a
    token, as in transformers' `load_balancing_loss_func`. f is a count and has no gradient; the loss is additive over tokens
    only because f is that of the whole step, so f must be known before the first micro-batch's backward.

    Args:
        probabilities_E: softmax of the router's logits, summed over the tokens and layers of this micro-batch, float32 [E].
        choices_E: how often each expert was among the k chosen, over all tokens and layers of the step and all ranks.
        routed: tokens times layers of the whole step, scalar.
        coef: weight of the loss.

    Returns:
        The loss (scalar) and `moe/aux_loss`, without the coefficient: k when all experts get equally much, up to E when
        all goes to the same k.
    """
    experts = len(choices_E)
    balance = experts * ((choices_E / routed) * (probabilities_E / routed)).sum()
    return coef * balance, {"moe/aux_loss": balance.detach()}
