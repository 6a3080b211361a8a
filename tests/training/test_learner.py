"""One optimiser step: the same for any split, clipped by role, not taken when it is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accord.algorithms import GRPO, PPO, SFT, RewardModelling
from accord.batch import TokenBatch
from accord.config import (
    CriticConfig,
    GRPOConfig,
    LoraConfig,
    ModelConfig,
    PPOConfig,
    ReferenceConfig,
    RewardConfig,
    TrainConfig,
)
from accord.data import EncodedPair, TokenSequence
from accord.errors import TrainingError
from accord.layout import Layout
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops import logprobs as output_layer
from accord.training.learner import Learner
from accord.training.state import read_newest, write_checkpoint
from accord.types import Rollout

CPU = torch.device("cpu")
TRAIN = TrainConfig(learning_rate=1e-2, warmup=0, schedule="constant", max_grad_norm=None)
LENGTHS = (9, 4, 12, 6, 7, 3)


def examples() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(3, 250, (n,), generator=generator).tolist()) for n in LENGTHS]
    return [TokenSequence(s, (False, False) + (True,) * (len(s) - 2)) for s in ids]


def rollouts() -> list[Rollout]:
    return [
        Rollout(e.input_ids[:2], e.input_ids[2:], (-1.0,) * (len(e) - 2), "stop", "p", "r", score=0.3 * i - 0.5)
        for i, e in enumerate(examples())
    ]


def sft(base: Path, config: TrainConfig = TRAIN, full: bool = False) -> tuple[Learner, TokenBatch]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)), None if full else LORA, CPU)
    roles.add_policy()
    _move(roles)
    algorithm = SFT()
    return Learner(roles, algorithm, config, 10), algorithm.prepare(examples(), Scorer(roles, 4096))[0]


LORA = LoraConfig(r=4, alpha=8)


def _move(roles: Roles) -> None:
    """LoRA starts with B = 0, where half of all gradients are 0 and would agree for no good reason."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in roles.roles:
            for key, weight in roles.trainable(name).items():
                if "lora_B" in key or "head" in key:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def ppo(
    base: Path, config: TrainConfig = TRAIN, critic: str = "adapter", full: bool = False, rates=None, **options
) -> tuple[Learner, TokenBatch]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)), None if full else LORA, CPU)
    roles.add_policy(CriticConfig(source=critic))
    roles.add_reference(ReferenceConfig())
    roles.add_critic(CriticConfig(source=critic))
    _move(roles)
    algorithm = PPO(PPOConfig(**options), critic_on_trunk=critic == "policy_trunk")
    batch, _ = algorithm.prepare(rollouts(), Scorer(roles, 4096))
    assert batch.old_logprobs_T is not None
    noise = torch.randn(batch.tokens, generator=torch.Generator().manual_seed(1))
    moved_T = (batch.old_logprobs_T + 0.1 * noise).masked_fill(~batch.target_mask_T, 0.0)
    return Learner(roles, algorithm, config, 10, rates=rates), batch.with_streams(old_logprobs_T=moved_T)


def reward(base: Path, config: TrainConfig = TRAIN) -> tuple[Learner, TokenBatch]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)), LORA, CPU)
    roles.add_scorer()
    _move(roles)
    algorithm = RewardModelling(RewardConfig())
    items = [EncodedPair(a, b, 0.1 * i) for i, (a, b) in enumerate(zip(examples()[::2], examples()[1::2], strict=True))]
    return Learner(roles, algorithm, config, 10), algorithm.prepare(items, Scorer(roles, 4096))[0]


KINDS = {
    "sft": sft,
    "sft_full": lambda base, config=TRAIN: sft(base, config, full=True),
    "reward": reward,
    "ppo": ppo,
    "ppo_trunk": lambda base, config=TRAIN: ppo(base, config, "policy_trunk"),
    "ppo_full_kl_loss": lambda base, config=TRAIN: ppo(
        base, config, "policy_trunk", full=True, kl={"use": "loss"}, entropy_coef=0.01
    ),
}


def gradients(learner: Learner, batch: TokenBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradients that the optimiser would step with, and the step's metrics."""
    found: dict[str, torch.Tensor] = {}

    def keep(*_, **__) -> None:
        found.update({name: weight.grad.clone() for name, weight in learner.weights.items() if weight.grad is not None})

    learner.optimizer.step = keep
    return found, learner.update(batch)


def copies(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.weights.items()}


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_the_frozen_output_layer_is_computed_once_unless_entropy_has_a_weight(coef: float, base: Path, monkeypatch):
    again = []
    slope = output_layer._slope
    monkeypatch.setattr(output_layer, "_slope", lambda *arguments: again.append(1) or slope(*arguments))
    learner, batch = ppo(base, entropy_coef=coef)
    metrics = learner.update(batch)
    assert metrics["objective/entropy"] > 1
    assert bool(again) == (coef > 0)


# --- invariant 3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_same_gradients_and_metrics(kind, base):
    """Micro-batches of one sequence (or pair) each, of a few, of all."""
    whole, metrics = gradients(*KINDS[kind](base))
    assert len(whole) > 4 and all(float(g.abs().max()) > 0 for g in whole.values())
    for tokens in (1, 14, 25):
        learner, batch = KINDS[kind](base, TRAIN.model_copy(update={"micro_batch_tokens": tokens}))
        assert len(batch.split(tokens)) > 1
        parts, split_metrics = gradients(learner, batch)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-4, atol=1e-6), name
        assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)


PROMPTS = [tuple(range(20 + n, 44 + n)) for n in (0, 50)]
"""Long enough to be shared."""


def grpo(base: Path, config: TrainConfig = TRAIN, shares: bool = True) -> tuple[Learner, TokenBatch]:
    """Two prompts, three answers each, in turns."""
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base), share_prefixes=shares), LORA, CPU)
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    _move(roles)
    algorithm = GRPO(GRPOConfig(kl={"coef": 0.1}), longest=12)
    made = [
        Rollout(PROMPTS[n % 2], e.input_ids, (-1.0,) * len(e), "stop", "p", "r", score=0.3 * n - 0.5, group=n % 2)
        for n, e in enumerate(examples())
    ]
    return Learner(roles, algorithm, config, 10), algorithm.prepare(made, Scorer(roles, 4096))[0]


def pairs(base: Path, config: TrainConfig = TRAIN, shares: bool = True) -> tuple[Learner, TokenBatch]:
    """Three pairs, two of which have one prompt."""
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base), share_prefixes=shares), LORA, CPU)
    roles.add_scorer()
    _move(roles)
    behind = [
        TokenSequence(PROMPTS[n // 4] + e.input_ids, (False,) * len(PROMPTS[0]) + (True,) * len(e))
        for n, e in enumerate(examples())
    ]
    items = [EncodedPair(a, b, 0.1) for a, b in zip(behind[::2], behind[1::2], strict=True)]
    algorithm = RewardModelling(RewardConfig())
    return Learner(roles, algorithm, config, 10), algorithm.prepare(items, Scorer(roles, 4096))[0]


@pytest.mark.parametrize("of", ["llama", "mistral"])
@pytest.mark.parametrize("make", [grpo, pairs])
def test_shared_prefixes_give_the_same_gradients_in_any_split(make, of, model_folder, monkeypatch):
    """Against separate sequences: the prompt before each answer."""
    folder = model_folder(of)
    learner, batch = make(folder, shares=False)
    whole, metrics = gradients(learner, batch)
    assert metrics["tokens/computed"] == batch.tokens and all(float(g.abs().max()) > 0 for g in whole.values())
    computed = []
    for tokens in (4096, 80, 50, 1):
        learner, batch = make(folder, TRAIN.model_copy(update={"micro_batch_tokens": tokens}))
        got, shared_metrics = gradients(learner, batch)
        assert got.keys() == whole.keys()
        for name, gradient in whole.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(got[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)
        computed.append(shared_metrics.pop("tokens/computed"))
        assert shared_metrics == pytest.approx(
            {k: v for k, v in metrics.items() if k != "tokens/computed"}, rel=1e-4, abs=1e-6
        )
    laid_out = []
    monkeypatch.setattr(Layout, "of", lambda codes, real=Layout.of: laid_out.append(len(codes)) or real(codes))
    gradients(*make(folder, TRAIN.model_copy(update={"micro_batch_tokens": 50})))
    assert sum(laid_out) == (2 if make is grpo else 1) * batch.sequences, "once for scoring, once for the step"
    if make is grpo:
        assert computed == [41 + 2 * 24, 41 + 2 * 24, 41 + 3 * 24, 41 + 6 * 24], "each prompt once a micro-batch"
    else:
        assert computed == [41 + 2 * 24, 41 + 2 * 24, 41 + 3 * 24, 41 + 3 * 24], "a pair stays together"


def test_the_step_is_that_of_the_naive_loss(base):
    """Full fine-tuning by one AdamW step of the mean NLL of all targets, computed with plain transformers."""
    from transformers import AutoModelForCausalLM

    learner, batch = sft(base, full=True)
    learner.update(batch)
    model = AutoModelForCausalLM.from_pretrained(base)
    total = torch.zeros(())
    for example in examples():
        ids = torch.tensor([example.input_ids])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        total = total - logprobs[torch.tensor(example.target_mask[1:])].sum()
    (total / sum(sum(e.target_mask) for e in examples())).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0).step()
    ours, theirs = dict(learner.roles.model.named_parameters()), dict(model.named_parameters())
    for name, weight in theirs.items():
        if weight.grad is not None:
            sure = (
                weight.grad.abs() > 1e-6
            )  # AdamW's first step is lr x sign: where the gradient is noise, so is the sign
            assert torch.allclose(ours[name][sure], weight[sure], atol=1e-5), name


# --- limits ----------------------------------------------------------------------------------------------------------


def test_each_role_is_clipped_by_itself(base):
    free, plain = gradients(*ppo(base))
    limit = min(plain["optim/grad_norm"], plain["optim/grad_norm_critic"]) / 2
    clipped, metrics = gradients(*ppo(base, TRAIN.model_copy(update={"max_grad_norm": limit})))
    for role, key in (("policy.", "optim/grad_norm"), ("critic.", "optim/grad_norm_critic")):
        norm = torch.cat([g.flatten() for name, g in clipped.items() if name.startswith(role)]).norm()
        assert float(norm) == pytest.approx(limit, rel=1e-4)
        assert metrics[key] == pytest.approx(plain[key], rel=1e-5)  # as it was before
        scale = limit / plain[key]
        for name, gradient in free.items():
            if name.startswith(role):
                assert torch.allclose(clipped[name], gradient * scale, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_not_taken(value, base):
    learner, batch = ppo(base)
    learner.update(batch)  # so that there is momentum, which alone would move the weights
    before, moments = copies(learner), {k: v.clone() for k, v in learner.tensors().items()}
    bad_T = batch.returns_T.clone()
    bad_T[int(batch.target_mask_T.nonzero()[0])] = value
    with pytest.raises(TrainingError, match=r"step 2: .*ppo/loss/value.* not finite"):
        learner.update(batch.with_streams(returns_T=bad_T))
    assert all(torch.equal(before[name], weight) for name, weight in learner.weights.items())
    assert all(torch.equal(moments[name], tensor) for name, tensor in learner.tensors().items())
    assert learner.steps == 1 and all(weight.grad is None for weight in learner.weights.values())
    learner.update(batch)  # and it can go on
    assert learner.steps == 2


def test_a_veto_skips_the_step_and_counts_it(base):
    learner, batch = ppo(base, ratio_guard=1.5)
    far = batch.with_streams(old_logprobs_T=(batch.old_logprobs_T - 3.0).masked_fill(~batch.target_mask_T, 0.0))
    before = copies(learner)
    metrics = learner.update(far)
    assert metrics["ppo/policy/ratio_mean"] > 1.5
    assert metrics["ppo/steps_skipped"] == 1.0
    assert "optim/steps_taken" not in metrics and "optim/learning_rate" not in metrics
    assert all(torch.equal(before[name], weight) for name, weight in learner.weights.items())
    assert learner.steps == 1  # the schedule goes on
    metrics = learner.update(batch)
    assert metrics["optim/steps_taken"] == 1.0 and "ppo/steps_skipped" not in metrics


# --- who learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["adapter", "policy_trunk"])
def test_value_warm_up_moves_only_the_value_function(critic, base):
    learner, batch = ppo(base, critic=critic, value_warmup=1)
    before = copies(learner)
    first, _ = learner.update(batch), learner.update(batch)
    assert ("optim/grad_norm_critic" in first) == (critic == "adapter") != ("optim/grad_norm" in first)
    moved = {name for name, weight in learner.weights.items() if not torch.equal(before[name], weight)}
    expected = {name for name in before if name.startswith("critic.") or "value_head" in name}
    assert moved == expected and moved < before.keys()
    learner.algorithm.prepare(rollouts(), Scorer(learner.roles, 4096))  # the second iteration: the policy learns, too
    learner.update(batch)
    assert all(not torch.equal(before[name], weight) for name, weight in learner.weights.items())


def test_the_frozen_base_is_the_same_bit_for_bit(base):
    learner, batch = ppo(base)
    learnt = {id(weight) for weight in learner.weights.values()}
    frozen = {n: (p, p.detach().clone()) for n, p in learner.roles.model.named_parameters() if id(p) not in learnt}
    for _ in range(3):
        learner.update(batch)
    assert len(frozen) > 10
    assert all(torch.equal(now, then) and now.grad is None for now, then in frozen.values())


def test_full_fine_tuning_leaves_the_reference_alone(base):
    learner, batch = ppo(base, critic="policy_trunk", full=True)
    trunk = learner.roles.roles["reference"].trunk
    before = {name: p.detach().clone() for name, p in trunk.named_parameters()}
    learner.update(batch)
    assert all(torch.equal(before[name], p) for name, p in trunk.named_parameters())
    assert any(not torch.equal(before[name], p) for name, p in learner.roles.roles["policy"].trunk.named_parameters())


def test_dropout_is_on_in_updates_of_sft_and_off_after(base):
    roles = Roles(ModelConfig(path=str(base)), LoraConfig(r=4, alpha=8, dropout=0.5), CPU)
    roles.add_policy()
    _move(roles)
    learner = Learner(roles, SFT(), TRAIN.model_copy(update={"learning_rate": 1e-12}), 10)
    batch = SFT().prepare(examples(), Scorer(roles, 4096))[0]
    losses = {learner.update(batch)["sft/loss"] for _ in range(3)}
    assert len(losses) == 3
    assert not any(module.training for module in roles.model.modules())


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_goes_on_bit_for_bit(kind, base):
    learner, batch = KINDS[kind](base)
    for _ in range(2):
        learner.update(batch)
    saved = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    fresh, _ = KINDS[kind](base)
    fresh.load_tensors(saved, learner.steps)
    for one in (learner, fresh):
        one.update(batch)
    assert fresh.steps == learner.steps == 3
    a, b = learner.tensors(), fresh.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert {name.split("/")[1] for name in a if name.startswith("optimizer/")} == {"step", "exp_avg", "exp_avg_sq"}


OPTIMIZERS = {
    "sgd": {"exp": set()},  # without momentum it keeps nothing
    "sgd_momentum": {"name": "sgd", "keywords": {"momentum": 0.9}, "exp": {"momentum_buffer"}},
    "adam": {"keywords": {"amsgrad": True}, "exp": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}},
    "nadam": {"exp": {"step", "mu_product", "exp_avg", "exp_avg_sq"}},
    "rmsprop": {"keywords": {"centered": True}, "exp": {"step", "square_avg", "grad_avg"}},
    "adagrad": {"exp": {"step", "sum"}},
    "asgd": {"exp": {"step", "eta", "mu", "ax"}},
    "rprop": {"exp": {"step", "prev", "step_size"}},
    "adafactor": {"exp": {"exp_avg_sq_row", "exp_avg_sq_col", "RMS"}},
    "adafactor_moment": {"name": "adafactor", "keywords": {"beta1": 0.9}, "exp": {"exp_avg"}},
    "torch.optim.Adafactor": {"exp": {"row_var", "col_var", "step"}},
    "lion": {"exp": {"state1"}},
    "adam8bit": {"exp": {"state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}},
    "lion8bit": {"exp": {"state1", "qmap1", "absmax1"}},
    "paged_adamw8bit": {"exp": {"state1", "state2", "qmap1"}},
}
"""What each keeps, at least, as tensors."""
BITSANDBYTES = ("lion", "adam8bit", "lion8bit", "paged_adamw8bit")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_state_of_any_optimizer_goes_through_a_checkpoint_bit_for_bit(name, base, tmp_path):
    """Counts that are no tensors, no state at all, factored moments, 8 bits with a map that all weights share."""
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    given = OPTIMIZERS[name]
    small = {"min_8bit_size": 1} if "8bit" in name else {}  # the tiny weights would be kept in 32 bits
    chosen = {"name": given.get("name", name), **given.get("keywords", {}), **small}
    config = TrainConfig(learning_rate=1e-2, warmup=0.3, optimizer=chosen, schedule="linear")
    learner, batch = sft(base, config)
    for _ in range(3):
        learner.update(batch)
    rest = {"steps": 3, "learner": learner.state_dict()}
    write_checkpoint(tmp_path, 1, learner.tensors(), rest, keep=1)
    saved, _ = read_newest(tmp_path)
    fresh, _ = sft(base, config)
    fresh.load_tensors(saved.tensors, saved.state["steps"], saved.state["learner"])
    rates = [one.update(batch)["optim/learning_rate"] for one in (learner, fresh)]
    assert rates[0] == rates[1] and fresh.steps == learner.steps == 4
    learner.update(batch)
    fresh.update(batch)
    a, b = learner.tensors(), fresh.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(a[key].dtype == b[key].dtype for key in a)
    assert learner.state_dict() == fresh.state_dict()
    kept = {key.split("/")[1] for key in a if key.startswith("optimizer/")}
    assert kept >= given["exp"] and (given["exp"] or not kept)
    if "8bit" in name:
        assert any(tensor.dtype == torch.uint8 for tensor in a.values())


def test_state_that_no_checkpoint_can_hold_is_said(base):
    learner, batch = sft(base)
    learner.update(batch)
    next(iter(learner.optimizer.state.values()))["history"] = {1, 2}
    with pytest.raises(TrainingError, match=r"AdamW or LambdaLR keeps state that cannot be saved.*set"):
        learner.state_dict()


def test_rates_of_head_critic_and_lora_b_follow_one_course(base):
    config = TrainConfig(learning_rate=1e-3, warmup=2, schedule="linear", lora_plus_ratio=16, head_learning_rate=5e-2)
    learner, batch = ppo(base, config, rates={"critic": 1e-2})
    rows = [learner.update(batch) for _ in range(4)]
    for row in rows:
        assert row["optim/learning_rate_lora_b"] == pytest.approx(16 * row["optim/learning_rate"])
        assert row["optim/learning_rate_critic"] == pytest.approx(10 * row["optim/learning_rate"])
        assert row["optim/learning_rate_head"] == pytest.approx(50 * row["optim/learning_rate"])
    assert rows[0]["optim/learning_rate"] == pytest.approx(1e-3 / 3)


def test_each_weight_moves_at_its_rate(base):
    """SGD at rates whose proportion is known: the step of a weight is its gradient times its rate."""
    config = TrainConfig(
        learning_rate=1e-3, warmup=0, optimizer="sgd", lora_plus_ratio=4, head_learning_rate=7e-3, max_grad_norm=None
    )
    found, _ = gradients(*ppo(base, config, rates={"critic": 2e-3}))
    learner, batch = ppo(base, config, rates={"critic": 2e-3})
    before = copies(learner)
    learner.update(batch)
    for name, weight in learner.weights.items():
        rate = (2e-3 if name.startswith("critic.") else 1e-3) * (4 if "lora_B" in name else 1)
        rate = 7e-3 if "value_head" in name else rate
        assert torch.allclose(before[name] - weight, rate * found[name], rtol=1e-3, atol=1e-7), name


def test_loaded_state_is_a_copy(base):
    learner, batch = sft(base)
    learner.update(batch)
    saved = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    originals = {name: tensor.clone() for name, tensor in saved.items()}
    learner.load_tensors(saved, 1)
    learner.update(batch)
    assert all(torch.equal(saved[name], originals[name]) for name in saved)


def test_state_of_another_recipe_is_refused(base):
    learner, _ = sft(base)
    other, _ = reward(base)
    with pytest.raises(KeyError):
        learner.load_tensors(other.tensors(), 1)


def test_the_rate_of_each_step_is_that_of_the_schedule(base):
    config = TrainConfig(learning_rate=1e-2, schedule="linear", warmup=2.0, min_learning_rate=0.0)
    learner, batch = sft(base, config)
    rates = [learner.update(batch)["optim/learning_rate"] for _ in range(10)]
    assert rates == pytest.approx([1e-2 * r for r in (1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0)])
