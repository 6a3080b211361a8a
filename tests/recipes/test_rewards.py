"""Rewards of all kinds in whole runs; what is checked before a weight is loaded."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from accord.config import ModelConfig, RewardTerm
from accord.data import Encoder, stop_ids
from accord.errors import ConfigError, RewardError
from accord.model.roles import Roles
from accord.model.score_facts import ScoreFacts, write_facts
from accord.model.scorer import Scorer
from accord.recipes.rewards import LIGHT, add_rewards, check_columns, mixed, mixed_of_texts, open_light
from accord.training.metrics import describe
from accord.types import Rollout
from recipes.tiny_runs import run, same_weights, timeless, write_rows
from rewards.scripted import dead_address, lengths, reply, server

CPU = torch.device("cpu")


def rows(folder: Path) -> str:
    """Prompts of which half have code to be tested."""
    tests = [["x = 1"], ["assert False"]]
    return write_rows(
        folder / "rows.jsonl",
        [{"prompt": f"the film {i} was", "gold": str(i)} | ({"test": tests[0]} if i % 2 else {}) for i in range(6)],
    )


def scored(done) -> list[dict[str, Any]]:
    files = sorted((done.path / "rollouts").iterdir())
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def finite(done) -> None:
    assert all(math.isfinite(value) for row in done.metrics for value in row.values())
    assert {name for row in done.metrics for name in row if describe(name) is None} == set()


@pytest.mark.parametrize("each", [False, True])
def test_grpo_with_a_server_code_rules_and_words(each, base, tmp_path: Path):
    words = tmp_path / "words.txt"
    words.write_text("good 1\nodd -1\nfilm 0.5\n")
    with server(reply(lengths)) as script:
        terms = [
            {"url": script.address, "weight": 0.1, "name": "remote"},
            {"code": "test", "weight": 2.0},
            {"length": 4},
            {"repetition": {"n": 1}, "weight": 0.0},
            {"lexicon": str(words)},
        ]
        over = {"reward": terms, "algorithm": {"normalize_each": each}, "data": {"path": rows(tmp_path)}}
        done = run("grpo", base, tmp_path, over)
    finite(done)
    got = scored(done)
    assert len(got) == 8
    for row in got:
        assert row["score/remote"] == len(row["response"])
        assert row["score/length"] == pytest.approx(-min(1.0, abs(row["length"] - 4) / 4))
        assert -1 < row["score/repetition"] <= 0
        assert (row["score/code"] is None) == (int(row["prompt"].split()[2]) % 2 == 0)
        known = 2 * (row["score/code"] or 0.0) + 0.1 * row["score/remote"] + row["score/length"] + row["score/lexicon"]
        assert row["score"] == pytest.approx(known, abs=1e-6), "weight 0 is only watched"
    for i, metrics in enumerate(done.metrics):
        coded = [row["score/code"] for row in got if row["iteration"] == i + 1]
        assert metrics["env/reward_none/code"] == sum(score is None for score in coded) / 4
        failed = sum(metrics[f"env/reward_count/code/{event}"] for event in ("failed", "crashed", "timeout"))
        assert failed == sum(score is not None and score < 1 for score in coded)
        assert metrics["env/reward_count/remote/repeated"] == 0
    assert sum(len(body["responses"]) for body in script.bodies) == 8


def test_normalising_each_changes_what_is_learnt_and_one_source_alone_hardly(base, tmp_path: Path):
    """Of one source with scale `group`, the only difference is the normalisation over the batch: a factor."""
    terms = ["{}/rewards.py:brevity", {"function": "{}/rewards.py:letters", "weight": 30}]

    def done(name: str, each: bool, count: int):
        folder = tmp_path / name
        reward = [
            t.format(folder) if isinstance(t, str) else t | {"function": t["function"].format(folder)} for t in terms
        ]
        return run("grpo", base, folder, {"reward": reward[:count], "algorithm": {"normalize_each": each}})

    both = [done("sum", False, 2), done("each", True, 2)]
    assert timeless(both[0].metrics)[0]["env/reward_mean"] == timeless(both[1].metrics)[0]["env/reward_mean"]
    assert not same_weights(both[0].model, both[1].model)
    assert both[1].metrics[0]["ppo/advantages/mean"] == pytest.approx(0.0, abs=1e-5)
    assert both[1].metrics[0]["ppo/advantages/std"] == pytest.approx(math.sqrt(3 / 4), abs=1e-3)  # n - 1 of 4


@pytest.mark.parametrize("each", [False, True])
def test_dynamic_sampling_compares_what_grpo_compares(each, base, tmp_path: Path):
    """Two sources that always add up to 0: only where each is normalised by itself is there something to learn."""
    (tmp_path / "opposed.py").write_text(
        "def up(prompts, responses):\n    return [float(n) for n in range(len(responses))]\n"
        "def down(prompts, responses):\n    return [-float(n) for n in range(len(responses))]\n"
    )
    over = {
        "reward": [f"{tmp_path}/opposed.py:up", f"{tmp_path}/opposed.py:down"],
        "algorithm": {"normalize_each": each},
        "rollout": {"dynamic_sampling": 1},
    }
    dropped = [row["sampling/groups_dropped"] for row in run("grpo", base, tmp_path / "run", over).metrics]
    assert all(count == 0 for count in dropped) if each else all(count > 0 for count in dropped)


def test_an_http_reward_gives_what_the_function_gives_bit_for_bit(base, tmp_path: Path):
    """A reward server of our own, with a policy of any tokenizer: here the same, so that the runs can be compared."""
    import threading

    from accord.rewards.serve import RewardServer

    here = run("ppo", base, tmp_path / "here")
    remote = mixed_of_texts([RewardTerm.model_validate(f"{tmp_path}/here/rewards.py:brevity")], CPU)
    http = RewardServer(remote, port=0)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    there = run("ppo", base, tmp_path / "there", {"reward": [{"url": http.address, "name": "brevity"}]})
    http.close()
    assert same_weights(here.model, there.model)
    assert here.metrics[0]["env/reward/brevity"] == there.metrics[0]["env/reward/brevity"]


def both_ways(base, *terms: RewardTerm) -> tuple[list[float], list[float]]:
    """Scores of texts that ended: inside a run, by the policy's tokens; and as a server reads them."""
    roles = Roles(ModelConfig(path=str(base)), None, CPU)
    add_rewards(terms, roles)
    encoder = Encoder(roles.tokenizer, stop_ids(roles.tokenizer, None))
    texts = [("the film was", " good"), ("it was", " long and a bit slow"), ("a", " b")]
    rollouts = []
    for prompt, response in texts:
        ids, whole = encoder.encode_prompt(prompt), tuple(roles.tokenizer(prompt + response).input_ids)
        assert whole[: len(ids)] == tuple(ids)
        rollouts.append(Rollout(ids, (*whole[len(ids) :], roles.tokenizer.eos_token_id), (), "stop", prompt, response))
    inside = mixed(terms, {}, Scorer(roles, 4096, 1.0), CPU).score(rollouts)
    served = mixed_of_texts(terms, CPU).score([replace(one, prompt_ids=(), response_ids=()) for one in rollouts])
    return [one.score for one in inside], [one.score for one in served]


def test_a_reward_model_reads_texts_as_it_reads_tokens(base, reward_adapter, reward_classifier):
    """What `accord serve-reward` answers for a text that ended is what the model says inside a run."""
    for path in (reward_adapter, reward_classifier):
        inside, served = both_ways(base, RewardTerm(model=str(path)))
        assert served == pytest.approx(inside, abs=1e-5)
        assert max(inside) - min(inside) > 1e-3


def test_a_reward_adapter_on_the_hub_is_what_it_is_here(base, reward_adapter, hub_cache):
    name = hub_cache("someone/reward", reward_adapter)
    here, _ = both_ways(base, RewardTerm(model=str(reward_adapter)))
    inside, served = both_ways(base, RewardTerm(model=name))
    assert inside == here and served == pytest.approx(here, abs=1e-5)


def test_served_models_are_normalised_and_combined_as_in_a_run(base, reward_adapter, reward_classifier, tmp_path: Path):
    models = []
    for number, path in enumerate((reward_adapter, reward_classifier)):
        models.append(str(shutil.copytree(path, tmp_path / str(number))))
        write_facts(Path(models[-1]), ScoreFacts(mean=0.5 + number, std=0.25))
    term: dict[str, Any] = {"models": models, "combine": "uwo", "coef": 2.0}
    inside, served = both_ways(base, RewardTerm(**term))
    assert served == pytest.approx(inside, abs=1e-3)
    raw, _ = both_ways(base, RewardTerm(**term, normalized=False))
    assert all(abs(a - b) > 0.5 for a, b in zip(raw, inside, strict=True))


def test_every_light_kind_can_be_made(tmp_path: Path):
    pytest.importorskip("math_verify")
    (tmp_path / "w").write_text("good 1\n")
    judge = {"address": "http://127.0.0.1:1", "model": "m"}
    with server() as script:
        given = [
            {"lexicon": str(tmp_path / "w")},
            {"verifier": "math"},
            {"regex": "x"},
            {"format": ["a"]},
            {"length": 3},
            {"repetition": 2},
            {"code": "t"},
            {"url": script.address},
            {"judge": judge},
        ]
        terms = [RewardTerm(**term) for term in given]
        sources = open_light(terms)
    assert list(sources) == [term.label for term in terms] == [source.label for source in sources.values()]
    assert {term.kind for term in terms} == set(LIGHT)


def test_a_column_that_no_row_has_is_told_before_the_run():
    terms = [RewardTerm(verifier="math"), RewardTerm(function="a.py:f")]
    check_columns(terms, {}, [{"gold": 1}, {"answer": 2}])
    check_columns([terms[1]], {}, [])
    with pytest.raises(
        ConfigError, match=r"reward math reads the column 'answer', which no row of the data has.*: gold, level"
    ):
        check_columns(terms, {}, [{"gold": 1, "answer": None}, {"level": 2}])


def test_a_column_called_like_an_argument_is_told_before_the_run(tmp_path: Path):
    (tmp_path / "f.py").write_text("def every(prompts, responses, **more): ...\ndef none(prompts, responses): ...\n")
    terms = [RewardTerm(function=f"{tmp_path}/f.py:none"), RewardTerm(function=f"{tmp_path}/f.py:every")]
    rows = [{"gold": 1}, {"responses": None}]
    check_columns(terms[:1], open_light(terms[:1]), rows)
    check_columns(terms, open_light(terms), rows[:1])
    with pytest.raises(ConfigError, match=r"reward every takes all columns .* one is called 'responses' like its own"):
        check_columns(terms, open_light(terms), rows)


def test_nothing_is_loaded_when_a_reward_cannot_be_used(base, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("accord.recipes.rollouts.start", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(RewardError, match="/health failed"):
        run("grpo", base, tmp_path, {"reward": dead_address()})
