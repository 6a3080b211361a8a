"""Rows by memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from accord.config import ModelConfig
from accord.config.rollout import MOST
from accord.model.device import memory_bytes
from accord.model.roles import Roles
from accord.rollout.budget import choose_rows, row_bytes
from accord.rollout.cache import RowCache
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Request, Sampling


def roles_of(folder: Path) -> Roles:
    roles = Roles(ModelConfig(path=str(folder)), None, torch.device("cpu"))
    roles.add_policy()
    return roles


@pytest.mark.parametrize(
    ("family", "bytes_"),
    [("llama", 2 * 2 * 4 * 8 * 4), ("llama_grouped", 2 * 2 * 2 * 8 * 4), ("gpt2", 2 * 2 * 4 * 8 * 4)],
)
def test_bytes_of_a_row_are_those_of_the_cache(family, bytes_, model_folder) -> None:
    roles = roles_of(model_folder(family))
    trunk = roles.roles["policy"].trunk
    assert row_bytes(trunk) == bytes_, "layers x (keys, values) x heads x size x 4 bytes"
    assert row_bytes(trunk.bfloat16()) == bytes_ // 2


def test_rows_are_what_a_quarter_of_the_memory_holds(model_folder) -> None:
    model = AutoModel.from_pretrained(model_folder("llama"))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    row = row_bytes(model) * 50
    assert choose_rows(model, 50, weights + 4 * row * 7) == 7
    assert choose_rows(model, 50, weights + 4 * row * 7 - 1) == 6
    assert choose_rows(model, 100, weights + 4 * row * 7) == 3
    assert choose_rows(model, 50, 2**50) == MOST
    assert choose_rows(model, 50, 0) == 1, "one sequence is always tried"


def test_memory_of_this_machine() -> None:
    assert 2**28 < memory_bytes(torch.device("cpu")) < 2**50


def test_the_engine_chooses(model_folder, monkeypatch) -> None:
    roles = roles_of(model_folder("llama"))
    rows, make = [], RowCache.__init__

    def noted(cache: RowCache, wanted: int, columns: int, device: torch.device) -> None:
        rows.append((wanted, columns))
        make(cache, wanted, columns, device)

    monkeypatch.setattr(RowCache, "__init__", noted)
    requests = [Request((5,) * (1 + n), n) for n in range(9)]
    trunk = roles.roles["policy"].trunk
    weights = sum(parameter.nbytes for parameter in trunk.parameters())
    for memory in (2**40, weights + 4 * 4 * row_bytes(trunk) * 12):
        monkeypatch.setattr("accord.rollout.native.memory_bytes", lambda device, memory=memory: memory)
        assert len(NativeEngine(roles, None).generate(requests, Sampling(3))) == 9
    assert rows == [(9, 12), (4, 12)], "as many as there are requests; as many as fit"
