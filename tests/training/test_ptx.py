"""The language-modelling loss beside the policy's: its gradient, its weight, its rows, its resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accord.algorithms import SFT, Denominators
from accord.batch import TokenBatch
from accord.config import AdaLoraConfig, AdapterConfig, ModelConfig
from accord.data import TokenSequence
from accord.errors import ConfigError
from accord.model.forward import Outputs
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.training.learner import Learner
from accord.training.parallel import Ranks
from accord.training.ptx import PTX
from accord.training.stream import Stream
from recipes.tiny_runs import completions, run, same_weights, timeless, write_rows
from training.test_learner import CPU, TRAIN, copies, examples, gradients, ppo, sft


def ptx(coef: float, rows: list[TokenSequence] | None = None, size: int = 6) -> PTX:
    return PTX(Stream(rows or examples(), size, 0), coef, Ranks())


def with_ptx(learner: Learner, other: PTX) -> Learner:
    learner.ptx = other
    return learner


@pytest.mark.parametrize("critic", ["adapter", "policy_trunk"])
def test_the_gradient_is_the_sum_of_both(critic, base: Path):
    alone, metrics = gradients(*ppo(base, critic=critic))
    text, text_metrics = gradients(*sft(base))
    learner, batch = ppo(base, critic=critic)
    both, both_metrics = gradients(with_ptx(learner, ptx(0.3)), batch)
    assert both.keys() == alone.keys() and text.keys() <= both.keys()
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, alone[name] + 0.3 * text.get(name, 0.0), rtol=1e-4, atol=1e-6)
    assert any(bool((text[name] != 0).any()) for name in text)
    assert both_metrics["ptx/loss"] == pytest.approx(text_metrics["sft/loss"], rel=1e-5)
    assert both_metrics["ppo/loss/total"] == pytest.approx(metrics["ppo/loss/total"])
    assert both_metrics["tokens/seen"] == 2 * metrics["tokens/seen"]
    assert both_metrics["tokens/computed"] == 2 * metrics["tokens/computed"] == both_metrics["tokens/seen"]


@pytest.mark.parametrize("limit", [1, 14])
def test_any_split_gives_the_same(limit, base: Path):
    whole, _ = gradients(*_ptx_learner(base, 4096))
    split, _ = gradients(*_ptx_learner(base, limit))
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=2e-4, atol=1e-6)


def _ptx_learner(base: Path, limit: int):
    learner, batch = ppo(base, TRAIN.model_copy(update={"micro_batch_tokens": limit}))
    return with_ptx(learner, ptx(0.3)), batch


def beside_sft(folder: Path, adapter: AdapterConfig | None, other: PTX | None) -> tuple[Learner, TokenBatch]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(folder), router_aux_coef=None), adapter, CPU)
    roles.add_policy()
    algorithm = SFT()
    return Learner(roles, algorithm, TRAIN, 10, ptx=other), algorithm.prepare(examples()[:4], Scorer(roles, 4096))[0]


def test_adalora_s_penalty_comes_once_a_step(base: Path):
    config = AdaLoraConfig(init_r=4, target_r=2, alpha=8, orthogonality=0.5)
    alone, metrics = gradients(*beside_sft(base, config, None))
    both, both_metrics = gradients(*beside_sft(base, config, ptx(0.0)))
    assert both_metrics["adapter/orthogonality"] == metrics["adapter/orthogonality"] > 0
    for name, gradient in alone.items():
        assert torch.equal(both[name], gradient), name
    without, _ = gradients(*beside_sft(base, config.model_copy(update={"orthogonality": 0.0}), None))
    assert any(not torch.allclose(without[name], gradient) for name, gradient in alone.items()), "the penalty is seen"


def test_the_balance_of_experts_is_that_of_both(model_folder):
    folder = model_folder("mixtral")
    _, of_batch = gradients(*beside_sft(folder, None, None))
    _, of_both = gradients(*beside_sft(folder, None, ptx(0.5)))
    _, of_text = gradients(*sft(folder, full=True))
    assert of_both["moe/aux_loss"] == pytest.approx(of_batch["moe/aux_loss"] + of_text["moe/aux_loss"], rel=1e-5)
    assert of_batch["moe/aux_loss"] != of_text["moe/aux_loss"]


def test_a_step_down_makes_the_text_likelier():
    batch = ptx(2.0).batch(0)
    logprobs = torch.full((batch.tokens,), -1.5, requires_grad=True)
    denominators = Denominators(torch.tensor(float(batch.targets)), torch.tensor(6.0))
    loss, metrics = ptx(2.0).loss(Outputs(logprobs), batch, denominators)
    loss.backward()
    assert loss.item() == pytest.approx(3.0) and metrics["ptx/loss"].item() == pytest.approx(1.5)
    assert bool((logprobs.grad[batch.target_mask_T] < 0).all()) and bool(
        (logprobs.grad[~batch.target_mask_T] == 0).all()
    )


def test_rows_follow_from_the_step_alone_and_ranks_share_them():
    rows = examples() * 3
    one = PTX(Stream(rows, 4, 0), 1.0, Ranks())
    for step in (5, 0, 5):
        assert torch.equal(
            one.batch(step).input_ids_T, SFT().prepare(Stream(rows, 4, 0).batch(step), None)[0].input_ids_T
        )
    shares = [PTX(Stream(rows, 4, 0, ranks=2), 1.0, Ranks(rank, 2)).batch(3) for rank in (0, 1)]
    assert sum(share.sequences for share in shares) == 4
    assert sum(share.tokens for share in shares) == one.batch(3).tokens


def test_in_the_warm_up_of_a_critic_on_the_trunk_the_policy_stays(base: Path):
    learner, batch = ppo(base, critic="policy_trunk", value_warmup=1)
    before = copies(with_ptx(learner, ptx(1.0)))
    metrics = learner.update(batch)
    moved = {name for name, weight in learner.weights.items() if not torch.equal(weight, before[name])}
    assert moved and all("value_head" in name for name in moved) and "ptx/loss" not in metrics


def section(folder: Path, **more) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    return {"ptx": {"data": {"path": write_rows(folder / "text.jsonl", completions()), **more}, "batch_size": 4}}


def test_without_weight_a_run_is_the_plain_one(base: Path, tmp_path: Path):
    plain = run("ppo", base, tmp_path / "plain")
    over = section(tmp_path)
    over["ptx"]["coef"] = 0.0
    weightless = run("ppo", base, tmp_path / "ptx", over)
    own = {"ptx/loss", "tokens/total", "tokens/computed"}
    rows = [{name: value for name, value in row.items() if name not in own} for row in timeless(weightless.metrics)]
    assert rows == [{name: value for name, value in row.items() if name not in own} for row in timeless(plain.metrics)]
    assert all("ptx/loss" in row for row in weightless.metrics)
    assert same_weights(plain.model, weightless.model)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "reinforce"])
def test_every_policy_gradient_takes_it(kind, base: Path, tmp_path: Path):
    over = section(tmp_path)
    over["ptx"]["coef"] = 5.0
    rows = run(kind, base, tmp_path, over | {"train": {"iterations": 6, "learning_rate": 0.02}}).metrics
    assert rows[-1]["ptx/loss"] < rows[0]["ptx/loss"]


def test_faults_are_told_before_anything_runs(base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"ptx\.data: rows are only learnt from here"):
        run("ppo", base, tmp_path, section(tmp_path, eval_fraction=0.5))
