"""Two processes with half the batch each learn what one process learns: losses, gradients, statistics, weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file

import accord
from accord.errors import ConfigError
from accord.training.parallel import Ranks
from accord.training.run import Run, read_metrics
from recipes.tiny_runs import completions, recipe_dict, saved_weights, steps, timeless, write_rows

DEADLINE = 150
"""Seconds that two ranks may take; the other waits are torchrun's own."""

RANK = """
import os, sys
import accord
from accord.training.learner import Learner
from safetensors.torch import save_file

learners = []
start = Learner.__init__
def remember(self, *arguments, **named):
    start(self, *arguments, **named)
    learners.append(self)
Learner.__init__ = remember

for number, recipe in enumerate(sys.argv[2:]):
    accord.train(recipe, quiet=True)
    tensors = {name: weight.detach().contiguous() for name, weight in learners[-1].weights.items()}
    save_file(tensors, f"{sys.argv[1]}/{number}-rank-{os.environ['RANK']}.safetensors")
"""

KINDS = {
    "sft": ("sft", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}}),
    "adalora": (
        "sft",
        {
            "adapter": {"method": "adalora", "init_r": 3, "target_r": 2, "final": 1},
            "train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3},
        },
    ),
    "reward": ("reward", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}}),
    "dpo": ("dpo", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}, "data": {"eval_fraction": 0.25}}),
    "dpo_aot": (
        "dpo",
        {
            "algorithm": {"loss": "aot_unpaired"},
            "train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3},
            "data": {"eval_fraction": 0.25},
        },
    ),
    "process": (
        "reward",
        {"algorithm": {"level": "step"}, "train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}},
    ),
    "kto": ("kto", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}}),
    "bco": ("bco", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}}),
    "classify": ("classify", {"train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}}),
    "remax": (  # with text to go on learning
        "remax",
        {
            "ptx": {"data": {"path": "ptx.jsonl"}, "coef": 0.5, "batch_size": 4},
            "algorithm": {"minibatches": 1, "correction": "truncate", "kl_stop": 1e9},
            "train": {"iterations": 3, "batch_size": 6, "learning_rate": 1e-3},
        },
    ),
    "online_dpo": (
        "online_dpo",
        {"algorithm": {"minibatches": 1}, "train": {"iterations": 3, "batch_size": 12, "learning_rate": 1e-3}},
    ),
    "rejection": (
        "rejection",
        {"algorithm": {"minibatches": 1}, "train": {"iterations": 3, "batch_size": 12, "learning_rate": 1e-3}},
    ),
    "experts": (
        "sft",
        {"model": {"router_aux_coef": 5.0}, "train": {"steps": 3, "batch_size": 6, "learning_rate": 1e-3}},
    ),
    "ppo": (
        "ppo",
        {
            # One minibatch: which sequences share a later one depends on who holds them, here as in any data parallelism.
            "algorithm": {"epochs": 2, "minibatches": 1, "reward_normalize": True, "whiten_rewards": True},
            "train": {"iterations": 3, "batch_size": 6, "learning_rate": 1e-3},
        },
    ),
}


@pytest.fixture(scope="module")
def runs(base: Path, model_folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Run, Run]]]:
    """Each kind once in this process and once on two ranks; all in one torchrun, which saves starts."""
    root = tmp_path_factory.mktemp("ranks")
    script, files, singles = root / "rank.py", [], {}
    script.write_text(RANK)
    for name, (kind, over) in KINDS.items():
        config = recipe_dict(kind, model_folder("mixtral") if name == "experts" else base, root / name, over)
        if name == "process":
            config["data"]["path"] = write_rows(root / name / "steps.jsonl", steps())
        if "ptx" in config:
            config["ptx"]["data"]["path"] = write_rows(root / "ptx.jsonl", completions())
        singles[name] = accord.train(config, quiet=True)
        files.append(root / f"{name}.yaml")
        config |= {"output": str(root / name / "ranks"), "placement": {"type": "torchrun", "threads": 1}}
        files[-1].write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(root), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = {name: Run(root / name / "ranks", read_metrics(root / name / "ranks")) for name in KINDS}
    return root, {name: (singles[name], pairs[name]) for name in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_one_process(kind, runs):
    single, double = (timeless(run.metrics) for run in runs[1][kind])
    assert len(single) == len(double) == 3
    for one, two in zip(single, double, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_one_process(kind, runs):
    one, two = (saved_weights(run.model) for run in runs[1][kind])
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_the_same_weights_bit_for_bit(kind, runs):
    number = list(KINDS).index(kind)
    first, second = (load_file(runs[0] / f"{number}-rank-{rank}.safetensors") for rank in (0, 1))
    assert len(first) > 4 and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_rank_writes_a_complete_run_directory(runs):
    names = {path.name for path in runs[1]["ppo"][1].path.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "rollouts", "model", "report.html"}


def test_rollouts_of_all_ranks_are_written(runs):
    single, double = runs[1]["ppo"]
    for file in sorted((single.path / "rollouts").iterdir()):
        one = parquet.read_table(file).to_pylist()
        two = parquet.read_table(double.path / "rollouts" / file.name).to_pylist()
        assert sorted(row["response"] for row in one) == sorted(row["response"] for row in two)


def test_one_rank_alone_needs_no_group():
    ranks = Ranks()
    tensor = torch.tensor([1.0, 2.0])
    assert ranks.first and ranks.sum(tensor) is tensor and ranks.max(tensor) is tensor
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    ranks.barrier()
    ranks.sum_gradients([])


def test_values_of_one_rank_are_joined_to_themselves():
    joined, own = Ranks().join(torch.tensor([3.0, 1.0]))
    assert joined.tolist() == [3.0, 1.0] and joined[own].tolist() == [3.0, 1.0]


def test_values_of_several_ranks_lie_in_their_order(monkeypatch):
    monkeypatch.setattr(Ranks, "gather", lambda self, item: [[5.0], item, [7.0, 8.0]])
    joined, own = Ranks(1, 3).join(torch.tensor([3.0, 1.0]))
    assert joined.tolist() == [5.0, 3.0, 1.0, 7.0, 8.0] and joined[own].tolist() == [3.0, 1.0]


def test_shares_are_disjoint_and_whole():
    assert [Ranks(rank, 3).share(list(range(7))) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_torchrun_placement_without_torchrun(base, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = recipe_dict("sft", base, tmp_path, {"placement": {"type": "torchrun"}})
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 2 -m accord ppo recipe\.yaml"):
        accord.train(config, quiet=True)
    assert not (tmp_path / "run").exists()
