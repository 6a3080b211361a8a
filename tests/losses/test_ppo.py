from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.losses import kl_penalty, ppo_policy, ppo_value

GARBAGE = [float("nan"), float("inf"), -float("inf"), 1e30]


def policy(ratios: list[float], advantages: list[float], **other: object) -> tuple[Tensor, dict[str, float], Tensor]:
    """The loss of tokens with given ratios, all of them targets; also the gradient."""
    logprobs = torch.tensor([math.log(ratio) - 1.0 for ratio in ratios], dtype=torch.float64, requires_grad=True)
    loss, metrics = ppo_policy(
        logprobs_T=logprobs,
        old_logprobs_T=torch.full_like(logprobs, -1.0).detach(),
        advantages_T=torch.tensor(advantages, dtype=torch.float64),
        mask_T=torch.ones(len(ratios), dtype=torch.bool),
        tokens=torch.tensor(float(len(ratios))),
        **({"clip": 0.2} | other),
    )
    loss.backward()
    return loss, {name: value.item() for name, value in metrics.items()}, logprobs.grad


# --- policy ----------------------------------------------------------------------------------------------------------


def test_at_ratio_1_the_loss_is_minus_the_mean_advantage_and_the_gradient_minus_each():
    advantages = [2.0, -1.0, 0.5, 0.0]
    loss, metrics, gradient = policy([1.0] * 4, advantages)
    assert loss.item() == -0.375  # -(2 - 1 + 0.5 + 0) / 4
    assert gradient.tolist() == [-0.5, 0.25, -0.125, 0.0]
    assert metrics == {
        "ppo/loss/policy": -0.375,
        "ppo/policy/clipfrac": 0.0,
        "ppo/policy/approxkl": 0.0,
        "ppo/policy/ratio_mean": 1.0,
        "ppo/policy/ratio_max": 1.0,
    }


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, 1.0),  # good and already likelier: -2 * 1.2, no more push
        (0.5, 2.0, -1.0, -1.0, 0.0),  # good but less likely: -2 * 0.5, pushed up with -A ratio
        (0.5, -2.0, 1.6, 0.0, 1.0),  # bad and already less likely: 2 * 0.8, no more push
        (1.5, -2.0, 3.0, 3.0, 0.0),  # bad but likelier: 2 * 1.5, pushed down
        (1.1, 2.0, -2.2, -2.2, 0.0),  # inside the free range
        (0.9, -2.0, 1.8, 1.8, 0.0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    got, metrics, slope = policy([ratio], [advantage])
    assert got.item() == pytest.approx(loss, rel=1e-14)
    assert slope.item() == pytest.approx(gradient, rel=1e-14, abs=1e-15)
    assert metrics["ppo/policy/clipfrac"] == clipped


def test_metrics_by_hand():
    # ratios 2 and 1/2: mean 1.25, largest 2; approximate KL ((2 - 1 - ln 2) + (0.5 - 1 + ln 2)) / 2 = 0.25
    _, metrics, _ = policy([2.0, 0.5], [1.0, 1.0])
    assert metrics["ppo/policy/ratio_mean"] == pytest.approx(1.25, rel=1e-14)
    assert metrics["ppo/policy/ratio_max"] == pytest.approx(2.0, rel=1e-14)
    assert metrics["ppo/policy/approxkl"] == pytest.approx(0.25, rel=1e-14)
    assert metrics["ppo/policy/clipfrac"] == 0.5


def test_entropy_bonus_by_hand():
    # surrogate -(1 + 1) / 2 = -1; bonus 0.1 * (0.4 + 1.0) / 2 = 0.07
    entropies = torch.tensor([0.4, 1.0], dtype=torch.float64, requires_grad=True)
    loss, metrics, _ = policy([1.0, 1.0], [1.0, 1.0], entropies_T=entropies, entropy_coef=0.1)
    assert loss.item() == pytest.approx(-1.07, rel=1e-14)
    assert metrics["objective/entropy"] == pytest.approx(0.7, rel=1e-14)
    assert metrics["ppo/loss/policy"] == -1.0, "the surrogate is reported without the bonus"
    assert entropies.grad.tolist() == [-0.05, -0.05], "a step down raises the entropy"


def test_entropy_is_reported_even_if_it_has_no_weight():
    loss, metrics, _ = policy([1.0], [1.0], entropies_T=torch.tensor([0.5]))
    assert loss.item() == -1.0 and metrics["objective/entropy"] == 0.5


def test_sign_a_step_down_makes_good_tokens_likelier_and_bad_ones_less_likely():
    _, _, gradient = policy([1.05, 1.05], [1.0, -1.0])
    assert gradient[0] < 0 < gradient[1]


def policy_naive(
    now: list[float], old: list[float], advantages: list[float], mask: list[bool], clip: float
) -> tuple[float, list[float]]:
    """The paper's objective, min(r A, clip(r) A), token by token; and its derivative, case by case."""
    count, total, slopes = sum(mask), 0.0, [0.0] * len(now)
    for t in range(len(now)):
        if not mask[t]:
            continue
        ratio, advantage = math.exp(now[t] - old[t]), advantages[t]
        total += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
        held = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
        slopes[t] = 0.0 if held else -advantage * ratio / count
    return -total / count, slopes


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.9])
def test_policy_equals_a_loop_over_the_paper_s_objective(ragged, clip):
    old = ragged.logprobs()
    now = (old + ragged.normal(0.4)).requires_grad_()
    advantages = ragged.normal(2.0)
    loss, metrics = ppo_policy(
        logprobs_T=now,
        old_logprobs_T=old,
        advantages_T=advantages,
        mask_T=ragged.mask,
        tokens=ragged.count,
        clip=clip,
    )
    loss.backward()
    expected, slopes = policy_naive(now.tolist(), old.tolist(), advantages.tolist(), ragged.mask.tolist(), clip)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(now.grad, torch.tensor(slopes, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    held = [s == 0 for s, m in zip(slopes, ragged.mask.tolist(), strict=True) if m]
    assert metrics["ppo/policy/clipfrac"].item() == pytest.approx(sum(held) / len(held))


def test_a_ratio_out_of_all_bounds_stays_finite():
    loss, metrics, gradient = policy([math.exp(300), math.exp(-300)], [-1.0, -1.0])
    assert math.isfinite(loss.item()) and bool(torch.isfinite(gradient).all())
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["ppo/policy/ratio_max"] > 1e8, "and the guard sees it"


# --- value -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient", "clipped"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9, 0.0),  # inside the range: (1.1 - 2)^2 / 2
        (1.5, 1.0, 2.0, 0.32, 0.0, 1.0),  # ran ahead towards the target: held at 1.2, (1.2 - 2)^2 / 2 is worse, no push
        (0.5, 1.0, 2.0, 1.125, -1.5, 0.0),  # ran away from the target: (0.5 - 2)^2 / 2 is worse than (0.8 - 2)^2 / 2
        (0.5, 1.0, 0.0, 0.32, 0.0, 1.0),  # the same downwards: held at 0.8
        (1.5, 1.0, 0.0, 1.125, 1.5, 0.0),
    ],
)
def test_value_clipping_by_hand(value, old, target, loss, gradient, clipped):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    got, metrics = ppo_value(
        values_T=values,
        old_values_T=torch.tensor([old], dtype=torch.float64),
        returns_T=torch.tensor([target], dtype=torch.float64),
        mask_T=torch.tensor([True]),
        tokens=torch.tensor(1.0),
        value_clip=0.2,
    )
    got.backward()
    assert got.item() == pytest.approx(loss, rel=1e-14)
    assert values.grad.item() == pytest.approx(gradient, rel=1e-14, abs=1e-15)
    assert metrics["ppo/val/clipfrac"].item() == clipped
    assert metrics["ppo/val/mean"].item() == value
    assert metrics["ppo/loss/value"].item() == got.item()


def test_without_clipping_it_is_half_the_mean_squared_error(ragged):
    values, returns = ragged.normal().requires_grad_(), ragged.normal()
    loss, metrics = ppo_value(
        values_T=values,
        old_values_T=ragged.normal(),
        returns_T=returns,
        mask_T=ragged.mask,
        tokens=ragged.count,
        value_clip=None,
    )
    loss.backward()
    expected = 0.5 * torch.nn.functional.mse_loss(values[ragged.mask], returns[ragged.mask])
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(
        values.grad, ((values - returns) * ragged.mask / ragged.count).detach(), rtol=1e-13, atol=0
    )
    assert metrics["ppo/val/clipfrac"].item() == 0.0


def test_value_equals_a_loop(ragged):
    values, old, returns = ragged.normal().requires_grad_(), ragged.normal(), ragged.normal(2.0)
    loss, _ = ppo_value(
        values_T=values, old_values_T=old, returns_T=returns, mask_T=ragged.mask, tokens=ragged.count, value_clip=0.3
    )
    total = 0.0
    for v, o, r, m in zip(values.tolist(), old.tolist(), returns.tolist(), ragged.mask.tolist(), strict=True):
        near = min(max(v, o - 0.3), o + 0.3)
        total += max((v - r) ** 2, (near - r) ** 2) / 2 if m else 0.0
    assert loss.item() == pytest.approx(total / ragged.count.item(), rel=1e-12)


def test_sign_a_step_down_moves_the_value_to_the_return():
    values = torch.tensor([0.0, 0.0], requires_grad=True)
    zeros = torch.zeros(2)
    ppo_value(
        values_T=values,
        old_values_T=zeros,
        returns_T=torch.tensor([1.0, -1.0]),
        mask_T=torch.ones(2, dtype=torch.bool),
        tokens=torch.tensor(2.0),
        value_clip=0.2,
    )[0].backward()
    assert values.grad.tolist() == [-0.5, 0.5]


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "expected", "gradient"),
    [
        # d = 0.5 and -1, two tokens, coef 0.4: each token weighs 0.2
        ("k2", 0.2 * (0.125 + 0.5), [0.2 * 0.5, 0.2 * -1.0]),  # derivative d
        ("mse", 0.2 * (0.125 + 0.5), [0.2 * 0.5, 0.2 * -1.0]),
        ("k3", 0.2 * (math.exp(-0.5) - 0.5 + math.e - 2), [0.2 * (1 - math.exp(-0.5)), 0.2 * (1 - math.e)]),  # 1 - e^-d
    ],
)
def test_kl_penalty_literals(estimator, expected, gradient):
    logprobs = torch.tensor([-1.0, -2.0, -7.0], dtype=torch.float64, requires_grad=True)
    loss, metrics = kl_penalty(
        logprobs_T=logprobs,
        ref_logprobs_T=torch.tensor([-1.5, -1.0, 0.0], dtype=torch.float64),
        mask_T=torch.tensor([True, True, False]),
        tokens=torch.tensor(2.0),
        estimator=estimator,
        coef=0.4,
    )
    loss.backward()
    assert loss.item() == metrics["ppo/loss/kl"].item() == pytest.approx(expected, rel=1e-14)
    assert logprobs.grad.tolist() == pytest.approx([*gradient, 0.0], rel=1e-14)


def test_sign_a_step_down_on_the_kl_moves_to_the_reference():
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    kl_penalty(
        logprobs_T=logprobs,
        ref_logprobs_T=torch.tensor([-2.0, -2.0]),
        mask_T=torch.ones(2, dtype=torch.bool),
        tokens=torch.tensor(2.0),
        estimator="k2",
        coef=1.0,
    )[0].backward()
    assert logprobs.grad[0] > 0 > logprobs.grad[1]


# --- masked tokens ---------------------------------------------------------------------------------------------------


def streams_of(ragged, name: str) -> tuple[object, dict[str, Tensor], tuple[str, ...], dict[str, object]]:
    """The loss, its streams, those with a gradient, and its other arguments."""
    match name:
        case "policy":
            streams = {"old_logprobs_T": ragged.logprobs(), "advantages_T": ragged.normal()}
            streams |= {
                "logprobs_T": streams["old_logprobs_T"] + ragged.normal(0.3),
                "entropies_T": ragged.normal().abs(),
            }
            return ppo_policy, streams, ("logprobs_T", "entropies_T"), {"clip": 0.2, "entropy_coef": 0.01}
        case "value":
            streams = {key: ragged.normal() for key in ("values_T", "old_values_T", "returns_T")}
            return ppo_value, streams, ("values_T",), {"value_clip": 0.2}
        case "value without clip":
            streams = {key: ragged.normal() for key in ("values_T", "old_values_T", "returns_T")}
            return ppo_value, streams, ("values_T",), {"value_clip": None}
    streams = {"logprobs_T": ragged.logprobs(), "ref_logprobs_T": ragged.logprobs()}
    return kl_penalty, streams, ("logprobs_T",), {"estimator": name, "coef": 0.2}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ["policy", "value", "value without clip", "k2", "k3", "mse"])
def test_masked_tokens_change_nothing(ragged, name, garbage):
    loss_of, clean, learnt, other = streams_of(ragged, name)

    def run(streams: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        leaves = {key: streams[key].clone().requires_grad_() for key in learnt}
        loss, metrics = loss_of(**(streams | leaves), mask_T=ragged.mask, tokens=ragged.count, **other)
        loss.backward()
        return loss, metrics, [leaf.grad for leaf in leaves.values()]

    loss, metrics, gradients = run(clean)
    # In one stream alone too: garbage beside garbage can hide, as a clamp has no gradient at infinity.
    for dirty in (clean.keys(), *([key] for key in clean)):
        spoilt = {key: clean[key].masked_fill(~ragged.mask, garbage) for key in dirty}
        loss_with, metrics_with, gradients_with = run(clean | spoilt)
        assert torch.equal(loss, loss_with)
        assert metrics.keys() == metrics_with.keys()
        assert all(torch.equal(metrics[key], metrics_with[key]) for key in metrics)
        for one, other_gradient in zip(gradients, gradients_with, strict=True):
            assert torch.equal(one, other_gradient)
            assert bool((other_gradient[~ragged.mask] == 0).all()) and bool((one[ragged.mask] != 0).any())


@pytest.mark.parametrize("name", ["policy", "value", "k2"])
def test_a_batch_without_targets_gives_0_and_no_gradient(ragged, name):
    loss_of, streams, learnt, other = streams_of(ragged, name)
    leaves = {key: streams[key].clone().requires_grad_() for key in learnt}
    nothing = torch.zeros_like(ragged.mask)
    loss, _ = loss_of(**(streams | leaves), mask_T=nothing, tokens=torch.tensor(5.0), **other)
    loss.backward()
    assert loss.item() == 0.0 and all(bool((leaf.grad == 0).all()) for leaf in leaves.values())


@pytest.mark.parametrize("name", ["policy", "value", "k2"])
def test_metrics_carry_no_graph(ragged, name):
    loss_of, streams, learnt, other = streams_of(ragged, name)
    leaves = {key: streams[key].clone().requires_grad_() for key in learnt}
    _, metrics = loss_of(**(streams | leaves), mask_T=ragged.mask, tokens=ragged.count, **other)
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == () for value in metrics.values())
