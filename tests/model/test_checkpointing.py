"""Activation checkpointing: the same loss and gradients, layers computed twice, and nothing changed afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig, PromptConfig
from accord.errors import ModelError
from accord.model.checkpointing import ActivationCheckpointing
from accord.model.forward import forward
from accord.model.roles import Roles

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt_neox", "gpt2", "mistral", "opt", "gemma3_images", "bloom", "t5", "mixtral")


def roles_on(folder, adapter: object = LoraConfig(r=4, alpha=8), quantize: str = "none") -> Roles:
    torch.manual_seed(2)
    roles = Roles(ModelConfig(path=str(folder), quantize=quantize), adapter, CPU)
    roles.add_policy()
    return roles


def learn(roles: Roles, batch: TokenBatch, save: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and how often the first layer's attention ran."""
    weights = roles.trainable("policy")
    for weight in weights.values():
        weight.grad = None
    calls: list[int] = []
    with roles.use("policy", train=True) as role:
        saving = ActivationCheckpointing(role.trunk)
        hook = next(iter(saving.layers[-1].children())).register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(9)  # for dropout
        if save:
            with saving.on():
                loss = forward(role, batch).logprobs_T.square().sum()
                loss.backward()
        else:
            loss = forward(role, batch).logprobs_T.square().sum()
            loss.backward()
        hook.remove()
    return loss.detach(), {key: p.grad.clone() for key, p in weights.items() if p.grad is not None}, len(calls)


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_are_equal(family_name: str, full: bool, model_folder, batch: TokenBatch, shake) -> None:
    if family_name == "t5":
        batch = batch.select([n for n in range(batch.sequences) if batch.lengths_N[n] > 1])
    roles = roles_on(model_folder(family_name), None if full else LoraConfig(r=4, alpha=8))
    shake(roles.trainable("policy").values(), size=0.05)
    loss, gradients, calls = learn(roles, batch, save=False)
    again, other, twice = learn(roles, batch, save=True)
    assert torch.equal(loss, again)
    assert gradients.keys() == other.keys() and gradients
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, other[key], rtol=1e-4, atol=1e-6 * float(gradient.abs().max())), key
    assert twice == 2 * calls


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_on_a_quantised_base(kind: str, model_folder, batch: TokenBatch, shake) -> None:
    pytest.importorskip("bitsandbytes")
    roles = roles_on(model_folder("gpt_neox"), quantize=kind)
    shake(roles.trainable("policy").values())
    loss, gradients, _ = learn(roles, batch, save=False)
    again, other, _ = learn(roles, batch, save=True)
    assert torch.equal(loss, again) and all(torch.allclose(g, other[key], rtol=1e-4) for key, g in gradients.items())


def test_prompts_of_virtual_tokens_learn(model_folder, batch: TokenBatch) -> None:
    roles = roles_on(model_folder("llama"), PromptConfig(tokens=3))
    _, gradients, _ = learn(roles, batch, save=False)
    _, other, _ = learn(roles, batch, save=True)
    assert all(torch.allclose(gradient, other[key], rtol=1e-4) for key, gradient in gradients.items())


def test_dropout_stays_as_it_is_in_both_modes(model_folder, batch: TokenBatch) -> None:
    """OPT's layer itself asks for the mode: told to checkpoint, it must not drop; in training it drops the same twice."""
    roles = roles_on(model_folder("opt"), None)
    saving = ActivationCheckpointing(roles.roles["policy"].trunk)
    for layer in saving.layers:
        layer.dropout = 0.5
    still, _, _ = learn(roles, batch, save=False)
    assert torch.equal(still, learn(roles, batch, save=True)[0])
    roles.train_mode(True)
    dropped, gradients, _ = learn(roles, batch, save=False)
    again, other, _ = learn(roles, batch, save=True)
    assert not torch.equal(dropped, still) and torch.equal(dropped, again)
    assert all(torch.allclose(gradient, other[key], rtol=1e-4, atol=1e-7) for key, gradient in gradients.items())


def test_afterwards_all_is_as_before(model_folder, batch: TokenBatch) -> None:
    roles = roles_on(model_folder("llama"))
    saving = ActivationCheckpointing(roles.roles["policy"].trunk)
    with pytest.raises(RuntimeError, match="stop"), saving.on():
        assert all(layer.training for layer in saving.layers)
        raise RuntimeError("stop")
    assert not any(layer.training or layer.gradient_checkpointing for layer in saving.layers)


def test_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"train\.activation_checkpointing: the layers of Sequential are not of the kind"
    ):
        ActivationCheckpointing(nn.Sequential(nn.Linear(2, 2)))
