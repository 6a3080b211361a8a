"""From rewards to advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.batch import TokenBatch


def gae(batch: TokenBatch, rewards_T: Tensor, values_T: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the target tokens of each sequence (Schulman et al. 2016, arXiv:1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t

    t runs over target tokens only (tokens of a user's turn in between are skipped) and V after the last one is 0: a response
    ends where it ends, by itself or at the limit.

    Args:
        batch: for the sequence bounds and the target mask.
        rewards_T: reward after each target token, float [T].
        values_T: value of the state in which each target token was chosen, float [T].
        gamma: discount per token, in (0, 1].
        lam: 0 = one-step, 1 = Monte Carlo.

    Returns:
        Advantages and returns, float32 [T], 0 off the targets.
    """
    targets_K = batch.target_mask_T.nonzero().flatten()
    rewards = rewards_T[targets_K].tolist()
    values = values_T[targets_K].tolist()
    sequences = batch.sequence_T[targets_K].tolist()
    advantages = [0.0] * len(rewards)
    next_value = next_advantage = 0.0
    for k in range(len(rewards) - 1, -1, -1):
        if k + 1 == len(rewards) or sequences[k + 1] != sequences[k]:
            next_value = next_advantage = 0.0
        delta = rewards[k] + gamma * next_value - values[k]
        advantages[k] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[k]
    advantages_T = torch.zeros(batch.tokens, dtype=torch.float32, device=rewards_T.device)
    advantages_T[targets_K] = torch.tensor(advantages, dtype=torch.float32, device=rewards_T.device)
    returns_T = (advantages_T + values_T.float()).masked_fill(~batch.target_mask_T, 0.0)
    return advantages_T, returns_T
