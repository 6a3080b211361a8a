"""From rewards to advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.batch import TokenBatch
from accord.ops.statistics import SumOverRanks, moments, one_rank

SAME_SCORE = 1e-8
"""Scores that are no further apart are one score."""


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


def leave_one_out(scores_N: Tensor, group_N: Tensor) -> Tensor:
    """Score minus the mean score of the other responses to the same prompt (Kool et al. 2019; RLOO, arXiv:2402.14740).

    A_i = s_i - 1/(n-1) sum_{j != i} s_j = n/(n-1) (s_i - mean)

    Args:
        scores_N: float32 [N].
        group_N: responses with the same number answer the same prompt; int64 [N].

    Returns:
        float32 [N].

    Raises:
        ValueError: a group of one, which has no others.
    """
    sizes_N, means_N, _ = _groups(scores_N, group_N)
    alone = (sizes_N < 2).nonzero().flatten().tolist()
    if alone:
        raise ValueError(
            f"response {alone[0]} is the only one to its prompt, so there are no others to compare it with"
        )
    return (scores_N - means_N) * sizes_N / (sizes_N - 1)


def group_relative(
    scores_N: Tensor, group_N: Tensor, scale: str = "group", sum_over_ranks: SumOverRanks = one_rank
) -> Tensor:
    """Score relative to the other responses to the same prompt (GRPO, arXiv:2402.03300, section 4.1.2).

    A_i = (s_i - mean(group)) / d, with d by `scale`: `group`, the group's standard deviation (of n - 1, plus 1e-4, as TRL and
    DeepSeekMath's code have it); `batch`, the standard deviation of all scores of all ranks (plus 1e-4); `none`, 1.
    """
    sizes_N, means_N, squares_N = _groups(scores_N, group_N)
    centred_N = scores_N - means_N
    match scale:
        case "group":
            return centred_N / ((squares_N / (sizes_N - 1).clamp(min=1)).sqrt() + 1e-4)
        case "batch":
            everything = torch.ones_like(scores_N, dtype=torch.bool)
            count, _, variance = moments(scores_N, everything, sum_over_ranks)
            return centred_N / (float((variance * count / (count - 1).clamp(min=1)).sqrt()) + 1e-4)
        case "none":
            return centred_N
    raise ValueError(f"unknown scale {scale!r}: group, batch, none")


def decoupled(
    scores_RN: Tensor,
    applies_RN: Tensor,
    weights_R: Tensor,
    group_N: Tensor,
    sum_over_ranks: SumOverRanks = one_rank,
) -> Tensor:
    """Several rewards, each relative to its own group, then added up and normalised over the batch (GDPO, arXiv:2601.05242,
    section 3).

    a_ri = (s_ri - mean_r(group)) / (std_r(group) + 1e-4);  a_i = sum_r w_r a_ri;  A_i = (a_i - mean(a)) / (std(a) + 1e-4)

    Standard deviations are of n - 1, as in TRL's and the authors' code. A reward that does not apply to a response is left out
    of its group's mean and deviation, and adds 0 to its a_i: neither better nor worse than the others.

    Args:
        scores_RN: one row a reward source; float [R, N]. Values where it does not apply are not read.
        applies_RN: whether the source says something about the response; bool [R, N].
        weights_R: of the sources, float [R].
        group_N: responses with the same number answer the same prompt; int64 [N]. A group is on one rank.
        sum_over_ranks: for mean and deviation over the batch.

    Returns:
        float32 [N].
    """
    summed_N = torch.zeros(group_N.shape[0], dtype=torch.float64)
    for scores_N, applies_N, weight in zip(scores_RN, applies_RN, weights_R.tolist(), strict=True):
        if applies_N.any():
            known = group_relative(scores_N[applies_N], group_N[applies_N])
            summed_N[applies_N] += weight * known.double()
    everything = torch.ones_like(summed_N, dtype=torch.bool)
    count, mean, variance = moments(summed_N, everything, sum_over_ranks)
    return ((summed_N - mean) / ((variance * count / (count - 1).clamp(min=1)).sqrt() + 1e-4)).float()


def group_spread(scores_N: Tensor, group_N: Tensor, applies_N: Tensor) -> Tensor:
    """For each response the distance between the highest and the lowest score of its group, 0 where they are the same; [N].

    Args:
        scores_N: float [N].
        group_N: responses with the same number answer the same prompt; int64 [N].
        applies_N: which scores count, bool [N]; a group without any has a spread of 0.
    """
    _, member_N = torch.unique(group_N, return_inverse=True)
    none = torch.full((int(member_N.max()) + 1,), -torch.inf, dtype=scores_N.dtype)
    highest, minus_lowest = (
        none.scatter_reduce(0, member_N[applies_N], sign * scores_N[applies_N], reduce="amax") for sign in (1, -1)
    )
    return (highest + minus_lowest).clamp(min=0)[member_N]


def _groups(scores_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each response the size, mean and sum of squared distances of its group: float32 [N] each."""
    _, member_N = torch.unique(group_N, return_inverse=True)
    groups = int(member_N.max()) + 1

    def total(values_N: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64).index_add(0, member_N, values_N.double())[member_N]

    sizes_N = total(torch.ones_like(scores_N))
    means_N = total(scores_N) / sizes_N
    squares_N = total((scores_N.double() - means_N).square())
    return sizes_N.float(), means_N.float(), squares_N.float()


def spread_over_tokens(values_N: Tensor, batch: TokenBatch) -> Tensor:
    """Each sequence's value at each of its target tokens: float32 [T], 0 elsewhere."""
    return values_N[batch.sequence_T].float().masked_fill(~batch.target_mask_T, 0.0)


def returns_to_go(batch: TokenBatch, rewards_T: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each target token on: float32 [T]. GAE with lam = 1 and values 0."""
    return gae(batch, rewards_T, torch.zeros_like(rewards_T), gamma, 1.0)[0]
