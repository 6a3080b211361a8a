"""The load-balancing loss against transformers' own function, and the same for any way of cutting a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from accord.algorithms import PPO, SFT
from accord.batch import TokenBatch
from accord.config import CriticConfig, LoraConfig, ModelConfig, PPOConfig, ReferenceConfig, TrainConfig
from accord.data import TokenSequence
from accord.errors import ConfigError
from accord.losses import router_balance
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.training.learner import Learner
from accord.types import Rollout

CPU = torch.device("cpu")
TRAIN = TrainConfig(learning_rate=1e-2, warmup=0, schedule="constant", max_grad_norm=None)
LENGTHS = (9, 4, 12, 4, 7, 3)
EXPERTS = ("mixtral", "qwen3_moe", "jamba")


def examples() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(3, 250, (n,), generator=generator).tolist()) for n in LENGTHS]
    return [TokenSequence(s, (False, False) + (True,) * (len(s) - 2)) for s in ids]


def learner_of(
    folder: Path, coef: float | None, micro: int = 4096, adapter: LoraConfig | None = None, again: bool = False
) -> tuple[Learner, TokenBatch]:
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(folder), router_aux_coef=coef), adapter, torch.device("cpu"))
    roles.add_policy()
    algorithm = SFT()
    config = TRAIN.model_copy(update={"micro_batch_tokens": micro, "activation_checkpointing": again})
    return Learner(roles, algorithm, config, 10), algorithm.prepare(examples(), Scorer(roles, 4096))[0]


def gradients(learner: Learner, batch: TokenBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    found: dict[str, torch.Tensor] = {}

    def keep(*_, **__) -> None:
        found.update({name: weight.grad.clone() for name, weight in learner.weights.items() if weight.grad is not None})

    learner.optimizer.step = keep
    return found, learner.update(batch)


def plain_loss(folder: Path, coef: float) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """SFT's loss plus transformers' balance over all tokens of the step, each sequence run by itself; and the gradients."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    nll, layers, targets = torch.zeros(()), [], 0
    for example in examples():
        ids = torch.tensor([example.input_ids])
        out = model(input_ids=ids, use_cache=False, output_router_logits=True)
        logprobs = out.logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[1:]
        nll, targets = nll - logprobs.sum(), targets + len(logprobs)
        layers.append(out.router_logits)
    whole = tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
    balance = load_balancing_loss_func(whole, 4, 2)
    (nll / targets + coef * balance).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return nll / targets, balance, named


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("micro", [4096, 14, 1])
def test_loss_and_gradients_are_those_of_transformers_over_the_whole_step(
    family: str, micro: int, model_folder
) -> None:
    learner, batch = learner_of(model_folder(family), 0.7, micro)
    assert (len(batch.split(micro)) == 1) == (micro == 4096)
    got, metrics = gradients(learner, batch)
    nll, balance, wanted = plain_loss(model_folder(family), 0.7)
    assert metrics["moe/aux_loss"] == pytest.approx(float(balance), rel=1e-5)
    assert metrics["sft/loss"] == pytest.approx(float(nll), rel=1e-5), "the method's own loss stays its own"
    routers = 0
    for name, gradient in wanted.items():
        key = "policy.output.weight" if name == "lm_head.weight" else f"policy.trunk.{name.removeprefix('model.')}"
        scale = float(gradient.abs().max()) + 1e-3
        torch.testing.assert_close(got[key] / scale, gradient / scale, atol=2e-4, rtol=1e-3, msg=name)
        routers += "gate.weight" in name or "router" in name
    assert routers >= 1


@pytest.mark.parametrize("micro", [4096, 40, 1])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_shared_prompt_counts_with_each_of_its_answers(family: str, micro: int, model_folder) -> None:
    """Computed once, it is as many tokens for the balance as it has answers; the loss would be another number otherwise."""
    found = []
    for shares, tokens in ((False, 4096), (True, micro)):
        learner, _ = learner_of(model_folder(family), 0.7, tokens)
        policy = learner.roles.roles["policy"]
        learner.roles.roles["policy"] = replace(policy, shares=shares)
        prompt = tuple(range(30, 54))
        behind = [TokenSequence(prompt + e.input_ids, (False,) * 24 + (True,) * len(e)) for e in examples()]
        found.append(gradients(learner, SFT().prepare(behind, Scorer(learner.roles, 4096))[0]))
    (whole, metrics), (shared, shared_metrics) = found
    assert shared_metrics.pop("tokens/computed") <= metrics.pop("tokens/computed")
    assert shared_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name, gradient in whole.items():
        scale = float(gradient.abs().max()) + 1e-3
        torch.testing.assert_close(shared[name] / scale, gradient / scale, atol=2e-4, rtol=1e-3, msg=name)


def test_a_micro_batch_s_own_balance_would_be_another_number(model_folder) -> None:
    """What the extra pass is for: the mean over micro-batches of their own losses is not the step's."""
    learner, batch = learner_of(model_folder("mixtral"), 1.0)
    whole = gradients(learner, batch)[1]["moe/aux_loss"]
    parts = [gradients(learner_of(model_folder("mixtral"), 1.0)[0], part)[1]["moe/aux_loss"] for part in batch.split(1)]
    assert abs(sum(parts) / len(parts) - whole) > 0.01


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_feel_it_too_in_any_split(family: str, model_folder, shake) -> None:
    results = []
    for micro, coef in ((4096, 0.7), (1, 0.7), (4096, 0.0)):
        learner, batch = learner_of(model_folder(family), coef, micro, LoraConfig(r=4))
        shake(learner.weights.values())
        results.append(gradients(learner, batch))
    (whole, metrics), (split, split_metrics), (without, none) = results
    assert metrics == pytest.approx(split_metrics, rel=1e-4, abs=1e-6)
    assert "moe/aux_loss" in metrics and "moe/aux_loss" not in none
    assert all(torch.allclose(split[name], whole[name], rtol=1e-3, atol=1e-5) for name in whole)
    assert any(not torch.allclose(without[name], whole[name], rtol=1e-2, atol=1e-4) for name in whole)


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("micro", [4096, 14])
@pytest.mark.parametrize("family", EXPERTS)
def test_layers_that_are_computed_again_give_the_same_balance(
    family: str, micro: int, adapter, model_folder, shake
) -> None:
    results = []
    for again in (False, True):
        learner, batch = learner_of(model_folder(family), 0.7, micro, adapter, again)
        shake(learner.weights.values())
        results.append(gradients(learner, batch))
    (plain, metrics), (computed_again, same) = results
    assert same == pytest.approx(metrics, rel=1e-6) and "moe/aux_loss" in metrics
    assert plain.keys() == computed_again.keys()
    assert all(torch.allclose(computed_again[name], plain[name], rtol=1e-5, atol=1e-7) for name in plain)


def test_the_checkpoint_s_own_coefficient_is_the_default(model_folder) -> None:
    assert learner_of(model_folder("mixtral"), None)[0].balance.routers.coef == 0.02
    assert learner_of(model_folder("mixtral"), 0.5)[0].balance.routers.coef == 0.5
    assert learner_of(model_folder("mixtral"), 0.0)[0].balance.routers is None
    assert learner_of(model_folder("llama"), None)[0].balance.routers is None
    with pytest.raises(ConfigError, match="a LlamaForCausalLM has no routers with such a loss"):
        learner_of(model_folder("llama"), 0.1)


def test_a_reward_model_s_experts_are_left_alone(model_folder) -> None:
    roles = Roles(ModelConfig(path=str(model_folder("mixtral"))), None, torch.device("cpu"))
    roles.add_scorer()
    assert Learner(roles, SFT(), TRAIN, 10).balance.routers is None


def test_by_hand() -> None:
    """Three tokens, two experts, one choice each: 2 x (2/3 x 0.6 + 1/3 x 0.4) = 1.0667; all to one: 2 x 1 x P."""
    probabilities = torch.tensor([1.8, 1.2], requires_grad=True)
    loss, metrics = router_balance(
        probabilities_E=probabilities, choices_E=torch.tensor([2.0, 1.0]), routed=torch.tensor(3.0), coef=0.5
    )
    loss.backward()
    assert float(loss) == pytest.approx(0.5 * 16 / 15)
    assert float(metrics["moe/aux_loss"]) == pytest.approx(16 / 15)
    torch.testing.assert_close(
        probabilities.grad, torch.tensor([2 / 9, 1 / 9])
    )  # the busier expert is pushed down more
    even, _ = router_balance(
        probabilities_E=torch.full((4,), 2.0), choices_E=torch.full((4,), 4.0), routed=torch.tensor(8.0), coef=1.0
    )
    assert float(even) == pytest.approx(2.0), "two choices a token, evenly spread"


@pytest.mark.parametrize("warming_up", [False, True])
def test_the_critic_and_the_warm_up_are_left_alone(warming_up: bool, model_folder, shake) -> None:
    """The critic's adapter sits on the same trunk, and so behind the same routers."""
    found = []
    for coef in (0.0, 0.7):
        torch.manual_seed(0)
        roles = Roles(ModelConfig(path=str(model_folder("mixtral")), router_aux_coef=coef), LoraConfig(r=4), CPU)
        critic = CriticConfig(source="policy_trunk" if warming_up else "adapter")
        roles.add_policy(critic)
        roles.add_reference(ReferenceConfig())
        roles.add_critic(critic)
        algorithm = PPO(PPOConfig(value_warmup=int(warming_up)), critic_on_trunk=warming_up)
        learner = Learner(roles, algorithm, TRAIN, 10)
        shake(learner.weights.values())
        rollouts = [
            Rollout(e.input_ids[:2], e.input_ids[2:], (-1.0,) * (len(e) - 2), "stop", "p", "r", score=0.3 * i - 0.5)
            for i, e in enumerate(examples())
        ]
        found.append(gradients(learner, algorithm.prepare(rollouts, Scorer(roles, 4096))[0]))
    (without, _), (balanced, metrics) = found
    alone = [name for name in without if warming_up or name.startswith("critic.")]
    assert alone and all(torch.equal(without[name], balanced[name]) for name in alone)
    assert ("moe/aux_loss" in metrics) == (not warming_up)
    assert warming_up or any(not torch.equal(without[name], balanced[name]) for name in without)
