"""A packed batch against the same sequences padded: plain transformers with an attention mask, and TRL's log-softmax."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from accord.config import CriticConfig, ModelConfig
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.ops.logprobs import token_logprobs
from oracle.padded import Padded

pytest.importorskip("trl")

from trl.trainer.utils import entropy_from_logits, selective_log_softmax

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_log_probabilities_and_entropies_from_logits(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(23, 16, generator=generator), 2 * torch.randn(301, 16, generator=generator)
    targets = torch.randint(301, (23,), generator=generator)
    logprobs, entropies = token_logprobs(hidden, weight, None, targets, temperature=temperature, with_entropy=True)
    logits = hidden @ weight.T / temperature
    assert torch.allclose(logprobs, selective_log_softmax(logits, targets), atol=1e-4)
    assert torch.allclose(entropies, entropy_from_logits(logits), atol=1e-4)


def padded_outputs(model, ragged: Padded) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [N, longest response], prompts padded on the left."""
    inputs = ragged.inputs()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -ragged.width - 1 : -1]
    return selective_log_softmax(logits, inputs["completion_ids"]), entropy_from_logits(logits)


@pytest.mark.parametrize("seed", range(2))
def test_a_packed_model_says_what_a_padded_one_says(seed, family, model_folder):
    """Values, and gradients of the mean log-probability with respect to every weight."""
    folder: Path = model_folder(family)
    ragged = Padded(seed)
    roles = Roles(ModelConfig(path=str(folder)), None, CPU)
    roles.add_policy(CriticConfig(source="policy_trunk"))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with roles.use("policy", train=True) as role:
        outputs = forward(role, ragged.batch, entropy=True)
    logprobs, entropies = padded_outputs(plain, ragged)
    assert outputs.logprobs_T is not None and outputs.entropies_T is not None
    assert torch.allclose(ragged.pad(outputs.logprobs_T)[ragged.mask], logprobs[ragged.mask], atol=1e-4)
    assert torch.allclose(ragged.pad(outputs.entropies_T)[ragged.mask], entropies[ragged.mask], atol=1e-4)
    (outputs.logprobs_T.sum() / ragged.tokens).backward()
    ((logprobs * ragged.mask).sum() / ragged.tokens).backward()
    ours, theirs = dict(roles.model.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if weight.grad is not None:
            assert torch.allclose(ours[name].grad, weight.grad, rtol=1e-3, atol=1e-4), name


def test_padding_and_back_is_the_identity():
    for seed in range(20):
        ragged = Padded(seed)
        stream = ragged.stream()
        back = torch.zeros_like(stream)
        back[ragged.batch.target_mask_T] = ragged.pad(stream)[ragged.mask]
        assert torch.equal(back, stream)
