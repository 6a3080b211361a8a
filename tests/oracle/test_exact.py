"""Advantages and the KL's weight in exact fractions: the definitions written out anew, without a rounding anywhere."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch

from accord.batch import TokenBatch
from accord.ops.advantages import gae, group_relative, leave_one_out
from accord.ops.kl import AdaptiveKLController
from accord.ops.statistics import RunningMoments, whiten

SEEDS = range(8)


def fraction(draw: random.Random, size: int = 64) -> Fraction:
    """A dyadic number, which float32 holds exactly."""
    return Fraction(draw.randint(-size, size), 16)


def exact_gae(rewards: list[Fraction], values: list[Fraction], gamma: Fraction, lam: Fraction) -> list[Fraction]:
    """A^GAE as the exponentially weighted mean of all k-step estimates (arXiv:1506.02438, equation 16, first line), which is
    another road than the sum of deltas: (1 - lam) (A^1 + lam A^2 + ...), and all the weight that is left on the longest."""
    result = []
    for start in range(len(rewards)):
        steps = len(rewards) - start
        estimates = []
        for k in range(1, steps + 1):
            paid = sum((gamma**i * rewards[start + i] for i in range(k)), Fraction(0))
            after = gamma**k * values[start + k] if start + k < len(values) else Fraction(0)
            estimates.append(paid + after - values[start])
        weighted = sum(((1 - lam) * lam ** (k - 1) * a for k, a in enumerate(estimates[:-1], 1)), Fraction(0))
        result.append(weighted + lam ** (steps - 1) * estimates[-1])
    return result


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), [("1", "19/20"), ("99/100", "1/2"), ("1", "0"), ("9/10", "1")])
def test_gae_is_the_weighted_mean_of_all_k_step_estimates(seed, gamma, lam):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(5)]
    rewards = [[fraction(draw) for _ in range(n)] for n in lengths]
    values = [[fraction(draw) for _ in range(n)] for n in lengths]
    batch = TokenBatch.from_sequences([[1] * (n + 2) for n in lengths], [[False, False] + [True] * n for n in lengths])

    def flat(rows: list[list[Fraction]]) -> torch.Tensor:
        return torch.tensor([float(x) for row in rows for x in (Fraction(99), Fraction(99), *row)])

    found, returns = gae(batch, flat(rewards), flat(values), float(Fraction(gamma)), float(Fraction(lam)))
    exact = [exact_gae(r, v, Fraction(gamma), Fraction(lam)) for r, v in zip(rewards, values, strict=True)]
    wanted = torch.tensor([float(x) for row in exact for x in row], dtype=torch.float64)
    assert torch.allclose(found[batch.target_mask_T].double(), wanted, rtol=1e-6, atol=1e-6)
    ends = torch.tensor(
        [float(x + v) for row, vs in zip(exact, values, strict=True) for x, v in zip(row, vs, strict=True)]
    )
    assert torch.allclose(returns[batch.target_mask_T], ends, rtol=1e-6, atol=1e-5)


def grouped(seed: int) -> tuple[list[Fraction], list[int]]:
    draw = random.Random(seed)
    groups = [g for g in range(4) for _ in range(draw.randint(2, 5))]
    draw.shuffle(groups)
    return [fraction(draw) for _ in groups], groups


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_exactly(seed):
    scores, groups = grouped(seed)
    wanted = []
    for i, score in enumerate(scores):
        others = [s for j, s in enumerate(scores) if groups[j] == groups[i] and j != i]
        wanted.append(float(score - Fraction(sum(others), len(others))))
    found = leave_one_out(torch.tensor([float(s) for s in scores]), torch.tensor(groups))
    assert found.tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_group_relative_exactly(seed):
    scores, groups = grouped(seed)
    wanted = []
    for i, score in enumerate(scores):
        members = [s for j, s in enumerate(scores) if groups[j] == groups[i]]
        mean = Fraction(sum(members), len(members))
        variance = sum(((s - mean) ** 2 for s in members), Fraction(0)) / (len(members) - 1)
        wanted.append(float(score - mean) / (math.sqrt(variance) + 1e-4))
    found = group_relative(torch.tensor([float(s) for s in scores]), torch.tensor(groups))
    assert found.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_adaptive_controller_over_many_updates_exactly(seed):
    """Ziegler et al. 2019 (arXiv:1909.08593, section 2.2), the error bounded to a fifth."""
    draw = random.Random(seed)
    target, horizon, coef = Fraction(6), Fraction(10_000), Fraction(1, 5)
    controller = AdaptiveKLController(float(coef), float(target), float(horizon))
    for _ in range(40):
        kl, samples = Fraction(draw.randint(0, 200), 8), draw.choice([16, 64, 512])
        error = max(min(kl / target - 1, Fraction(1, 5)), Fraction(-1, 5))
        coef *= 1 + error * samples / horizon
        controller.update(float(kl), samples)
    assert controller.coef == pytest.approx(float(coef), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_whitening_and_running_moments_exactly(seed):
    draw = random.Random(seed)
    values = [fraction(draw) for _ in range(30)]
    mean = Fraction(sum(values), len(values))
    variance = sum(((v - mean) ** 2 for v in values), Fraction(0)) / len(values)
    tensor = torch.tensor([float(v) for v in values])
    wanted = [float(v - mean) / math.sqrt(variance + Fraction(1, 10**8)) for v in values]
    assert whiten(tensor, torch.ones(30, dtype=torch.bool)).tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    running = RunningMoments()
    for start in range(0, 30, 7):
        running.update(tensor[start : start + 7])
    assert running.mean == pytest.approx(float(mean), rel=1e-12)
    assert running.std == pytest.approx(math.sqrt(variance), rel=1e-12)
