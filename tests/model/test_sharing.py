"""A reference that holds the lower layers in common with the policy: in memory, in what learns, in what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from accord.batch import TokenBatch
from accord.config import CriticConfig, ModelConfig, ReferenceConfig
from accord.errors import ConfigError, ModelError
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.model.sharing import layers_of

CPU = torch.device("cpu")
BATCH = TokenBatch.from_sequences([[5, 9, 30, 7], [12, 8, 77]], [[False, False, True, True], [False, True, True]])


def roles_of(folder: Path, k: int | None = 1) -> Roles:
    roles = Roles(ModelConfig(path=str(folder)), None, CPU)
    roles.add_policy(CriticConfig(source="policy_trunk"))
    roles.add_reference(ReferenceConfig() if k is None else ReferenceConfig(source="shared_layers", k=k))
    return roles


def parameters(roles: Roles, name: str) -> dict[str, nn.Parameter]:
    """Weights of a role by name, those of its output layer too."""
    role = roles.roles[name]
    assert role.output is not None
    return dict(role.trunk.named_parameters()) | {f"output.{key}": p for key, p in role.output.named_parameters()}


def held(*names: str, roles: Roles) -> int:
    """Bytes of the weights of roles, each place in memory counted once."""
    places = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for n in names
        for p in parameters(roles, n).values()
    }
    return sum(places.values())


def is_upper(name: str) -> bool:
    """Of a model with two layers, of which the first is shared."""
    return not any(part in name for part in ("embed", "wte", "wpe", "layers.0.", "h.0."))


def test_the_lower_part_is_held_once(family, model_folder):
    roles = roles_of(model_folder(family))
    policy, reference = parameters(roles, "policy"), parameters(roles, "reference")
    assert policy.keys() == reference.keys()
    tied = policy["output.weight"].data_ptr() in {p.data_ptr() for n, p in policy.items() if not n.startswith("output")}
    for name, weight in policy.items():
        shared = not is_upper(name) or (tied and name == "output.weight")
        assert (weight.data_ptr() == reference[name].data_ptr()) == shared, name
        assert weight.requires_grad != shared and not reference[name].requires_grad, name
        assert torch.equal(weight, reference[name])
    copied = sum(p.nbytes for n, p in policy.items() if is_upper(n) and not (tied and n == "output.weight"))
    assert held("policy", "reference", roles=roles) == held("policy", roles=roles) + copied
    whole = roles_of(model_folder(family), k=None)
    assert held("policy", "reference", roles=whole) == 2 * held("policy", roles=whole)


def test_what_is_shared_does_not_learn_and_the_reference_stays(family, model_folder):
    roles = roles_of(model_folder(family))
    before = {name: p.detach().clone() for name, p in parameters(roles, "reference").items()}
    said = forward(roles.roles["reference"], BATCH).logprobs_T
    assert said is not None
    assert torch.equal(forward(roles.roles["policy"], BATCH).logprobs_T, said)  # the KL starts at exactly 0
    weights = roles.trainable("policy")
    assert "value_head.weight" in weights and len(weights) > 5
    shared = {p.data_ptr() for p in parameters(roles, "reference").values()}
    assert not shared & {p.data_ptr() for p in weights.values()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    with roles.use("policy", train=True) as role:
        outputs = forward(role, BATCH)
        assert outputs.logprobs_T is not None
        outputs.logprobs_T.sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in parameters(roles, "reference").items())
    assert torch.equal(forward(roles.roles["reference"], BATCH).logprobs_T, said)
    moved = {n for n, p in parameters(roles, "policy").items() if not torch.equal(before[n], p)}
    assert moved and all(is_upper(name) for name in moved)
    assert not torch.equal(forward(roles.roles["policy"], BATCH).logprobs_T, said)


def test_gradients_above_are_those_of_training_all(model_folder):
    """Sharing freezes the lower part; what is left learns as it would have."""
    found = []
    for k in (1, None):
        roles = roles_of(model_folder("llama"), k)
        with roles.use("policy", train=True) as role:
            outputs = forward(role, BATCH)
            assert outputs.logprobs_T is not None
            outputs.logprobs_T.sum().backward()
        found.append({n: p.grad for n, p in roles.trainable("policy").items() if p.grad is not None})
    assert len(found[0]) < len(found[1])
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("k", [2, 40])
def test_more_layers_than_there_are(k, model_folder):
    message = f"reference.k is {k}, and LlamaForCausalLM has 2 layers: between 1 and 1 can be shared"
    with pytest.raises(ConfigError, match=message):
        roles_of(model_folder("llama"), k)


def test_a_model_whose_layers_cannot_be_told(model_folder):
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), None, CPU)
    roles.model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="one list of layers"):
        layers_of(roles.model)
