"""Normalised, process and ensemble reward models: trained, saved, loaded anywhere, and used by PPO."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import accord
from accord.config import RewardTerm
from accord.data import Encoder
from accord.errors import ConfigError, ModelError, TrainingError
from accord.model.loading import locate
from accord.model.score_facts import FILE, ScoreFacts, read_facts
from accord.recipes.reward_models import score_facts
from recipes.tiny_runs import pairs, recipe_dict, run, saved_weights, steps, write_rows

FULL = pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])


def plain(folder: Path, base: Path, full: bool) -> Callable[[tuple[int, ...]], float]:
    """The score of token ids by transformers and peft alone, at the last one."""
    if full:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = peft.PeftModel.from_pretrained(model, str(folder))
    model.config.pad_token_id = None  # one sequence at a time: nothing is padded

    def score(ids: tuple[int, ...]) -> float:
        with torch.no_grad():
            return float(model.eval()(torch.tensor([ids])).logits[0, 0])

    return score


def process_over(folder: Path, **train: Any) -> dict[str, Any]:
    return {
        "data": {"path": write_rows(folder / "steps.jsonl", steps())},
        "algorithm": {"level": "step", "step": "\n"},
        "train": train,
    }


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "full"])
def process(request, base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A process reward model."""
    folder = tmp_path_factory.mktemp("process")
    over = process_over(folder, steps=20, learning_rate=0.02 if not request.param else 3e-3)
    done = run(
        "reward",
        base,
        folder,
        over | {"data": over["data"] | {"eval_fraction": 0.25}} | ({"adapter": None} if request.param else {}),
    )
    assert done.metrics[0]["reward/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert done.metrics[-1]["reward/loss"] < 0.6 and {"eval/loss", "eval/accuracy"} <= done.metrics[-1].keys()
    return done.model, request.param


def test_a_process_model_scores_the_ends_of_steps_in_plain_libraries(process, base):
    """The score at a step's end is the classifier's score of the sequence up to there: what was trained is what is saved."""
    folder, full = process
    assert read_facts(locate(str(folder))) == ScoreFacts("step", step="\n")
    score, encoder = plain(folder, base, full), Encoder(AutoTokenizer.from_pretrained(folder))
    row = {"prompt": "the film 1 was", "completions": [" good", " odd", " good"], "labels": [1, 0, 1]}
    sequence, ends = encoder.encode_steps(row["prompt"], row["completions"], "\n")
    by_hand = [score(sequence.input_ids[: end + 1]) for end in ends]
    from accord.batch import TokenBatch
    from accord.config import LoraConfig, ModelConfig
    from accord.model.roles import Roles
    from accord.model.scorer import Scorer

    roles = Roles(ModelConfig(path=str(base)), LoraConfig(), torch.device("cpu"))
    roles.add_policy()
    roles.add_reward(str(folder), stepwise=True)
    mask = [place in ends for place in range(len(sequence))]
    batch = TokenBatch.from_sequences([sequence.input_ids, sequence.input_ids[:7]], [mask, mask[:7]])
    assert Scorer(roles, 8).step_scores("reward", batch)[list(ends)].tolist() == pytest.approx(by_hand, abs=1e-4)
    assert by_hand[0] > by_hand[1], "the good step scores above the odd one"


def test_ppo_on_a_process_model(process, base, tmp_path: Path):
    done = run("ppo", base, tmp_path, {"reward": [{"model": str(process[0]), "process": "mean", "name": "prm"}]})
    assert 0 < done.metrics[0]["env/reward/prm"] < 1


def test_ppo_on_scores_of_the_steps(process, base, tmp_path: Path):
    """The sum of the probabilities is what is logged, as with `sum`; what differs is where they are rewards."""
    rows = {}
    for way in ("tokens", "sum"):
        over = {"reward": [{"model": str(process[0]), "process": way, "step": " ", "name": "prm"}]}
        rows[way] = run("ppo", base, tmp_path / way, over).metrics
    first, whole = rows["tokens"][0], rows["sum"][0]
    assert first["env/reward/prm"] == pytest.approx(whole["env/reward/prm"], rel=1e-5) and first["env/reward/prm"] > 0
    assert first["ppo/returns/mean"] != pytest.approx(whole["ppo/returns/mean"], rel=1e-3)


def test_process_and_level_must_fit(process, base, reward_adapter, tmp_path: Path):
    with pytest.raises(ModelError, match=r"scores steps, so say how .* process: min \| prod \| last \| mean \| sum"):
        run("ppo", base, tmp_path, {"reward": [{"model": str(process[0])}]})
    with pytest.raises(ModelError, match="scores whole answers"):
        run("ppo", base, tmp_path, {"reward": [{"model": str(reward_adapter), "process": "min"}]})
    bare = tmp_path / "bare"
    shutil.copytree(process[0], bare)
    (bare / FILE).unlink()
    with pytest.raises(ModelError, match="give `step`"):
        score_facts(RewardTerm(model=str(bare), process="min"))
    assert score_facts(RewardTerm(model=str(bare), process="min", step=". "))[0].step == ". "


def test_pairs_for_a_process_model_are_refused_and_steps_for_pairs(base, tmp_path: Path):
    with pytest.raises(accord.DataError, match=r"a StepwiseExample .* cannot be made of PreferencePair rows"):
        run("reward", base, tmp_path, {"algorithm": {"level": "step"}})
    with pytest.raises(accord.DataError, match=r"set algorithm\.level: step"):
        run("reward", base, tmp_path, {"data": process_over(tmp_path)["data"]})
    with pytest.raises(ConfigError, match="`normalize` is for `level: response`"):
        run("reward", base, tmp_path, {"algorithm": {"level": "step", "normalize": "all"}})


def trained(base: Path, folder: Path, normalize: str, full: bool, **other: Any) -> Path:
    over = {
        "algorithm": {"normalize": normalize},
        "train": {"steps": 4, "learning_rate": 0.01},
        "seed": other.pop("seed", 0),
    }
    return run("reward", base, folder, over | ({"adapter": None} if full else {}) | other).model


@FULL
@pytest.mark.parametrize("which", ["all", "chosen"])
def test_stored_mean_and_deviation_bring_the_answers_to_0_and_1(which, full, base, tmp_path: Path):
    folder = trained(base, tmp_path / "a", which, full)
    facts = read_facts(locate(str(folder)))
    score, encoder = plain(folder, base, full), Encoder(AutoTokenizer.from_pretrained(folder))
    keys = ("chosen",) if which == "chosen" else ("chosen", "rejected")
    scores = torch.tensor(
        [score(encoder.encode_example(row["prompt"], row[key]).input_ids) for row in pairs() for key in keys]
    )
    assert facts.mean == pytest.approx(float(scores.mean()), abs=1e-4)
    assert facts.std == pytest.approx(float(scores.std(correction=0)), abs=1e-4)
    normalized = torch.tensor([facts.normalize(s) for s in scores.tolist()])
    assert float(normalized.mean()) == pytest.approx(0, abs=1e-2)
    assert float(normalized.std(correction=0)) == pytest.approx(1, abs=1e-2)
    weights = trained(base, tmp_path / "b", "none", full)
    assert read_facts(locate(str(weights))) == ScoreFacts(), "nothing was measured"
    one, other = saved_weights(folder), saved_weights(weights)
    assert all(torch.equal(one[key], other[key]) for key in one), "the weights are as without it"


def test_merging_keeps_what_is_stored(base, tmp_path: Path):
    folder = trained(base, tmp_path / "a", "all", False)
    accord.merge(folder, tmp_path / "merged", torch.float32)
    assert (tmp_path / "merged" / FILE).read_text() == (folder / FILE).read_text()
    ids = (5, 6, 7, 8)
    assert plain(tmp_path / "merged", base, True)(ids) == pytest.approx(plain(folder, base, False)(ids), abs=1e-4)


def first_scores(base: Path, folder: Path, *terms: dict[str, Any]) -> list[float]:
    done = run("ppo", base, folder, {"reward": list(terms), "train": {"iterations": 1, "checkpoint_every": 0}})
    return [done.metrics[0][f"env/reward/{term['name']}"] for term in terms]


@FULL
def test_rl_sees_normalised_scores_unless_told_otherwise(full, base, tmp_path: Path):
    folder = str(trained(base, tmp_path / "a", "all", full))
    facts = read_facts(locate(folder))
    terms = [{"model": folder, "name": name} for name in ("plain", "default", "asked")]
    raw, default, asked = first_scores(
        base, tmp_path / "ppo", terms[0] | {"normalized": False}, terms[1], terms[2] | {"normalized": True}
    )
    assert default == asked == pytest.approx((raw - facts.mean) / facts.std, rel=1e-3, abs=1e-4) and raw != default


def test_to_ask_for_what_is_not_stored_is_an_error(base, reward_adapter, tmp_path: Path):
    with pytest.raises(ModelError, match=r"no mean and standard deviation .* train it with algorithm\.normalize"):
        run("ppo", base, tmp_path, {"reward": [{"model": str(reward_adapter), "normalized": True}]})


def test_scores_that_are_all_the_same_cannot_be_normalised(base, tmp_path: Path):
    # Nothing is learnt at the start of an endless warm-up, and the head starts at 0.
    over = {"algorithm": {"normalize": "all"}, "train": {"steps": 1, "warmup": 1e9}}
    with pytest.raises(TrainingError, match="all 24 measured answers have one score"):
        run("reward", base, tmp_path, over)
    assert list((tmp_path / "run" / "model").glob("*.safetensors")), "the model is kept"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"level": "token"}',
        '{"mean": 1.0}',
        '{"mean": 0.0, "std": 0.0}',
        '{"mean": NaN, "std": 1.0}',
        '{"other": 1}',
        "[]",
    ],
)
def test_a_file_that_does_not_say_what_it_must(content, reward_adapter, tmp_path: Path):
    shutil.copytree(reward_adapter, tmp_path / "model")
    (tmp_path / "model" / FILE).write_text(content)
    with pytest.raises(ModelError, match=FILE):
        read_facts(locate(str(tmp_path / "model")))


def test_an_ensemble_on_one_base_and_of_whole_models(base, tmp_path: Path):
    members = [str(trained(base, tmp_path / str(n), "all", n == 2, seed=n)) for n in range(3)]
    over = {
        "reward": [{"models": members, "combine": "uwo", "coef": 0.5, "name": "three"}],
        "train": {"rollouts_every": 1},
    }
    done = run("ppo", base, tmp_path / "ppo", over)
    row = done.metrics[0]
    alone = first_scores(base, tmp_path / "alone", *({"model": m, "name": f"m{n}"} for n, m in enumerate(members)))
    assert [row[f"env/reward/three/{n}"] for n in (1, 2, 3)] == pytest.approx(alone, rel=1e-3, abs=1e-4)
    assert row["env/reward_spread/three"] > 0
    assert row["env/reward/three"] < sum(alone) / 3, "less than the mean: the members disagree"
    from pyarrow import parquet

    table = parquet.read_table(next(iter(sorted((done.path / "rollouts").iterdir())))).to_pylist()
    for one in table:
        said = [one[f"score/three/{n}"] for n in (1, 2, 3)]
        mean = sum(said) / 3
        spread = sum((value - mean) ** 2 for value in said) / 3
        assert one["score/three"] == pytest.approx(mean - 0.5 * spread, rel=1e-4, abs=1e-5)
        assert one["score/three/spread"] == pytest.approx(spread**0.5, rel=1e-4, abs=1e-5)


def test_dry_run_looks_for_every_member(base, reward_adapter, tmp_path: Path, capsys):
    from accord.cli import main

    config = recipe_dict("ppo", base, tmp_path, {"reward": [{"models": [str(reward_adapter), str(tmp_path / "gone")]}]})
    (tmp_path / "ppo.yaml").write_text(json.dumps(config))
    assert main(["ppo", str(tmp_path / "ppo.yaml"), "--dry-run"]) != 0
    assert "gone" in capsys.readouterr().err
