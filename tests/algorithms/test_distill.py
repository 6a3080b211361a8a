"""Distillation: the student's divergence from its teacher, from the loss down to whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accord.algorithms import Denominators, Distill
from accord.config import DistillConfig, LoraConfig, ModelConfig, ReferenceConfig, TrainConfig
from accord.errors import ConfigError
from accord.losses import distill
from accord.model.forward import Outputs, forward, hidden_states
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.training.learner import Learner
from recipes.tiny_runs import completions, run, same_weights, write_rows
from training.test_learner import CPU, _move, gradients, rollouts


@pytest.fixture(scope="module")
def base(model_folder) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="module")
def teacher(base: Path, tmp_path_factory) -> Path:
    """The base, taught its rows by heart."""
    over = {"train": {"steps": 60, "learning_rate": 0.03, "checkpoint_every": 0}, "adapter": {"r": 8, "alpha": 16}}
    folder = tmp_path_factory.mktemp("teacher")
    rows = [{"prompt": f"the film {i} was", "completion": " good and slow"} for i in range(12)]
    return run("sft", base, folder, over | {"data": {"path": write_rows(folder / "rows.jsonl", rows)}}).model


def learner(base: Path, limit: int = 4096, beta: float = 0.5, other: Path | None = None) -> tuple[Learner, object]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)), LoraConfig(r=4, alpha=8), CPU)
    roles.add_policy()
    roles.add_reference(ReferenceConfig(source="model", path=str(other)) if other else ReferenceConfig())
    _move(roles)
    config = TrainConfig(learning_rate=1e-2, max_grad_norm=None, micro_batch_tokens=limit)
    algorithm = Distill(DistillConfig(beta=beta))
    return Learner(roles, algorithm, config, 10), algorithm.prepare(rollouts(), Scorer(roles, 4096))[0]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_step_s_loss_is_the_dense_divergence_of_both_models(beta, base: Path):
    """From whole distributions of the two models, the adapter on and off, token by token."""
    made, batch = learner(base, beta=beta)
    targets = batch.target_mask_T.nonzero().flatten() - 1
    logs = []
    for name in ("policy", "reference"):
        with torch.no_grad(), made.roles.use(name) as role:
            logits = torch.nn.functional.linear(hidden_states(role, batch)[targets], role.output.weight)
            logs.append(torch.log_softmax(logits.double(), -1))
    q, p = (log.exp() for log in logs)
    m = {0.0: q, 1.0: p}.get(beta, beta * p + (1 - beta) * q)
    parts = [(p * (p.log() - m.log())).sum(), (q * (q.log() - m.log())).sum()]
    weights = {0.0: (1, 0), 1.0: (0, 1)}.get(beta, (beta, 1 - beta))
    expected = sum(w * part for w, part in zip(weights, parts, strict=True)) / batch.targets
    found, metrics = gradients(made, batch)
    assert metrics["distill/divergence"] == pytest.approx(expected.item(), rel=1e-4) and expected > 0.01
    assert all("policy" in name for name in found) and any(bool((g != 0).any()) for g in found.values())


@pytest.mark.parametrize("limit", [1, 14])
def test_any_split_gives_the_same_gradients(limit, base: Path):
    whole, one = gradients(*learner(base))
    split, other = gradients(*learner(base, limit))
    assert one["distill/divergence"] == pytest.approx(other["distill/divergence"], rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=2e-4, atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(base: Path):
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)), LoraConfig(r=4, alpha=8), CPU)
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    algorithm = Distill(DistillConfig())
    batch, _ = algorithm.prepare(rollouts(), Scorer(roles, 4096))
    _, metrics = gradients(Learner(roles, algorithm, TrainConfig(learning_rate=1e-2), 10), batch)
    assert abs(metrics["distill/divergence"]) < 1e-6 and metrics["optim/grad_norm"] < 1e-5


def test_loss_by_hand_and_masked_tokens():
    values = torch.tensor([float("nan"), 0.5, 1.0, float("inf")], requires_grad=True)
    mask = torch.tensor([False, True, True, False])
    loss, _ = distill(divergences_T=values, mask_T=mask, tokens=torch.tensor(4.0))
    (slopes,) = torch.autograd.grad(loss, values)
    assert loss.item() == 0.375 and slopes.tolist() == [0, 0.25, 0.25, 0]


def test_without_scores_there_are_none_in_the_metrics():
    import dataclasses

    items = [dataclasses.replace(rollout, score=None) for rollout in rollouts()]
    batch, metrics = Distill(DistillConfig()).prepare(items, None)
    assert batch.scores_N is None and "env/reward_mean" not in metrics and metrics["sampling/finished_fraction"] == 1.0
    assert "env/reward_mean" in Distill(DistillConfig()).prepare(rollouts(), None)[1]
    outputs = Outputs(divergences_T=torch.ones(batch.tokens))
    loss, _ = Distill(DistillConfig()).loss(
        "policy", outputs, batch, Denominators(torch.tensor(10.0), torch.tensor(6.0))
    )
    assert loss.item() == pytest.approx(batch.targets / 10)


def test_given_answers_take_their_share_of_the_iterations(base: Path, teacher: Path, tmp_path: Path):
    over = {
        "teacher": str(teacher),
        "data": {"path": write_rows(tmp_path / "rows.jsonl", completions())},
        "algorithm": {"on_policy": 0.5},
        "train": {"iterations": 8, "rollouts_every": 1},
    }
    one, other = (run("distill", base, tmp_path / name, over) for name in "ab")
    assert {row["distill/on_policy"] for row in one.metrics} == {0.0, 1.0} and same_weights(one.model, other.model)
    given = [row for row in one.metrics if row["distill/on_policy"] == 0.0]
    assert all(
        "time/rollout" not in row and "env/reward_mean" not in row and row["distill/divergence"] > 0 for row in given
    )


def test_the_reference_is_the_teacher_and_no_other(base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="leave `reference` out"):
        run("distill", base, tmp_path, {"reference": {"source": "start"}})


def test_forward_gives_divergences_in_place_of_log_probabilities(base: Path):
    from accord.model.forward import teach

    made, batch = learner(base)
    with torch.no_grad(), made.roles.use("reference") as other:
        same = teach(other, batch, 0.5)
        outputs = forward(other, batch, teacher=same)
    assert outputs.logprobs_T is None and outputs.divergences_T.abs().max() < 1e-6
