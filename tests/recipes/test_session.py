"""One's own loop gives what `accord ppo` gives, bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM

import accord
from accord.algorithms.rollouts import rollout_batch
from accord.errors import AccordWarning, ConfigError, DataError, ModelError, RewardError, RunError, TrainingError
from accord.training.state import find_fault
from accord.types import Rollout
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


def test_rollouts_that_were_learnt_from_before_lag_behind(session):
    rollouts = session.generate(["a film"] * 4)
    assert [session.step(rollouts, [1.0, 0.0, 0.0, 0.0])["sampling/lag"] for _ in range(2)] == [0.0, 1.0]
    half = [*rollouts[:2], *session.generate(["a film"] * 2)]
    assert session.step(half, [1.0, 0.0, 0.0, 0.0])["sampling/lag"] == 1.0, "the mean of 2 and 0"
    assert session.step(QUERIES, ANSWERS, SCORES)["sampling/lag"] == 0.0, "others' responses count as sampled now"


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
    with pytest.raises(DataError, match=r"takes a list of prompts, and got one text: generate\(\['a film'\]\)"):
        session.generate("a film")


def test_a_session_needs_only_a_model(base):
    assert accord.PPO({"model": {"path": str(base)}}).recipe.algorithm.epochs == 4


# --- responses from elsewhere ------------------------------------------------------------------------------------------

QUERIES, ANSWERS = ["the film was", "a cast"] * 2, [" good", " fine and odd", " slow", " the end"]
SCORES = [1.0, 0.0, -1.0, 0.5]


def opened(base: Path | str, tmp_path: Path, over: Mapping[str, Any] | None = None, **objects: Any) -> accord.PPO:
    config = recipe_dict("ppo", base, tmp_path, over)
    return accord.PPO({k: v for k, v in config.items() if k not in ("data", "output", "reward")}, **objects)


def weights(session: accord.PPO) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in session.learner.weights.items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_responses_of_others_count_as_sampled_now(session):
    metrics = session.step(QUERIES, ANSWERS, SCORES)
    assert metrics["sampling/logprob_difference_max"] == 0.0 and metrics["sampling/finished_fraction"] == 1.0
    assert metrics["env/reward_mean"] == pytest.approx(0.125)
    assert session.iteration == 1


def test_texts_ids_and_rollouts_are_one_and_the_same(base, tmp_path: Path):
    """Three ways to say it, one result, bit for bit."""
    by_text, by_ids, by_rollouts = (opened(base, tmp_path) for _ in range(3))
    encode = by_text.encoder.encode_example
    ids = [encode(query, answer) for query, answer in zip(QUERIES, ANSWERS, strict=True)]
    queries = [s.input_ids[: s.target_mask.index(True)] for s in ids]
    responses = [torch.tensor(s.targets) for s in ids]
    rollouts = [
        Rollout(q, tuple(r.tolist()), (0.0,) * len(r), "stop", "", "") for q, r in zip(queries, responses, strict=True)
    ]
    rows = [
        by_text.step(QUERIES, ANSWERS, SCORES),
        by_ids.step(queries=queries, responses=responses, scores=torch.tensor(SCORES)),
        by_rollouts.step(rollouts, scores=SCORES),
    ]
    assert same(weights(by_text), weights(by_ids)) and same(weights(by_text), weights(by_rollouts))
    names = [name for name in rows[0] if not name.startswith(("time/", "sampling/", "tokens/per"))]
    assert all(row[name] == rows[0][name] for row in rows for name in names)


def test_a_praised_response_becomes_likelier(base, tmp_path: Path):
    over = {"algorithm": {"kl": {"coef": 0.0, "target": None}, "whiten_advantages": False}, "train": {"warmup": 0}}
    session = opened(base, tmp_path, over)

    def says() -> torch.Tensor:
        rollouts = session._outside(QUERIES, ANSWERS, SCORES, True)
        return torch.tensor([sum(rollout.sampler_logprobs) for rollout in rollouts])

    before = says()
    for _ in range(3):
        session.step(QUERIES, ANSWERS, [5.0, -5.0, 5.0, -5.0])
    change = says() - before
    assert float(change[0]) > 0 and float(change[2]) > 0 and change[[0, 2]].mean() > change[[1, 3]].mean()


def test_scores_of_single_tokens(base, tmp_path: Path):
    """A score at the last token alone is the score of the response; elsewhere it is another reward."""
    last, whole, first = (opened(base, tmp_path) for _ in range(3))
    rollouts = last.generate(["a film"] * 4)
    at_the_end = [[0.0] * (len(r.response_ids) - 1) + [s] for r, s in zip(rollouts, SCORES, strict=True)]
    one = last.step(rollouts, at_the_end)
    two = whole.step(rollouts, SCORES)
    assert same(weights(last), weights(whole))
    assert one["env/reward/score"] == two["env/reward/score"]
    at_the_start = [row[::-1] for row in at_the_end]
    first.step(rollouts, [torch.tensor(row) for row in at_the_start])
    assert not same(weights(first), weights(whole))
    with pytest.raises(RewardError, match="gave 1 scores for the tokens of sample 1"):
        first.step(rollouts, [0.5, [1.0], 0.0, 0.0])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ((QUERIES, ANSWERS[:3], SCORES), DataError, "4 queries, 3 responses and 4 scores were given"),
        ((QUERIES, ANSWERS, SCORES[:2]), DataError, "4 queries, 4 responses and 2 scores"),
        ((QUERIES, ANSWERS, [1.0, 0.0, math.nan, 0.0]), RewardError, "scores gave nan for sample 2"),
        ((QUERIES, SCORES), DataError, r"for texts: step\(queries, responses, scores\)"),
        ((QUERIES,), RewardError, "step needs scores"),
        ((QUERIES, ANSWERS, dict.fromkeys(range(4), 1.0)), RewardError, "scores is a dict; step needs a list"),
        ((QUERIES, ANSWERS, 1.0), RewardError, "scores is a float; step needs a list"),
        (
            (QUERIES, "good", SCORES),
            DataError,
            "step takes a list of queries and a list of responses, and got one text",
        ),
        ((QUERIES, ["odd " * 2000, *ANSWERS[1:]], SCORES), ConfigError, "lower the length of queries and responses"),
    ],
)
def test_what_step_refuses_changes_nothing(session, given, kind, message):
    before = weights(session)
    with pytest.raises(kind, match=message):
        session.step(*given)
    assert session.iteration == 0 and same(weights(session), before)


# --- optimisers and schedules by object --------------------------------------------------------------------------------


def test_optimizer_and_scheduler_by_object(base, tmp_path: Path):
    flat = {"train": {"warmup": 0}, "critic": {"learning_rate": 1e-2}}
    halving = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    session = opened(
        base, tmp_path, flat, optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9), scheduler=halving
    )
    assert isinstance(session.learner.optimizer, torch.optim.SGD)
    metrics = session.step(session.generate(["a film"] * 4), SCORES)
    assert metrics["optim/learning_rate"] == 3e-3 / 8 and metrics["optim/learning_rate_critic"] == 1e-2 / 8
    with pytest.raises(ConfigError, match=r"`optimizer` must make a torch.optim.Optimizer"):
        opened(base, tmp_path, optimizer=lambda groups: None)


def test_a_class_is_an_object(base, tmp_path: Path):
    """`optimizer=torch.optim.AdamW` and the recipe's adamw are the same, bit for bit."""
    by_name, by_class = opened(base, tmp_path), opened(base, tmp_path, optimizer=torch.optim.AdamW)
    for session in (by_name, by_class):
        session.step(QUERIES, ANSWERS, SCORES)
    assert same(weights(by_name), weights(by_class))


# --- saving, loading, going on -----------------------------------------------------------------------------------------

CRITICS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "adapter_trunk": {"critic": {"source": "policy_trunk"}},
    "full": {"adapter": None, "train": {"learning_rate": 1e-3}},
}


def values(session: accord.PPO) -> torch.Tensor:
    batch = rollout_batch([Rollout((9, 20), (30, 31, 2), (0.0,) * 3, "stop", "", "", score=0.0) for _ in range(2)])
    return session.scorer.score(batch, ["values_T"])["values_T"]


@pytest.mark.parametrize("kind", CRITICS)
def test_a_saved_critic_says_the_same_bit_for_bit(kind, base, tmp_path: Path):
    session = opened(base, tmp_path, CRITICS[kind])
    session.step(QUERIES, ANSWERS, SCORES)
    folder = session.save(tmp_path / "saved")
    assert bool(values(session).abs().max() > 0)
    again = opened(folder, tmp_path, {**CRITICS[kind], "critic": {**CRITICS[kind].get("critic", {}), "start": "saved"}})
    assert torch.equal(values(again), values(session))
    assert same(weights(again), weights(session))
    again.step(QUERIES, ANSWERS, SCORES)
    assert not torch.equal(values(again), values(session))  # and learns on
    fresh = opened(folder, tmp_path, CRITICS[kind])
    assert not torch.equal(values(fresh), values(session))


def test_a_critic_with_a_model_of_its_own_is_saved_as_a_classifier(base, tmp_path: Path):
    over = {"adapter": None, "critic": {"source": "model", "path": str(base)}}
    session = opened(base, tmp_path, over)
    session.step(QUERIES, ANSWERS, SCORES)
    folder = session.save(tmp_path / "saved")
    again = opened(folder, tmp_path, {**over, "critic": {"source": "model", "path": str(folder / "critic")}})
    assert torch.equal(values(again), values(session)) and same(weights(again), weights(session))


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_plain_libraries_load_the_policy_and_know_nothing_of_the_critic(kind, base, tmp_path: Path):
    import peft

    session = opened(base, tmp_path, CRITICS[kind])
    session.step(QUERIES, ANSWERS, SCORES)
    folder = session.save(tmp_path / "saved")
    if kind == "adapter":
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        assert (folder / "critic" / "adapter_model.safetensors").is_file()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (folder / "value_head.safetensors").is_file()
    ids = torch.tensor([[9, 20, 30, 31]])
    with torch.no_grad(), session.roles.use("policy"):
        assert torch.allclose(model(ids).logits, session.roles.model(ids).logits, atol=1e-5)


def test_a_saved_critic_is_looked_for_before_any_weight(base, tmp_path: Path):
    with pytest.raises(ModelError, match=r"critic\.start: saved looks for .*critic, and it is not there"):
        opened(base, tmp_path, {"critic": {"start": "saved"}})
    folder = opened(base, tmp_path, CRITICS["adapter_trunk"]).save(tmp_path / "trunk")
    with pytest.raises(ModelError, match=r"the critic of critic\.source: policy_trunk"):
        opened(folder, tmp_path, {"critic": {"start": "saved"}})


def test_a_run_goes_on_with_the_critic_of_a_session_and_the_other_way_round(base, tmp_path: Path):
    session = opened(base, tmp_path)
    session.step(QUERIES, ANSWERS, SCORES)
    folder = session.save(tmp_path / "saved")
    done = run("ppo", folder, tmp_path, {"critic": {"start": "saved"}, "train": {"iterations": 1}})
    assert (done.model / "critic" / "adapter_config.json").is_file()
    again = opened(done.model, tmp_path, {"critic": {"start": "saved"}})
    assert not torch.equal(values(again), values(session)) and bool(values(again).abs().max() > 0)


STATES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stateful": {
        "algorithm": {"reward_normalize": True, "kl": {"target": 0.01, "horizon": 20}},
        "train": {"optimizer": {"name": "adafactor", "beta1": 0.9}, "schedule": {"name": "polynomial", "power": 2}},
    },
    "shared": {"adapter": None, "reference": {"source": "shared_layers", "k": 1}, "train": {"learning_rate": 1e-3}},
}


@pytest.mark.parametrize("kind", STATES)
def test_save_load_and_go_on_equals_not_stopping(kind, base, tmp_path: Path):
    """Rollouts, metrics and weights, bit for bit; the state is read twice, so it is not used up."""

    def go_on(session: accord.PPO, times: int) -> list[dict[str, float]]:
        rows = []
        for _ in range(times):
            rollouts = session.generate(["a film", "the end"] * 2)
            rows.append(session.step(rollouts, [-float(len(r.response_text)) for r in rollouts]))
            rows.append(session.step(QUERIES, ANSWERS, SCORES))
        return timeless(rows)

    whole = opened(base, tmp_path, STATES[kind])
    go_on(whole, 1)
    whole.save_state(tmp_path / "state")
    expected = go_on(whole, 2)
    for _ in range(2):
        session = opened(base, tmp_path, STATES[kind])
        session.load_state(tmp_path / "state")
        assert session.iteration == 2
        assert go_on(session, 2) == expected
        assert same(weights(session), weights(whole))


def test_states_that_cannot_be_loaded(base, tmp_path: Path):
    session = opened(base, tmp_path)
    with pytest.raises(RunError, match="no state in"):
        session.load_state(tmp_path / "nothing")
    session.save_state(tmp_path / "state")
    session.step(QUERIES, ANSWERS, SCORES)
    newest = session.save_state(tmp_path / "state")
    with pytest.raises(ConfigError, match=r"rollout\.temperature: was 1\.0, now 0\.5"):
        opened(base, tmp_path, {"rollout": {"temperature": 0.5}}).load_state(tmp_path / "state")
    with pytest.raises(RunError, match=r"written with AdamW and LambdaLR, and .* now SGD and LambdaLR"):
        opened(base, tmp_path, optimizer=torch.optim.SGD).load_state(tmp_path / "state")
    (newest / "tensors.safetensors").write_bytes(b"cut")
    with pytest.warns(AccordWarning, match="step-000001 is damaged.*falling back"):
        session.load_state(tmp_path / "state")
    assert session.iteration == 0


def test_states_of_another_session_are_not_removed(base, tmp_path: Path):
    first, folder = opened(base, tmp_path, {"train": {"keep": 1}}), tmp_path / "state"
    first.step(QUERIES, ANSWERS, SCORES)
    kept = first.save_state(folder)
    other = opened(base, tmp_path, {"train": {"keep": 1}})
    for _ in range(2):  # before, and at the same iteration
        with pytest.raises(
            RunError, match=r"neither wrote nor loaded \(step-000001\).*load_state, or choose another folder"
        ):
            other.save_state(folder)
        assert [path.name for path in folder.iterdir()] == [kept.name] and find_fault(kept) is None
        other.step(QUERIES, ANSWERS, SCORES)
    other.save_state(tmp_path / "own")
    other.load_state(folder)
    other.step(QUERIES, ANSWERS, SCORES)
    assert other.save_state(folder).name == "step-000002"
    assert [path.name for path in folder.iterdir()] == ["step-000002"], "it goes on there, as a run does"


def test_a_session_learns_against_a_reference_that_shares_layers(base, tmp_path: Path):
    over = {"adapter": None, "reference": {"source": "shared_layers", "k": 1}, "train": {"learning_rate": 1e-3}}
    session = opened(base, tmp_path, over)
    lower = {n: p.detach().clone() for n, p in session.roles.model.named_parameters() if ".layers.0." in n}
    first = session.step(QUERIES, ANSWERS, SCORES)
    second = session.step(QUERIES, ANSWERS, SCORES)
    assert first["objective/kl"] == 0.0 and second["objective/kl"] != 0.0
    now = dict(session.roles.model.named_parameters())
    assert lower and all(torch.equal(before, now[name]) for name, before in lower.items())
    with pytest.raises(ConfigError, match="shared_layers is for full fine-tuning"):
        opened(base, tmp_path, {"reference": {"source": "shared_layers", "k": 1}})
    with pytest.raises(ConfigError, match="`source: shared_layers` needs a `k`"):
        opened(base, tmp_path, {"adapter": None, "reference": {"source": "shared_layers"}})


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"train": {"sinks": ["tensorboard"]}}, "a session does not read train.sinks"),
        ({"push": "me/mine"}, "a session does not read push"),
    ],
)
def test_keys_that_only_a_run_reads_are_refused(over, message, base):
    with pytest.raises(ConfigError, match=message):
        accord.PPO({"model": {"path": str(base)}, **over})


def test_what_a_session_does_not_ask_or_seldom_should_do_is_said(base):
    with pytest.warns(AccordWarning) as told:
        accord.PPO({"model": {"path": str(base)}, "reward": "rewards.py:brevity", "rollout": {"top_k": 2}})
    texts = [str(one.message) for one in told]
    assert any("a session does not ask `reward` (brevity)" in text for text in texts)
    assert any("top_k" in text for text in texts)


def test_a_step_that_fails_before_it_learns_leaves_the_algorithm_as_it_was(session):
    rollouts = session.generate(["a film"] * 4)
    before, learnt = session.algorithm.state_dict(), weights(session)
    with pytest.raises(TrainingError, match="not finite"):
        session.step(rollouts, [1e38, -1e38, 1e38, 0.0])
    assert session.algorithm.state_dict() == before and session.iteration == 0 and same(weights(session), learnt)


def test_a_step_leaves_the_callers_generators_alone(session):
    rollouts = session.generate(["a film"] * 4)
    drawn = []
    for seed in (1, 2, 1):
        random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
        session.step(rollouts, [1.0, 0.0, 0.0, 0.0])
        drawn.append((random.random(), float(numpy.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[2] and all(a != b for a, b in zip(drawn[0], drawn[1], strict=True))


def test_a_family_that_cannot_carry_the_adapter_is_refused_as_in_a_run(model_folder):
    with pytest.raises(ConfigError, match="puts virtual tokens before packed sequences"):
        accord.PPO({"model": {"path": str(model_folder("bloom"))}, "adapter": {"method": "prompt"}})
