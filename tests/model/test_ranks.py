"""AdaLoRA's budget against peft's own loop."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from accord.config import AdaLoraConfig, CriticConfig
from accord.errors import ConfigError
from accord.model.methods import peft_config
from model.kinds import KINDS

CONFIG = AdaLoraConfig(init_r=4, target_r=2, alpha=8, warmup=2, final=3, every=2)
STEPS = 12
IDS = torch.tensor([[5, 80, 9, 200, 31, 7]])


def factors(model, name: str) -> dict[str, torch.nn.Parameter]:
    return {k: p for k, p in model.named_parameters() if k.endswith(tuple(f"lora_{x}.{name}" for x in "ABE"))}


def test_pruning_and_penalty_equal_peft_s_own_loop(model_folder, make_roles, plain):
    """Twelve steps of gradient descent: peft's forward with its penalty and `update_and_allocate`, and ours."""
    folder = model_folder("llama")
    own = peft_config(CONFIG, "")
    own.total_step, own.tinit, own.tfinal = STEPS, 2, 3
    theirs = peft.get_peft_model(plain(folder), own, adapter_name="policy")
    roles = make_roles(folder, CONFIG)
    roles.add_policy()
    roles.plan(STEPS)
    budget = roles.adapters.budgets["policy"]
    for (name, a), (other, b) in zip(factors(theirs, "policy").items(), budget.weights.items(), strict=True):
        assert name.removeprefix("base_model.model.") == other
        b.data.copy_(a.data)
    ranks = []
    for step in range(1, STEPS + 1):
        theirs(input_ids=IDS, labels=IDS).loss.backward()
        with roles.use("policy", train=True) as role:
            hidden = role.trunk(input_ids=IDS, use_cache=False, segment_bounds=[0, 6]).last_hidden_state
            loss = torch.nn.functional.cross_entropy(role.output(hidden)[0, :-1], IDS[0, 1:])
            loss.backward()
            metrics = roles.adapters.backward_penalty("policy", 1)
        assert metrics["adapter/orthogonality"] > 0
        for (name, a), b in zip(factors(theirs, "policy").items(), budget.weights.values(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            for parameter in (a, b):
                parameter.data.sub_(0.3 * a.grad)
        theirs.base_model.update_and_allocate(step)
        ranks.append(roles.adapters.after_step(step)["adapter/rank_mean"])
        theirs.zero_grad()
        for weight in budget.weights.values():
            weight.grad = None
        for a, b in zip(factors(theirs, "policy").values(), budget.weights.values(), strict=True):
            assert torch.equal(a == 0, b == 0), f"the same ranks are gone after step {step}"
    assert ranks[:3] == [4, 4, 4] and ranks[-1] == 2 and ranks == sorted(ranks, reverse=True)


def test_state_goes_through_tensors(model_folder, make_roles, shake):
    def prepared():
        roles = make_roles(model_folder("llama"), CONFIG)
        roles.add_policy()
        roles.plan(STEPS)
        shake(roles.trainable("policy").values(), 0.3)
        return roles

    def step(roles, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for weight in roles.trainable("policy").values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        roles.adapters.after_step(number)

    whole, other = prepared(), prepared()
    for number in range(1, 7):
        step(whole, number)
    state = {key: tensor.clone() for key, tensor in whole.adapters.tensors().items()}
    weights = copy.deepcopy({key: p.data for key, p in whole.trainable("policy").items()})
    other.adapters.load_tensors(state)
    for key, parameter in other.trainable("policy").items():
        parameter.data.copy_(weights[key])
    for number in range(7, STEPS + 1):
        step(whole, number)
        step(other, number)
    assert whole.adapters.budgets["policy"].pattern == other.adapters.budgets["policy"].pattern
    for one, two in zip(whole.trainable("policy").values(), other.trainable("policy").values(), strict=True):
        assert torch.equal(one, two)


def test_a_step_without_gradients_leaves_the_importance(model_folder, make_roles):
    roles = make_roles(model_folder("llama"), CONFIG)
    roles.add_policy()
    roles.plan(STEPS)
    for number in range(1, STEPS + 1):
        roles.adapters.after_step(number)
    assert roles.adapters.tensors() == {} and roles.adapters.budgets["policy"].mean_rank() == 4


def test_ranks_that_grew_again_between_prunings_are_saved(model_folder, make_roles, shake):
    roles = make_roles(model_folder("llama"), CONFIG)
    roles.add_policy()
    roles.plan(STEPS)
    budget = roles.adapters.budgets["policy"]
    budget.pattern = {key: [True, False, False, False] for key in budget.weights if "lora_E" in key}
    for key, weight in budget.weights.items():
        if "lora_E" in key:
            weight.data.zero_()
            weight.data[3] = 1.0
    assert all(kept == [True, False, False, True] for kept in budget.kept().values())


def test_two_adapters_of_one_base_are_pruned_by_themselves(model_folder, make_roles, shake):
    roles = make_roles(model_folder("llama"), CONFIG)
    roles.add_policy()
    roles.add_critic(CriticConfig(source="adapter"))
    roles.plan(STEPS)
    shake(roles.trainable("policy").values(), 0.3)
    for number in range(1, STEPS + 1):
        for weight in roles.adapters.parameters("policy").values():
            weight.grad = torch.randn_like(weight)
        roles.adapters.after_step(number)
    assert roles.adapters.budgets["policy"].mean_rank() == 2
    assert roles.adapters.budgets["critic"].mean_rank() == 4


def test_a_run_too_short_is_refused(model_folder, make_roles):
    roles = make_roles(model_folder("llama"), CONFIG)
    roles.add_policy()
    with pytest.raises(ConfigError, match="leave none of the run's 4 optimiser steps"):
        roles.plan(4)


def test_each_rank_adds_its_share_of_the_penalty(model_folder, make_roles):
    """Gradients of processes are added up, so two halves make the whole."""
    roles = make_roles(model_folder("llama"), CONFIG)
    roles.add_policy()
    roles.plan(STEPS)
    gradients = []
    for ranks in (1, 2):
        with roles.use("policy", train=True):
            metric = roles.adapters.backward_penalty("policy", ranks)["adapter/orthogonality"]
        weights = roles.trainable("policy")
        gradients.append((metric, {key: w.grad.clone() for key, w in weights.items() if w.grad is not None}))
        for weight in weights.values():
            weight.grad = None
    (whole, one), (half, other) = gradients
    torch.testing.assert_close(whole, 2 * half)
    assert one.keys() == other.keys() and one and all("lora_E" not in key for key in one)
    for key in one:
        torch.testing.assert_close(one[key], 2 * other[key])


def test_an_adapter_without_a_penalty_adds_nothing(model_folder, make_roles):
    roles = make_roles(model_folder("llama"), KINDS["lora"])
    roles.add_policy()
    roles.plan(STEPS)
    assert roles.adapters.backward_penalty("policy", 1) == {} == roles.adapters.after_step(1)
    assert roles.adapters.backward_penalty(None, 1) == {} == roles.adapters.tensors()
