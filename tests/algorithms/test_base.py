from __future__ import annotations

import torch

from accord.algorithms import ALGORITHMS, Denominators
from accord.algorithms.base import Stateless
from accord.batch import TokenBatch
from accord.config import RECIPES


def test_denominators_count_targets_and_sequences_over_ranks():
    batch = TokenBatch.from_sequences([[1, 2, 3], [4, 5]], [[False, True, True], [False, False]])
    alone = Denominators.of(batch, lambda counts: counts)
    assert (alone.tokens.item(), alone.sequences.item()) == (2.0, 2.0)
    three = Denominators.of(batch, lambda counts: counts * 3)
    assert (three.tokens.item(), three.sequences.item()) == (6.0, 6.0)
    assert three.tokens.dtype == torch.float32
    assert three.to(torch.device("cpu")).tokens.item() == 6.0


def test_every_recipe_has_its_algorithm_and_the_other_way_round():
    assert ALGORITHMS.keys() == RECIPES.keys()


def test_stateless():
    algorithm = Stateless()
    algorithm.load_state_dict({})
    assert algorithm.state_dict() == {} and algorithm.veto({"ppo/policy/ratio_mean": 1e9}) is None
