from __future__ import annotations

from typing import Any

import pytest
import torch

from accord.algorithms import Denominators, SimPO
from accord.algorithms.pairs import answers
from accord.config import SimPOConfig
from accord.losses import simpo
from accord.model.forward import Outputs
from algorithms.test_dpo import of_ids
from algorithms.test_reward import PAIRS


def value(limit: int = 100, **options: Any) -> float:
    algorithm = SimPO(SimPOConfig(**options))
    batch, metrics = algorithm.prepare(PAIRS, scorer=None)
    assert metrics == {} and batch.pair_N.tolist() == [0, 0, 1, 1]
    denominators, logprobs, total = Denominators.of(batch, lambda counts: counts), of_ids(batch.input_ids_T), 0.0
    for members in batch.bins(limit):
        outputs = Outputs(logprobs_T=logprobs[batch.token_index(members)])
        total += algorithm.loss("policy", outputs, batch.select(members), denominators)[0].item()
    return total


def test_it_is_the_loss_with_the_defaults_for_any_micro_batches():
    batch, _ = SimPO(SimPOConfig()).prepare(PAIRS, scorer=None)
    expected = simpo(
        **answers(of_ids(batch.input_ids_T), batch), pairs=torch.tensor(2.0), beta=2.0, gamma_beta_ratio=0.5
    )[0].item()
    assert value() == pytest.approx(expected, rel=1e-6) == value(limit=1)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hinge"},
        {"beta": 3.0},
        {"gamma_beta_ratio": 1.0},
        {"label_smoothing": 0.1},
        {"alpha": 0.5},
        {"sft_coef": 1.0},
    ],
)
def test_each_option_reaches_the_loss(options):
    assert value(**options) != pytest.approx(value(), rel=1e-6)


def test_roles_and_steps():
    algorithm = SimPO(SimPOConfig())
    batch, _ = algorithm.prepare(PAIRS, scorer=None)
    assert [role.role for role in algorithm.roles()] == ["policy"]
    assert list(algorithm.minibatches(batch, torch.Generator())) == [batch]
