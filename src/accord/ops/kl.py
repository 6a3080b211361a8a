"""Divergence of the policy from the reference: per-token estimators, and the controllers of its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def kl_per_token(logprobs_T: Tensor, ref_logprobs_T: Tensor, estimator: str) -> Tensor:
    """Estimate KL(policy || reference) from tokens drawn from the policy.

    With d = log policy(token) - log reference(token):
        k1 = d, unbiased, can be negative; k2 = mse = d^2 / 2, low variance, biased; k3 = exp(-d) - 1 + d, unbiased and never
        negative (Schulman 2020, http://joschu.net/blog/kl-approx.html); abs = |d|.
    As loss terms only k2 (exactly, on policy) and k3 (to first order) push along the gradient of the KL; that of k1 is 0 on
    average. "full", the exact sum over the vocabulary, needs the distributions: see `logprobs.full_kl`.

    Args:
        logprobs_T: log-probabilities under the policy, any shape.
        ref_logprobs_T: the same under the reference.
        estimator: one of the names above.

    Returns:
        Estimates in nats, same shape.
    """
    difference_T = logprobs_T - ref_logprobs_T
    match estimator:
        case "k1":
            return difference_T
        case "k2" | "mse":
            return 0.5 * difference_T.square()
        case "k3":
            # A token the policy found by luck can be e^40 times likelier under the reference; float32 must survive it. Both
            # terms are capped, or the gradient would push such a token the wrong way.
            log_ratio_T = (-difference_T).clamp(max=20.0)
            return torch.expm1(log_ratio_T) - log_ratio_T
        case "abs":
            return difference_T.abs()
    raise ValueError(f"unknown KL estimator {estimator!r}: k1, k2, k3, abs, mse")


class FixedKLController:
    """A weight that stays."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, samples: int) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.coef = float(state["coef"])


class AdaptiveKLController(FixedKLController):
    """Proportional control of the weight (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    error = clip(KL / target - 1, -0.2, 0.2); coef <- coef * (1 + error * samples / horizon)

    More than `MOST` horizons of samples count as so many: from five on the weight could fall below 0, which rewards divergence.
    """

    MOST = 4

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """React to the mean KL (nats a response) over so many sampled responses."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * min(samples / self.horizon, self.MOST)
