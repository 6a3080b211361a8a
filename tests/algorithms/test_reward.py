from __future__ import annotations

import math

import pytest
import torch

from accord.algorithms import Denominators, RewardModelling
from accord.config import RewardConfig
from accord.data import EncodedPair, TokenSequence
from accord.model.forward import Outputs


def sequence(*ids: int) -> TokenSequence:
    return TokenSequence(ids, (False,) + (True,) * (len(ids) - 1))


PAIRS = [EncodedPair(sequence(1, 2, 3), sequence(1, 4)), EncodedPair(sequence(5, 6), sequence(5, 7, 8, 9), margin=2.0)]


def test_prepare_puts_the_rejected_answer_behind_the_chosen_one():
    batch, metrics = RewardModelling(RewardConfig()).prepare(PAIRS, scorer=None)
    assert batch.input_ids_T.tolist() == [1, 2, 3, 1, 4, 5, 6, 5, 7, 8, 9]
    assert batch.pair_N.tolist() == [0, 0, 1, 1]
    assert batch.margins_N.tolist() == [0.0, 0.0, 2.0, 2.0], "nobody said by how much: no margin"
    assert metrics == {}


def test_without_margins_there_is_no_stream_of_them():
    batch, _ = RewardModelling(RewardConfig()).prepare(PAIRS[:1], scorer=None)
    assert batch.margins_N is None


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_loss_by_hand_for_any_micro_batches(limit):
    algorithm = RewardModelling(RewardConfig(centre_coef=0.01))
    batch, _ = algorithm.prepare(PAIRS, scorer=None)
    scores = torch.tensor([math.log(3), 0.0, 1.0, -1.0])
    denominators = Denominators.of(batch, lambda counts: counts)
    total = accuracy = 0.0
    for members in batch.bins(limit):
        outputs = Outputs(scores_N=scores[members])
        loss, metrics = algorithm.loss("reward", outputs, batch.select(members), denominators)
        total += loss.item()
        accuracy += metrics["reward/accuracy"].item()
    # -log sigmoid(ln 3) = ln 4/3; difference 2 and margin 2: ln 2; centring 0.01 * (ln^2 3 + 0)
    assert total == pytest.approx((math.log(4 / 3) + math.log(2) + 0.01 * math.log(3) ** 2) / 2, rel=1e-6)
    assert accuracy == 1.0


def test_roles_and_steps():
    algorithm = RewardModelling(RewardConfig())
    batch, _ = algorithm.prepare(PAIRS, scorer=None)
    assert [role.role for role in algorithm.roles()] == ["reward"]
    assert list(algorithm.minibatches(batch, torch.Generator())) == [batch]
