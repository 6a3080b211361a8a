"""One's own loop gives what `accord ppo` gives, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pyarrow import parquet

import accord
from accord.errors import DataError, RewardError
from recipes.tiny_runs import recipe_dict, run, same_weights, timeless


@pytest.fixture
def session(base: Path, tmp_path: Path) -> accord.PPO:
    config = recipe_dict("ppo", base, tmp_path)
    return accord.PPO({key: value for key, value in config.items() if key not in ("data", "output", "reward")})


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_equals_the_recipe(start, base, sft_adapter, tmp_path: Path):
    """Same seed, prompts and scores: the same rollouts, metrics and weights."""
    model = base if start == "base" else sft_adapter
    over = {"rollout": {"samples": 2}, "algorithm": {"reward_normalize": True}}
    done = run("ppo", model, tmp_path, over)
    config = recipe_dict("ppo", model, tmp_path, over)
    session = accord.PPO({key: value for key, value in config.items() if key not in ("data", "output", "reward")})
    for i, expected in enumerate(timeless(done.metrics)):
        rows = parquet.read_table(done.path / "rollouts" / f"iteration-{i + 1:06d}.parquet").to_pylist()
        rollouts = session.generate([row["prompt"] for row in rows[::2]])
        assert [r.response_text for r in rollouts] == [row["response"] for row in rows]
        metrics = session.step(rollouts, [-float(len(r.response_text)) for r in rollouts])
        for name in ("objective/kl", "env/reward_mean", "ppo/loss/policy", "ppo/loss/value", "optim/grad_norm"):
            assert metrics[name] == expected[name], name
    assert same_weights(session.save(tmp_path / "mine"), done.model)


def test_columns_travel_along(session):
    rollouts = session.generate(["a film", "the end"], columns=[{"stars": 5}, {"stars": 1}])
    assert [rollout.columns["stars"] for rollout in rollouts] == [5, 1]
    assert [rollout.version for rollout in rollouts] == [0, 0]


def test_calls_of_generate_draw_anew_and_versions_count(session):
    first, second = session.generate(["a film"] * 4), session.generate(["a film"] * 4)
    assert [r.response_ids for r in first] != [r.response_ids for r in second]
    session.step(first, [1.0, 0.0, 0.0, 0.0])
    assert session.generate(["a film"])[0].version == session.iteration == 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "returned 1 scores for 4"),
        ([1.0, 2.0, math.nan, 0.0], "scores gave nan for sample 2"),
        ([1.0, None, 0.0, 0.0], "scores gave None for sample 1"),
    ],
)
def test_scores_that_cannot_be_learnt_from(scores, message, session):
    rollouts = session.generate(["a film"] * 4)
    with pytest.raises(RewardError, match=message):
        session.step(rollouts, scores)
    assert session.iteration == 0


def test_too_few_rollouts_and_too_long_prompts(session):
    with pytest.raises(DataError, match="1 rollouts cannot be cut into 2 minibatches"):
        session.step(session.generate(["a film"]), [1.0])
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens; between 1 and 1018 fit"):
        session.generate(["a film", "odd " * 2000])
    with pytest.raises(DataError, match="at least one prompt"):
        session.generate([])


def test_a_session_needs_only_a_model(base):
    assert accord.PPO({"model": {"path": str(base)}}).recipe.algorithm.epochs == 4
