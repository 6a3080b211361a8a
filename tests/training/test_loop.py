"""The one loop: rows of metrics, seeds, stopping politely."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy
import pytest
import torch

import accord
from accord.errors import ConfigError, RunError
from accord.training.loop import average
from accord.training.seeds import seed_everything
from recipes.tiny_runs import recipe_dict, same_weights, timeless


def test_average_of_steps():
    steps = [
        {
            "a": 1.0,
            "ppo/policy/ratio_max": 3.0,
            "tokens/trained": 10.0,
            "optim/learning_rate": 0.2,
            "optim/steps_taken": 1.0,
        },
        {"a": 4.0, "ppo/policy/ratio_max": 2.0, "tokens/trained": 5.0, "ppo/steps_skipped": 1.0, "tokens/seen": 9.0},
        {"a": 4.0, "tokens/trained": 5.0, "optim/learning_rate": 0.1, "optim/steps_taken": 1.0, "only": 7.0},
    ]
    assert average(steps) == {
        "a": 3.0,
        "ppo/policy/ratio_max": 3.0,
        "tokens/trained": 20.0,
        "optim/learning_rate": 0.1,
        "optim/steps_taken": 2.0,
        "ppo/steps_skipped": 1.0,
        "only": 7.0,
    }


def test_steps_without_anything_to_learn_count_and_measure_nothing():
    full = {"sft/loss": 4.0, "tokens/trained": 10.0, "optim/steps_taken": 1.0, "optim/learning_rate": 0.2}
    empty = {"sft/loss": 0.0, "tokens/trained": 0.0, "ppo/steps_skipped": 1.0, "optim/learning_rate": 0.1}
    assert average([full, empty, full, empty]) == {
        "sft/loss": 4.0,
        "tokens/trained": 20.0,
        "optim/steps_taken": 2.0,
        "ppo/steps_skipped": 2.0,
        "optim/learning_rate": 0.2,
    }


def test_average_of_no_steps():
    assert average([]) == {}


def draws(*arguments: int) -> tuple[float, float, float]:
    seed_everything(*arguments)
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_seeds_follow_from_seed_and_iteration_alone():
    first = draws(3, 5)
    torch.rand(17)
    assert draws(3, 5) == first
    all_draws = {draws(seed, iteration) for seed in range(3) for iteration in range(-1, 3)} | {first}
    assert len(all_draws) == 13
    assert draws(3) == draws(3, -1)


@pytest.mark.parametrize(
    ("kind", "over"), [("sft", {"data": {"eval_fraction": 0.25}}), ("ppo", {"rollout": {"merge_adapter": True}})]
)
@pytest.mark.parametrize("seed", [1_700_000_000_000_000_000, 2**63 - 1])
def test_a_run_with_a_large_seed(seed, kind, over, base, tmp_path):
    """Such as the nanoseconds of a clock."""
    assert len(accord.train(recipe_dict(kind, base, tmp_path, over | {"seed": seed}), quiet=True).metrics) == 2


@pytest.mark.parametrize("learnt", [False, True], ids=["first_iteration", "second_iteration"])
def test_a_polite_kill_says_how_to_go_on(learnt, base, tmp_path):
    """SIGTERM while a reward is computed ends the run at once, and its message is true."""
    config = recipe_dict("ppo", base, tmp_path)
    (tmp_path / "rewards.py").write_text(
        "import os, signal\ncalls = []\n\ndef brevity(prompts, responses):\n    calls.append(1)\n"
        f"    if len(calls) == {2 if learnt else 1}:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return [0.0] * len(responses)\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError) as caught:
        accord.train(config, quiet=True)
    assert signal.getsignal(signal.SIGTERM) is before
    if learnt:
        assert str(caught.value) == f"stopped. Go on with: accord ppo --output {tmp_path}/run --resume"
        assert len(accord.train(config, quiet=True, resume=True).metrics) == 2
    else:
        assert str(caught.value) == "stopped. Nothing was learnt yet"
        assert not os.path.lexists(tmp_path / "run")


def test_the_time_to_the_first_iteration_is_told_once(base, tmp_path):
    config = recipe_dict("sft", base, tmp_path, {"train": {"steps": 2}})
    began = time.perf_counter()
    first, second = accord.train(config, quiet=True, started=began - 1000.0).metrics
    assert 1000.0 < first["time/start"] < 1000.0 + time.perf_counter() - began and "time/start" not in second
    config["train"]["steps"] = 3
    rows = accord.train(config, quiet=True, resume=True).metrics
    assert 0.0 < rows[2]["time/start"] < 60.0 and "time/start" not in rows[1], "a resumed run starts too"


def test_a_run_that_goes_on_from_an_older_checkpoint_shows_no_rollouts_of_later_iterations(base, tmp_path):
    config = recipe_dict(
        "ppo", base, tmp_path, {"train": {"iterations": 4, "checkpoint_every": 2, "rollouts_every": 1}}
    )
    accord.train(config, quiet=True)
    folder = tmp_path / "run"
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    kept = (folder / "rollouts" / "iteration-000002.parquet").read_bytes()
    config["train"]["rollouts_every"] = 0
    accord.train(config, quiet=True, resume=True)
    assert [path.name for path in sorted((folder / "rollouts").iterdir())] == [
        "iteration-000001.parquet",
        "iteration-000002.parquet",
    ]
    assert (folder / "rollouts" / "iteration-000002.parquet").read_bytes() == kept


def test_a_run_cannot_go_on_to_where_it_has_been_already(base, tmp_path):
    config = recipe_dict("sft", base, tmp_path, {"train": {"steps": 4}})
    accord.train(config, quiet=True)
    before = (tmp_path / "run" / "config.yaml").read_text()
    config["train"]["steps"] = 2
    with pytest.raises(ConfigError, match="has done 4 iterations, and this recipe ends after 2"):
        accord.train(config, quiet=True, resume=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_run_that_goes_on_with_other_data_says_so(base, tmp_path, capsys):
    config = recipe_dict("sft", base, tmp_path, {"train": {"steps": 2}})
    accord.train(config, quiet=True)
    said = "the data is not what the run began with"
    for steps, change in ((3, False), (4, True)):
        config["train"]["steps"] = steps
        if change:
            path = Path(config["data"]["path"])
            path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        capsys.readouterr()
        accord.train(config, resume=True)
        assert (said in " ".join(capsys.readouterr().out.split())) == change


def test_from_another_thread_signals_are_left_alone(base, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(accord.train, recipe_dict("sft", base, tmp_path), quiet=True).result(60)
    assert len(done.metrics) == 2


def test_kl_stop_leaves_out_the_rest_of_an_iteration_and_keeps_the_schedule(base, tmp_path):
    over = {
        "algorithm": {"epochs": 4, "minibatches": 2, "ratio_guard": None},
        "train": {"learning_rate": 0.05, "warmup": 0},
    }
    plain, never, soon = (
        accord.train(
            recipe_dict("ppo", base, tmp_path / name, {**over, "algorithm": over["algorithm"] | stop}), quiet=True
        )
        for name, stop in (("plain", {}), ("never", {"kl_stop": 1e30}), ("soon", {"kl_stop": 1e-4}))
    )
    assert timeless(plain.metrics) == timeless(never.metrics) and same_weights(plain.model, never.model)
    row = soon.metrics[0]
    assert row["ppo/steps_left_out"] > 0 and row["ppo/steps_left_out"] + row["optim/steps_taken"] == 8
    assert [row["step"] for row in soon.metrics] == [row["step"] for row in plain.metrics] == [8, 16]
    assert "ppo/steps_left_out" not in plain.metrics[0]
