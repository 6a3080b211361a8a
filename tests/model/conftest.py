"""What the tests of models share: roles on tiny bases, packed batches, reward models on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from accord.batch import TokenBatch
from accord.config import LoraConfig, ModelConfig
from accord.model.export import save_policy, save_scorer
from accord.model.roles import Roles

CPU = torch.device("cpu")
LENGTHS = (9, 3, 17, 1, 6, 12)


@pytest.fixture
def ids() -> list[list[int]]:
    """Sequences of several lengths, one of a single token."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 250, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture
def batch(ids: list[list[int]]) -> TokenBatch:
    """The sequences end to end; every token but each first, and one in the middle, is a target."""
    return TokenBatch.from_sequences(ids, [[t not in (0, 4) for t in range(len(sequence))] for sequence in ids])


@pytest.fixture(scope="session")
def make_roles() -> Callable[..., Roles]:
    def make(folder: Path, adapter: LoraConfig | None = None, dtype: str = "auto") -> Roles:
        torch.manual_seed(2)  # a fresh adapter's A is random
        return Roles(ModelConfig(path=str(folder), dtype=dtype), adapter, CPU)

    return make


@pytest.fixture(scope="session")
def plain() -> Callable[[Path], PreTrainedModel]:
    """The causal model as transformers alone loads and runs it."""
    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def plain_hidden() -> Callable[[PreTrainedModel, Sequence[Sequence[int]]], list[Tensor]]:
    """Last hidden states of each sequence, run by itself."""
    return lambda model, ids: [
        model.base_model(input_ids=torch.tensor([list(sequence)]), use_cache=False).last_hidden_state[0]
        for sequence in ids
    ]


@pytest.fixture(scope="session")
def policy_adapter(
    model_folder: Callable[[str], Path], make_roles: Callable[..., Roles], shake, tmp_path_factory
) -> Path:
    """A trained policy adapter on the tiny Llama."""
    roles = make_roles(model_folder("llama"), LoraConfig(r=4, alpha=6))
    roles.add_policy()
    shake(roles.trainable("policy").values(), seed=11)
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_policy(roles, folder)
    return folder


@pytest.fixture(scope="session")
def reward_adapter(
    model_folder: Callable[[str], Path], make_roles: Callable[..., Roles], shake, tmp_path_factory
) -> Path:
    """A trained reward adapter on the tiny Llama."""
    roles = make_roles(model_folder("llama"), LoraConfig(r=3, alpha=9))
    roles.add_scorer()
    shake(roles.trainable("reward").values(), seed=12)
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_scorer(roles, folder)
    return folder


@pytest.fixture(scope="session")
def reward_model(
    model_folder: Callable[[str], Path], make_roles: Callable[..., Roles], shake, tmp_path_factory
) -> Path:
    """A trained reward model, all weights of it."""
    roles = make_roles(model_folder("llama"))
    roles.add_scorer()
    shake(roles.trainable("reward").values(), seed=13)
    folder = tmp_path_factory.mktemp("reward_full") / "model"
    save_scorer(roles, folder)
    return folder
