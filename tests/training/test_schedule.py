"""The learning rate against literals, against the libraries' own schedules, and played again."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from transformers import get_scheduler

from accord.config import TrainConfig
from accord.errors import ConfigError
from accord.training.optim import make_optimizer
from accord.training.schedule import Schedule, course, make_schedule


def shares(total: int, **options) -> list[float]:
    config = TrainConfig(learning_rate=1.0, **options)
    return [course(step, total, config) for step in range(total)]


def test_constant():
    assert shares(3, schedule="constant", warmup=0) == [1.0, 1.0, 1.0]


def test_linear_from_the_peak_to_the_floor():
    assert shares(5, schedule="linear", warmup=0, min_learning_rate=0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert shares(3, schedule="linear", warmup=0, min_learning_rate=0.1) == pytest.approx([1.0, 0.55, 0.1])


def test_cosine_ends_at_the_floor():
    assert shares(5, warmup=0, min_learning_rate=0.0) == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094, 0.0])
    assert shares(5, warmup=0)[-1] == pytest.approx(0.1)


def test_warm_up_in_steps_rises_evenly_to_the_peak():
    assert shares(7, warmup=3, schedule="constant") == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0])


def test_warm_up_as_a_share_of_all_steps():
    assert shares(10, warmup=0.25, schedule="constant")[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 0.5), (2, 1), (3, 5)])
def test_short_runs_have_a_positive_rate_below_the_peak(schedule, total, warmup):
    assert all(0 < rate <= 1 for rate in shares(total, warmup=warmup, schedule=schedule))


def test_beyond_the_end_the_rate_stays_at_the_floor():
    assert course(99, 10, TrainConfig(warmup=0)) == pytest.approx(0.1)


# --- schedules as the learner uses them --------------------------------------------------------------------------------


def sgd(config: TrainConfig, *peaks: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "lr": peak, "weight_decay": 0.0, "label": f"group {n}"}
        for n, peak in enumerate(peaks or (config.learning_rate,))
    ]
    return make_optimizer(groups, config)


def schedule(total: int = 20, peaks: tuple[float, ...] = (), make=None, **options) -> Schedule:
    config = TrainConfig(**{"learning_rate": 0.5, "optimizer": "sgd"} | options)
    return make_schedule(sgd(config, *peaks), config, total, make)


def played(one: Schedule, steps: int, values=None) -> list[list[float]]:
    """The rates of the next so many steps."""
    rows = []
    for step in range(steps):
        rows.append([group["lr"] for group in one.optimizer.param_groups])
        if values:
            one.watch({"sft/loss": values[step], "optim/steps_taken": 1.0})
        one.go_to(one.at + 1)
    return rows


NAMED = {
    "cosine": {},
    "linear": {"warmup": 0.2},
    "constant": {"warmup": 3},
    "polynomial": {"schedule": {"name": "polynomial", "power": 2}},
    "inverse_sqrt": {"warmup": 4},
    "cosine_with_restarts": {"schedule": {"name": "cosine_with_restarts", "num_cycles": 2}},
    "cosine_with_min_lr": {},
    "cosine_warmup_with_min_lr": {},
    "constant_with_warmup": {"warmup": 4},
    "warmup_stable_decay": {"schedule": {"name": "warmup_stable_decay", "num_decay_steps": 5}},
    "StepLR": {"schedule": {"name": "StepLR", "step_size": 3}},
    "MultiStepLR": {"schedule": {"name": "MultiStepLR", "milestones": [3, 7]}},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"schedule": {"name": "ExponentialLR", "gamma": 0.9}},
    "PolynomialLR": {"schedule": {"name": "PolynomialLR", "total_iters": 9}},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"schedule": {"name": "CosineAnnealingWarmRestarts", "T_0": 4}},
    "CyclicLR": {"schedule": {"name": "CyclicLR", "base_lr": 0.01, "step_size_up": 3, "cycle_momentum": False}},
    "OneCycleLR": {"schedule": {"name": "OneCycleLR", "cycle_momentum": False}},
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("at", [0, 1, 7, 19])
def test_played_again_it_is_where_it_was(name, at):
    """Bit for bit, also when the schedule that is restored had gone another way already."""
    options = {"schedule": name} | NAMED[name]
    whole = played(schedule(peaks=(0.5, 2.0), **options), 20)
    used = schedule(peaks=(0.5, 2.0), **options)
    played(used, 11)
    used.restore({}, at)
    assert played(used, 20 - at) == whole[at:]
    assert len({tuple(row) for row in whole}) > 1 or name in ("ConstantLR",)


@pytest.mark.parametrize("name", [n for n in NAMED if n not in ("CyclicLR", "OneCycleLR")])
def test_groups_keep_their_proportion(name):
    for one, four in played(schedule(peaks=(0.5, 2.0), **{"schedule": name} | NAMED[name]), 20):
        assert four == pytest.approx(4 * one, rel=1e-9)


def test_transformers_schedules_are_theirs():
    """With the recipe's warm-up, length and floor."""
    for name, own in (
        ("polynomial", {"power": 2, "lr_end": 0.1 * 0.5}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 6, "min_lr_ratio": 0.1}),
    ):
        optimizer = sgd(TrainConfig(learning_rate=0.5, optimizer="sgd"))
        theirs = get_scheduler(name, optimizer, 4, 20, own)
        expected = []
        for _ in range(20):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        given = {key: value for key, value in own.items() if key in ("power", "num_decay_steps")}
        ours = played(schedule(schedule={"name": name, **given}, warmup=4), 20)
        assert [row[0] for row in ours] == expected, name


def test_torch_s_one_cycle_spans_the_run():
    rows = [row[0] for row in played(schedule(10, schedule={"name": "OneCycleLR", "cycle_momentum": False}), 10)]
    assert rows[0] == pytest.approx(0.5 / 25) and max(rows) == pytest.approx(0.5, rel=0.05) and rows[-1] < 1e-3


def test_a_run_longer_than_its_schedule_is_told_so():
    one = schedule(3, schedule={"name": "OneCycleLR", "cycle_momentum": False})
    played(one, 3)
    with pytest.raises(ConfigError, match=r"train\.schedule, at step 4: Tried to step 4 times"):
        played(one, 2)


def test_a_new_rate_and_length_stretch_the_course():
    long = schedule(40, peaks=(0.25,))
    long.restore(schedule(20).state_dict(), 10)
    assert played(long, 30) == played(schedule(40, peaks=(0.25,)), 40)[10:]


def test_steps_that_were_left_out_are_gone_over():
    one = schedule()
    one.go_to(5)
    assert [group["lr"] for group in one.optimizer.param_groups] == played(schedule(), 6)[5]


# --- schedules that watch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_what_watches_a_metric_is_saved_through_json(name):
    options = {"schedule": {"name": name, "metric": "sft/loss", "patience": 1, "factor": 0.5}}
    values = [3.0, 2.9, 3.1, 3.2, 3.3, 3.4, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.9, 1.9, 1.9, 1.9]
    whole = played(schedule(peaks=(0.5, 2.0), **options), 16, values)
    assert len({row[0] for row in whole}) > 1
    first = schedule(peaks=(0.5, 2.0), **options)
    played(first, 7, values)
    state = json.loads(json.dumps(first.state_dict()))
    second = schedule(peaks=(0.5, 2.0), **options)
    second.restore(state, 7)
    assert played(second, 9, values[7:]) == whole[7:]
    lower = schedule(peaks=(0.25, 1.0), **options)  # a resumed run may set a new rate: where it stood is scaled along
    lower.restore(state, 7)
    assert [group["lr"] for group in lower.optimizer.param_groups] == [rate / 2 for rate in whole[7]]


def test_plateau_by_hand():
    options = {"schedule": {"name": "reduce_lr_on_plateau", "metric": "sft/loss", "patience": 1, "factor": 0.5}}
    rows = played(schedule(**options), 6, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert [row[0] for row in rows] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.125]  # two bad steps in a row are one too many


def test_a_metric_that_no_step_logs():
    one = schedule(schedule={"name": "greedy", "metric": "sft/los"})
    with pytest.raises(ConfigError, match=r"no step logs 'sft/los'; they log optim/steps_taken, sft/loss"):
        one.watch({"sft/loss": 1.0, "optim/steps_taken": 1.0})
    one.watch({"ppo/steps_skipped": 1.0})  # a step that was not taken says nothing


# --- by object and by mistake --------------------------------------------------------------------------------------------


def test_a_schedule_by_object():
    halving = partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    assert [row[0] for row in played(schedule(make=halving), 3)] == [0.5, 0.25, 0.125]
    both = lambda optimizer: lr_scheduler.SequentialLR(  # noqa: E731
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)], [2]
    )
    whole = played(schedule(make=both), 6)
    again = schedule(make=both)
    again.restore({}, 3)
    assert played(again, 3) == whole[3:]


def test_what_the_optimizer_keeps_in_its_groups_comes_back():
    one = schedule()
    one.optimizer.param_groups[0]["momentum"] = 0.25  # as optimisers do that adapt themselves
    state = json.loads(json.dumps(one.state_dict()))
    assert state == {"groups": [{"momentum": 0.25}]}
    two = schedule()
    two.restore(state, 3)
    assert two.optimizer.param_groups[0]["momentum"] == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "polynomial", "powr": 2}, r"has no keyword `powr`: did you mean `power`\?"),
        ({"name": "greedy", "metric": "sft/loss", "patienc": 1}, "did you mean `patience`"),
        ("warmup_stable_decay", "missing 1 required positional argument: 'num_decay_steps'"),
        ({"name": "ExponentialLR", "gamma": "fast"}, r"train\.schedule"),
        ("torch.optim.lr_scheduler.NoneLR", "torch.optim.lr_scheduler has no NoneLR"),
        ({"name": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "watches a number, so it needs `metric`"),
        ({"name": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.9, "metric": "x"}, "depends on the step alone"),
    ],
)
def test_what_cannot_be_made(given, message):
    with pytest.raises(ConfigError, match=message):
        played(schedule(schedule=given), 3)


def test_the_floor_reaches_schedules_that_have_one():
    rows = [row[0] for row in played(schedule(schedule="cosine_with_min_lr", warmup=0, min_learning_rate=0.2), 21)]
    assert rows[20] == pytest.approx(0.2 * 0.5) and min(rows) == pytest.approx(0.1)
    assert math.isclose(rows[0], 0.5)
