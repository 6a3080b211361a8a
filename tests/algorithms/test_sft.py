from __future__ import annotations

import pytest
import torch

from accord.algorithms import SFT, Denominators
from accord.data import TokenSequence
from accord.model.forward import Outputs

ITEMS = [TokenSequence((1, 2, 3), (False, True, True)), TokenSequence((4, 5), (False, True))]


def test_prepare_lays_examples_end_to_end():
    batch, metrics = SFT().prepare(ITEMS, scorer=None)
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 5] and batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.target_mask_T.tolist() == [False, True, True, False, True]
    assert metrics == {}


def test_one_step_takes_the_whole_batch():
    batch, _ = SFT().prepare(ITEMS, scorer=None)
    assert list(SFT().minibatches(batch, torch.Generator())) == [batch]
    assert [role.role for role in SFT().roles()] == ["policy"]


def test_loss_by_hand_with_and_without_weights():
    batch, _ = SFT().prepare(ITEMS, scorer=None)
    outputs = Outputs(logprobs_T=torch.tensor([0, -1.0, -2.0, 0, -3.0]))
    denominators = Denominators(torch.tensor(6.0), torch.tensor(4.0))  # this is half of the step
    assert SFT().loss("policy", outputs, batch, denominators)[0].item() == 1.0  # (1 + 2 + 3) / 6
    weighted = batch.with_streams(weights_T=torch.tensor([0, 1.0, 0.0, 0, 2.0]))
    assert SFT().loss("policy", outputs, weighted, denominators)[0].item() == pytest.approx(7 / 6)  # (1 + 0 + 6) / 6
