from __future__ import annotations

import dataclasses
import json
import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms import PPO, Denominators
from accord.algorithms.rollouts import shape_scores
from accord.batch import TokenBatch
from accord.config import KLConfig, PPOConfig
from accord.model.forward import Outputs
from accord.ops.statistics import SumOverRanks
from accord.types import Rollout


class Says:
    """A scorer that says what it was told, and notes what it was asked."""

    def __init__(self, **streams: Sequence[float] | Tensor) -> None:
        self.streams = {name: torch.as_tensor(stream, dtype=torch.float32) for name, stream in streams.items()}
        self.asked: list[tuple[str, ...]] = []

    def score(self, batch: TokenBatch, wanted: Sequence[str]) -> dict[str, Tensor]:
        self.asked.append(tuple(wanted))
        return {name: self.streams[name] for name in wanted}


def rollout(prompt: int, logprobs: Sequence[float], score: float, finish: Any = "stop", **other: Any) -> Rollout:
    """A rollout with so many prompt tokens, and one response token for each log-probability."""
    response = tuple(range(10, 10 + len(logprobs)))
    return Rollout(tuple(range(1, prompt + 1)), response, tuple(logprobs), finish, "p", "r", score=score, **other)


# Two rollouts: prompt of 2 and response of 2; prompt of 1 and response of 1.
#   log policy - log reference:  -1 + 1.5 = 0.5,  -2 + 1.8 = -0.2  |  -0.5 + 1 = 0.5
HAND = [rollout(2, [-1.0, -2.0], 1.0), rollout(1, [-0.5], -0.5, "length")]
OLD, REF, VALUES = [0, 0, -1.0, -2.0, 0, -0.5], [0, 0, -1.5, -1.8, 0, -1.0], [0, 0, 0.3, 0.4, 0, -0.1]
PLAIN = {"whiten_advantages": False, "gamma": 1.0, "lam": 1.0}


def hand_scorer(**more: Any) -> Says:
    return Says(old_logprobs_T=OLD, ref_logprobs_T=REF, values_T=VALUES, **more)


def close(got: Tensor | None, expected: Sequence[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-6)


# --- rewards, advantages, metrics by hand ----------------------------------------------------------------------------


def test_the_score_comes_at_the_last_token_and_the_kl_at_each():
    # coef 0.2: penalties -0.1, +0.04 | -0.1; the scores 1 and -0.5 on top of the last tokens
    batch, metrics = PPO(PPOConfig(**PLAIN)).prepare(HAND, hand_scorer())
    close(batch.rewards_T, [0, 0, -0.1, 1.04, 0, -0.6])
    # gamma = lambda = 1: return = rewards to come; advantage = return - value
    close(batch.returns_T, [0, 0, 0.94, 1.04, 0, -0.6])
    close(batch.advantages_T, [0, 0, 0.64, 0.64, 0, -0.5])
    assert metrics["ppo/mean_scores"] == pytest.approx(0.25)
    assert metrics["ppo/mean_non_score_reward"] == pytest.approx(-0.08)  # ((-0.1 + 0.04) + -0.1) / 2
    assert metrics["objective/kl"] == pytest.approx(0.4)  # ((0.5 - 0.2) + 0.5) / 2
    assert metrics["objective/kl_coef"] == 0.2, "the coefficient that was used, not the next one"
    assert metrics["env/reward_mean"] == pytest.approx(0.25) and metrics["env/reward_std"] == pytest.approx(0.75)
    assert metrics["ppo/advantages/mean"] == pytest.approx(0.26)  # (0.64 + 0.64 - 0.5) / 3
    assert metrics["ppo/returns/mean"] == pytest.approx(0.46)  # (0.94 + 1.04 - 0.6) / 3
    # returns 0.94 1.04 -0.6: variance 5.6472e-1 = (0.48^2 + 0.58^2 + 1.06^2) / 3; errors 0.64 0.64 -0.5: 0.2888
    assert metrics["ppo/val/var_explained"] == pytest.approx(1 - 0.2888 / 0.5634667, rel=1e-5)


def test_a_larger_kl_means_a_smaller_reward():
    further = Says(old_logprobs_T=OLD, ref_logprobs_T=[r - 1 if r else 0 for r in REF], values_T=VALUES)
    near, _ = PPO(PPOConfig(**PLAIN)).prepare(HAND, hand_scorer())
    far, _ = PPO(PPOConfig(**PLAIN)).prepare(HAND, further)
    targets = near.target_mask_T
    close((far.rewards_T - near.rewards_T)[targets], [-0.2, -0.2, -0.2])


@pytest.mark.parametrize(
    ("estimator", "penalties"),
    [
        ("k1", [-0.1, 0.04, -0.1]),
        ("abs", [-0.1, -0.04, -0.1]),
        ("k2", [-0.025, -0.004, -0.025]),
        ("mse", [-0.025, -0.004, -0.025]),
        ("k3", [-0.0213061, -0.0042806, -0.0213061]),  # -0.2 (e^-0.5 - 0.5), -0.2 (e^0.2 - 1.2)
    ],
)
def test_estimators_in_the_reward(estimator, penalties):
    config = PPOConfig(kl=KLConfig(estimator=estimator), **PLAIN)
    batch, metrics = PPO(config).prepare(HAND, hand_scorer())
    close(batch.rewards_T, [0, 0, penalties[0], penalties[1] + 1.0, 0, penalties[2] - 0.5])
    assert metrics["objective/kl"] == pytest.approx(0.4), "the measured KL is k1, whatever the penalty"


def test_the_exact_kl_is_asked_for_and_used():
    scorer = hand_scorer(full_kl_T=[0, 0, 0.7, 0.1, 0, 0.2])
    batch, _ = PPO(PPOConfig(kl=KLConfig(estimator="full"), **PLAIN)).prepare(HAND, scorer)
    assert scorer.asked == [("old_logprobs_T", "ref_logprobs_T", "values_T", "full_kl_T")]
    close(batch.rewards_T, [0, 0, -0.14, 0.98, 0, -0.54])


def test_the_exact_kl_is_not_computed_unless_used():
    scorer = hand_scorer()
    PPO(PPOConfig(**PLAIN)).prepare(HAND, scorer)
    assert scorer.asked == [("old_logprobs_T", "ref_logprobs_T", "values_T")]


def test_streams_of_the_models_are_kept():
    batch, _ = PPO(PPOConfig(**PLAIN)).prepare(HAND, hand_scorer())
    assert batch.old_logprobs_T.tolist() == pytest.approx(OLD)
    assert batch.ref_logprobs_T.tolist() == pytest.approx(REF)
    assert batch.values_T.tolist() == pytest.approx(VALUES)
    assert batch.sampler_logprobs_T.tolist() == [0, 0, -1.0, -2.0, 0, -0.5]


def test_kl_in_the_loss_leaves_the_rewards_alone():
    algorithm = PPO(PPOConfig(kl=KLConfig(use="loss", target=None), **PLAIN))
    batch, metrics = algorithm.prepare(HAND, hand_scorer())
    assert batch.rewards_T.tolist() == [0, 0, 0, 1.0, 0, -0.5]
    assert metrics["ppo/mean_non_score_reward"] == 0.0
    # ratio 1 and k2: -mean A + 0.2 * (0.125 + 0.02 + 0.125) / 3
    outputs = Outputs(logprobs_T=torch.tensor(OLD), entropies_T=torch.zeros(6))
    loss, parts = algorithm.loss("policy", outputs, batch, Denominators(torch.tensor(3.0), torch.tensor(2.0)))
    assert parts["ppo/loss/kl"].item() == pytest.approx(0.018, rel=1e-5)
    assert loss.item() == pytest.approx(-batch.advantages_T.sum().item() / 3 + 0.018, rel=1e-5)


def test_kl_in_the_reward_is_not_in_the_loss_too():
    algorithm = PPO(PPOConfig(**PLAIN))
    batch, _ = algorithm.prepare(HAND, hand_scorer())
    outputs = Outputs(logprobs_T=torch.tensor(OLD), entropies_T=torch.zeros(6))
    loss, parts = algorithm.loss("policy", outputs, batch, Denominators(torch.tensor(3.0), torch.tensor(2.0)))
    assert "ppo/loss/kl" not in parts
    assert loss.item() == pytest.approx(-(0.64 + 0.64 - 0.5) / 3, rel=1e-5)


def test_the_controller_is_told_the_kl_and_the_number_of_responses():
    # 0.4 / 6 - 1 is clipped to -0.2: 0.2 * (1 - 0.2 * 2 / 10000)
    algorithm = PPO(PPOConfig(**PLAIN))
    algorithm.prepare(HAND, hand_scorer())
    assert algorithm.controller.coef == pytest.approx(0.199992, rel=1e-12)
    fixed = PPO(PPOConfig(kl=KLConfig(target=None), **PLAIN))
    fixed.prepare(HAND, hand_scorer())
    assert fixed.controller.coef == 0.2


def test_advantages_are_whitened_over_all_targets():
    # 0.64 0.64 -0.5: mean 0.26, deviation 0.5374
    batch, metrics = PPO(PPOConfig(gamma=1.0, lam=1.0)).prepare(HAND, hand_scorer())
    close(batch.advantages_T, [0, 0, 0.70710678, 0.70710678, 0, -1.41421356])
    close(batch.returns_T, [0, 0, 0.94, 1.04, 0, -0.6])  # not those of the whitened advantages
    assert metrics["ppo/advantages/std"] == pytest.approx(0.2888**0.5, rel=1e-5), "as they were before"


def test_rewards_are_whitened_but_keep_their_mean():
    batch, _ = PPO(PPOConfig(whiten_rewards=True, **PLAIN)).prepare(HAND, hand_scorer())
    got = batch.rewards_T[batch.target_mask_T].double()
    assert got.mean().item() == pytest.approx((-0.1 + 1.04 - 0.6) / 3, rel=1e-5)
    assert got.var(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    assert batch.rewards_T[~batch.target_mask_T].tolist() == [0.0] * 3


# --- shaping of the scores -------------------------------------------------------------------------------------------


def shaped(scores: Sequence[float], finished: Sequence[str] | None = None, **config: Any) -> list[float]:
    algorithm = PPO(PPOConfig(**config))
    return shape(algorithm, scores, finished)


def shape(algorithm: PPO, scores: Sequence[float], finished: Sequence[str] | None = None) -> list[float]:
    rollouts = [rollout(1, [-1.0], s, f) for s, f in zip(scores, finished or ["stop"] * len(scores), strict=True)]
    batch = TokenBatch.from_sequences(
        [[1, 2]] * len(scores), [[False, True]] * len(scores), scores_N=torch.tensor(scores)
    )
    return shape_scores(batch, rollouts, algorithm.config, algorithm.reward_moments).tolist()


def test_scores_pass_untouched_by_default():
    assert shaped([1.5, -40.0], ["stop", "length"]) == [1.5, -40.0]


def test_missing_end_costs_a_penalty():
    assert shaped([1.0, 1.0], ["stop", "length"], missing_eos_penalty=3.0) == [1.0, -2.0]


def test_order_penalty_then_scale_then_clip():
    # (1 - 3) * 2 = -4 -> -2.5. Scale before penalty would give 2 - 3 = -1; clip before scale 2 * -2.
    config = {"missing_eos_penalty": 3.0, "reward_scale": 2.0, "reward_clip": 2.5}
    assert shaped([1.0, 1.0, 9.0], ["length", "stop", "stop"], **config) == [-2.5, 2.0, 2.5]


def test_normalisation_comes_after_scale_and_before_clip():
    # 10 * (0, 2) = (0, 20): mean 10, deviation 10 -> (-1, 1), and clipped to 0.5. Clip first would give (-1, 1) again.
    assert shaped([0.0, 2.0], reward_scale=10.0, reward_normalize=True) == [-1.0, 1.0]
    assert shaped([0.0, 2.0], reward_scale=10.0, reward_normalize=True, reward_clip=0.5) == [-0.5, 0.5]


def test_normalisation_runs_over_all_scores_seen():
    algorithm = PPO(PPOConfig(reward_normalize=True))
    assert shape(algorithm, [0.0, 2.0]) == [-1.0, 1.0]
    # now 0 2 4 6: mean 3, deviation sqrt 5
    assert shape(algorithm, [4.0, 6.0]) == pytest.approx([1 / 5**0.5, 3 / 5**0.5], rel=1e-6)


def test_metrics_show_raw_and_shaped_scores():
    _, metrics = PPO(PPOConfig(reward_scale=10.0, **PLAIN)).prepare(HAND, hand_scorer())
    assert metrics["env/reward_mean"] == pytest.approx(0.25) and metrics["ppo/mean_scores"] == pytest.approx(2.5)


# --- minibatches -----------------------------------------------------------------------------------------------------


def numbered(sequences: int) -> TokenBatch:
    return TokenBatch.from_sequences(
        [[n, n] for n in range(sequences)], [[False, True]] * sequences, group_N=torch.arange(sequences)
    )


@pytest.mark.parametrize(("sequences", "minibatches", "epochs"), [(8, 4, 3), (7, 3, 2), (5, 1, 2), (4, 4, 1)])
def test_each_epoch_takes_each_sequence_once(sequences, minibatches, epochs):
    algorithm = PPO(PPOConfig(epochs=epochs, minibatches=minibatches))
    pieces = list(algorithm.minibatches(numbered(sequences), torch.Generator().manual_seed(0)))
    assert len(pieces) == epochs * minibatches
    orders = []
    for epoch in range(epochs):
        members = [piece.group_N.tolist() for piece in pieces[epoch * minibatches : (epoch + 1) * minibatches]]
        assert max(map(len, members)) - min(map(len, members)) <= 1
        orders.append([n for piece in members for n in piece])
        assert sorted(orders[-1]) == list(range(sequences))
    assert sequences < 5 or orders[0] != orders[-1] or epochs == 1, "a new order each epoch"


def test_the_generator_alone_decides_the_order():
    algorithm = PPO(PPOConfig())

    def order(seed: int) -> list[list[int]]:
        torch.manual_seed(random.randint(0, 1 << 30))  # the global state must not matter
        generator = torch.Generator().manual_seed(seed)
        return [piece.group_N.tolist() for piece in algorithm.minibatches(numbered(16), generator)]

    assert order(3) == order(3) != order(4)


# --- roles and losses ------------------------------------------------------------------------------------------------


def prepared(config: PPOConfig, times: int, **other: Any) -> PPO:
    algorithm = PPO(config, **other)
    for _ in range(times):
        algorithm.prepare(HAND, hand_scorer())
    return algorithm


def test_roles_with_a_critic_of_its_own():
    config = PPOConfig(value_warmup=2)
    for iteration, expected in [(1, ["critic"]), (2, ["critic"]), (3, ["policy", "critic"])]:
        assert [role.role for role in prepared(config, iteration).roles()] == expected
    assert [role.role for role in prepared(PPOConfig(), 1).roles()] == ["policy", "critic"]
    policy, critic = prepared(PPOConfig(), 1).roles()
    assert policy.entropy and not critic.entropy and not policy.heads_only


def test_roles_with_the_critic_on_the_trunk():
    for iteration, heads_only in [(1, True), (2, False)]:
        (role,) = prepared(PPOConfig(value_warmup=1), iteration, critic_on_trunk=True).roles()
        assert (role.role, role.heads_only, role.entropy) == ("policy", heads_only, True)


def outputs_with_gradient() -> tuple[Outputs, Tensor, Tensor]:
    logprobs = (torch.tensor(OLD) + 0.05).requires_grad_()
    values = torch.tensor([0, 0, 0.5, 0.3, 0, 0.0]).requires_grad_()
    return Outputs(logprobs_T=logprobs, entropies_T=torch.zeros(6), values_T=values), logprobs, values


def test_loss_on_the_trunk_is_policy_plus_weighted_value():
    algorithm = prepared(PPOConfig(value_coef=0.5, value_clip=None, **PLAIN), 0, critic_on_trunk=True)
    batch, _ = algorithm.prepare(HAND, hand_scorer())
    outputs, _, _ = outputs_with_gradient()
    loss, metrics = algorithm.loss("policy", outputs, batch, Denominators(torch.tensor(3.0), torch.tensor(2.0)))
    # returns 0.94 1.04 -0.6, values 0.5 0.3 0: (0.44^2 + 0.74^2 + 0.6^2) / 6
    assert metrics["ppo/loss/value"].item() == pytest.approx((0.1936 + 0.5476 + 0.36) / 6, rel=1e-5)
    # ratio e^0.05 everywhere, inside the clip range: -0.26 e^0.05
    assert metrics["ppo/loss/policy"].item() == pytest.approx(-0.26 * 1.0512711, rel=1e-5)
    total = metrics["ppo/loss/policy"].item() + 0.5 * metrics["ppo/loss/value"].item()
    assert loss.item() == metrics["ppo/loss/total"].item() == pytest.approx(total, rel=1e-6)


def test_in_the_warm_up_the_policy_gets_no_gradient():
    algorithm = prepared(PPOConfig(value_warmup=1, **PLAIN), 0, critic_on_trunk=True)
    batch, _ = algorithm.prepare(HAND, hand_scorer())
    outputs, logprobs, values = outputs_with_gradient()
    loss, metrics = algorithm.loss("policy", outputs, batch, Denominators(torch.tensor(3.0), torch.tensor(2.0)))
    loss.backward()
    assert logprobs.grad is None and bool((values.grad != 0).any())
    assert "ppo/loss/policy" in metrics, "it is still watched"


def test_a_critic_of_its_own_gets_the_value_loss_alone():
    algorithm = PPO(PPOConfig(**PLAIN))
    batch, _ = algorithm.prepare(HAND, hand_scorer())
    outputs, _, _ = outputs_with_gradient()
    loss, metrics = algorithm.loss(
        "critic", Outputs(values_T=outputs.values_T), batch, Denominators(torch.tensor(3.0), torch.tensor(2.0))
    )
    assert loss.item() == pytest.approx(0.1 * metrics["ppo/loss/value"].item(), rel=1e-6)
    assert not any("policy" in name for name in metrics)


def test_at_the_first_step_the_ratio_is_1():
    algorithm = PPO(PPOConfig())
    batch, _ = algorithm.prepare(HAND, hand_scorer())
    outputs = Outputs(logprobs_T=batch.old_logprobs_T, entropies_T=torch.zeros(6))
    _, metrics = algorithm.loss("policy", outputs, batch, Denominators(torch.tensor(3.0), torch.tensor(2.0)))
    assert metrics["ppo/policy/ratio_mean"].item() == metrics["ppo/policy/ratio_max"].item() == 1.0
    assert metrics["ppo/policy/approxkl"].item() == metrics["ppo/policy/clipfrac"].item() == 0.0


def test_veto():
    algorithm = PPO(PPOConfig(ratio_guard=10.0))
    assert algorithm.veto({"ppo/policy/ratio_mean": 10.0}) is None
    assert algorithm.veto({"ppo/policy/ratio_mean": 10.1}) == "mean ratio 10.1 exceeds algorithm.ratio_guard 10"
    assert algorithm.veto({"ppo/loss/value": 99.0}) is None, "a critic's step has no ratio"
    assert PPO(PPOConfig(ratio_guard=None)).veto({"ppo/policy/ratio_mean": 1e9}) is None


def test_kl_stop_ends_the_iteration_after_the_step_that_passed_it():
    algorithm = PPO(PPOConfig(kl_stop=0.015))
    assert not algorithm.enough({"ppo/policy/approxkl": 0.015}) and algorithm.enough({"ppo/policy/approxkl": 0.0151})
    assert not algorithm.enough({"ppo/loss/value": 9.0}), "a critic's step has no KL"
    assert not PPO(PPOConfig()).enough({"ppo/policy/approxkl": 1e9})


# --- scores of tokens, importance weights ------------------------------------------------------------------------------


def test_scores_of_tokens_come_at_their_tokens():
    items = [dataclasses.replace(HAND[0], token_scores=(0.25, -1.0)), HAND[1]]
    config = PPOConfig(reward_scale=2.0, reward_clip=1.5, kl=KLConfig(coef=0.2, target=None), **PLAIN)
    batch, metrics = PPO(config).prepare(items, hand_scorer())
    # penalties as above; token scores doubled; the response's own score doubled and clipped to 1.5, and to -1
    close(batch.rewards_T, [0, 0, -0.1 + 0.5, 0.04 - 2.0 + 1.5, 0, -0.1 - 1.0])
    assert metrics["env/reward_mean"] == pytest.approx((1.0 - 0.75 - 0.5) / 2), "as the sources said, tokens and all"
    assert metrics["ppo/mean_scores"] == pytest.approx((1.5 + 0.5 - 2.0 - 1.0) / 2)


def test_too_few_scores_of_tokens_are_refused():
    with pytest.raises(ValueError, match="rollout 0 has 2 response tokens and 1 token scores"):
        PPO(PPOConfig()).prepare([dataclasses.replace(HAND[0], token_scores=(0.25,)), HAND[1]], hand_scorer())


def loss_of(algorithm: PPO, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    now = torch.tensor([0, 0, -0.9, -2.2, 0, -0.7], requires_grad=True)
    outputs = Outputs(now, torch.zeros(6), torch.zeros(6))
    denominators = Denominators(torch.tensor(3.0), torch.tensor(2.0))
    loss, _ = algorithm.loss("policy", outputs, batch, denominators)
    return loss.detach(), torch.autograd.grad(loss, now)[0]


def test_a_sampler_that_agrees_changes_no_bit():
    plain, corrected = PPO(PPOConfig()), PPO(PPOConfig(correction="truncate"))
    batches = [algorithm.prepare(HAND, hand_scorer()) for algorithm in (plain, corrected)]
    assert batches[0][0].weights_T is None and batches[1][0].weights_T is not None
    one, other = loss_of(plain, batches[0][0]), loss_of(corrected, batches[1][0])
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and bool((one[1] != 0).any())
    expected = {"sampling/importance_mean": 1.0, "sampling/importance_max": 1.0, "sampling/importance_held": 0.0}
    assert {name: batches[1][1][name] for name in expected} == expected


def test_a_sampler_that_lags_is_weighed():
    lagging = [dataclasses.replace(HAND[0], sampler_logprobs=(-1.0 - math.log(4.0), -2.0), version=3), HAND[1]]
    batch, metrics = PPO(PPOConfig(correction="truncate")).prepare(lagging, hand_scorer())
    close(batch.weights_T, [0, 0, 2.0, 1.0, 0, 1.0])
    assert metrics["sampling/importance_mean"] == pytest.approx(2.0) and metrics[
        "sampling/importance_max"
    ] == pytest.approx(4)
    assert metrics["sampling/importance_held"] == pytest.approx(1 / 3)


# --- state -----------------------------------------------------------------------------------------------------------


def test_state_round_trip_through_json_goes_on_as_if_nothing_had_happened():
    config = PPOConfig(reward_normalize=True, value_warmup=3)
    one = prepared(config, 2)
    other = PPO(config)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict() and one.state_dict()["prepared"] == 2
    (batch, metrics), (batch_after, metrics_after) = (a.prepare(HAND, hand_scorer()) for a in (one, other))
    assert metrics == metrics_after
    assert torch.equal(batch.advantages_T, batch_after.advantages_T)
    assert one.state_dict() == other.state_dict() and other.warming_up


# --- the whole equals its parts --------------------------------------------------------------------------------------


def random_rollouts(seed: int, count: int) -> tuple[list[Rollout], list[dict[str, list[float]]]]:
    """Rollouts, and the streams of each as its own scorer would say them."""
    draw = random.Random(seed)
    rollouts, streams = [], []
    for n in range(count):
        prompt, response = draw.randint(1, 6), draw.randint(1, 9)
        finish = draw.choice(["stop", "length"])
        old = [-draw.expovariate(1.0) for _ in range(response)]
        rollouts.append(rollout(prompt, old, draw.gauss(0, 2), finish, group=n // 2, scores={"r": draw.gauss(0, 1)}))
        streams.append(
            {
                "old_logprobs_T": [0.0] * prompt + old,
                "ref_logprobs_T": [0.0] * prompt + [x + draw.gauss(0, 0.3) for x in old],
                "values_T": [0.0] * prompt + [draw.gauss(0, 1) for _ in range(response)],
            }
        )
    return rollouts, streams


def scorer_of(streams: list[dict[str, list[float]]]) -> Says:
    return Says(**{name: [x for stream in streams for x in stream[name]] for name in streams[0]})


def on_ranks(count: int, work: Callable[[int, SumOverRanks], Any]) -> list[Any]:
    """Run `work(rank, sum_over_ranks)` in one thread a rank; the sum waits for all, as a collective does."""
    barrier, given, results = threading.Barrier(count, timeout=20), [None] * count, [None] * count

    def run(rank: int) -> None:
        def sum_over_ranks(tensor: Tensor) -> Tensor:
            given[rank] = tensor
            barrier.wait()
            total = sum(given)
            barrier.wait()
            return total

        results[rank] = work(rank, sum_over_ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(result is not None for result in results)
    return results


@pytest.mark.parametrize("seed", range(4))
def test_three_ranks_prepare_what_one_rank_prepares(seed):
    config = PPOConfig(reward_normalize=True, whiten_rewards=True, missing_eos_penalty=1.0, reward_clip=2.0)
    rollouts, streams = random_rollouts(seed, 9)
    cuts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    alone = PPO(config)
    whole, metrics = alone.prepare(rollouts, scorer_of(streams))

    def work(rank: int, add: SumOverRanks) -> tuple[TokenBatch, dict[str, float], dict[str, Any]]:
        algorithm = PPO(config, sum_over_ranks=add)
        return *algorithm.prepare(rollouts[cuts[rank]], scorer_of(streams[cuts[rank]])), algorithm.state_dict()

    results = on_ranks(3, work)
    joined = TokenBatch.concat([batch for batch, _, _ in results])
    for name in ("rewards_T", "advantages_T", "returns_T", "scores_N"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
    for _, rank_metrics, state in results:
        assert state["controller"] == pytest.approx(alone.state_dict()["controller"], rel=1e-6)
        assert state["reward_moments"] == pytest.approx(alone.state_dict()["reward_moments"], rel=1e-6)
        common = {name: value for name, value in metrics.items() if not name.endswith("_max")}
        assert {name: rank_metrics[name] for name in common} == pytest.approx(common, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("limit", [1, 12, 30, 1000])
@pytest.mark.parametrize("use", ["reward", "loss"])
def test_invariant_3_any_micro_batches_give_the_gradient_of_the_whole(limit, use):
    algorithm = PPO(PPOConfig(kl=KLConfig(use=use), entropy_coef=0.01), critic_on_trunk=True)
    rollouts, streams = random_rollouts(7, 12)
    batch, _ = algorithm.prepare(rollouts, scorer_of(streams))
    denominators = Denominators.of(batch, lambda counts: counts)
    generator = torch.Generator().manual_seed(0)
    now = batch.old_logprobs_T + 0.2 * torch.randn(batch.tokens, generator=generator)
    entropies, values = (torch.randn(batch.tokens, generator=generator).abs() for _ in range(2))

    def run(pieces: list[list[int]]) -> list[Tensor]:
        leaves = [stream.clone().requires_grad_() for stream in (now, entropies, values)]
        total = torch.zeros(())
        for members in pieces:
            where = batch.token_index(members)
            outputs = Outputs(*(leaf[where] for leaf in leaves))
            loss, _ = algorithm.loss("policy", outputs, batch.select(members), denominators)
            loss.backward()
            total += loss.detach()
        return [total, *(leaf.grad for leaf in leaves)]

    whole, cut = run([list(range(12))]), run(batch.bins(limit))
    assert bool((whole[1] != 0).any())
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
