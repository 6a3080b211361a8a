"""Heads: one number, or one for each class, from a hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.errors import ModelError


class ScalarHead(nn.Module):
    """score = w . h, in float32, without bias: the shape of the `score` layer of transformers' sequence classifiers.

    Starts at 0: values then begin at the mean that whitening would give them, and a reward model at indifference.
    """

    def __init__(self, hidden: int, weight: Tensor | None = None) -> None:
        super().__init__()
        start = torch.zeros(1, hidden) if weight is None else weight.detach().float().clone().reshape(1, hidden)
        self.weight = nn.Parameter(start)

    def forward(self, hidden_KH: Tensor) -> Tensor:
        """Hidden states [K, H] of any float type -> float32 [K]."""
        return (hidden_KH.float() @ self.weight.T).squeeze(-1)


class ClassHead(nn.Module):
    """logits = W h (+ b), in float32: the head of transformers' classifiers of texts (without bias) and of tokens.

    Starts at random, as theirs does, or where another one was.

    Args:
        hidden: H.
        classes: C.
        spread: standard deviation of the weight's start; the bias starts at 0.
        bias: whether there is one.
    """

    def __init__(self, hidden: int, classes: int, spread: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, hidden).normal_(0.0, spread))
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None

    def forward(self, hidden_KH: Tensor) -> Tensor:
        """Hidden states [K, H] of any float type -> float32 [K, C]."""
        return nn.functional.linear(hidden_KH.float(), self.weight, self.bias)


def score_head(scorer: PreTrainedModel) -> ScalarHead:
    """A copy of the head of a classifier that is a reward model.

    Raises:
        ModelError: it has none of that kind.
    """
    layer = getattr(scorer, "score", None)
    if not isinstance(layer, nn.Linear) or layer.out_features != 1 or layer.bias is not None:
        raise ModelError(
            f"{type(scorer).__name__} has no `score` layer with one output and no bias, so it cannot be a reward model"
        )
    return ScalarHead(layer.in_features, layer.weight)
