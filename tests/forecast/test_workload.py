"""How many tokens go through a model at once."""

from __future__ import annotations

import pytest

from accord.batch import TokenBatch
from accord.forecast.workload import DROPOUT, micro_batches, workload
from forecast.recipes import TINY, recipe_of, shape_folder


@pytest.mark.parametrize(
    ("sequences", "longest", "unit", "limit"),
    [(8, 16, 1, 64), (8, 16, 2, 64), (8, 24, 1, 64), (4, 100, 2, 64), (3, 7, 1, 64)],
)
def test_micro_batches_are_those_of_a_batch(sequences, longest, unit, limit):
    """The same numbers as `TokenBatch.split` gives for sequences of that length."""
    import torch

    ids = [[1] * longest] * sequences
    pairs = torch.arange(sequences // 2).repeat_interleave(2) if unit == 2 else None
    batch = TokenBatch.from_sequences(ids, [[False] + [True] * (longest - 1)] * sequences, pair_N=pairs)
    parts = batch.split(limit)
    assert micro_batches(sequences, longest, unit, limit) == (max(part.tokens for part in parts), len(parts))


def test_dropout_is_where_an_algorithm_uses_it():
    from accord.algorithms import ALGORITHMS

    assert set(DROPOUT) == {name for name, algorithm in ALGORITHMS.items() if algorithm.uses_dropout}


def test_examples_and_pairs(tmp_path):
    folder = shape_folder(tmp_path, TINY)
    sizes = {"train": {"batch_size": 4, "micro_batch_tokens": 1024}, "data": {"max_tokens": 256}}
    sft, dpo = (workload(recipe_of(kind, folder, **sizes)) for kind in ("sft", "dpo"))
    assert (sft.sequences, sft.tokens, sft.micro_batches) == (4, 1024, 1)
    assert (dpo.sequences, dpo.tokens, dpo.micro_batches) == (8, 1024, 2)
    assert workload(recipe_of("sft", folder, **sizes), longest=100).tokens == 400
    assert workload(recipe_of("sft", folder, **sizes), longest=9999).longest == 256
    assert workload(recipe_of("sft", folder, **sizes), ranks=2).tokens == 512


def test_rollouts_have_rows_and_columns(tmp_path):
    folder = shape_folder(tmp_path, TINY)
    recipe = recipe_of(
        "ppo",
        folder,
        train={"batch_size": 128, "micro_batch_tokens": 1000},
        data={"max_prompt_tokens": 60},
        rollout={"max_new_tokens": 40, "max_sequences": 64},
        algorithm={"minibatches": 4},
    )
    work = workload(recipe)
    assert (work.rows, work.columns, work.prompt, work.longest) == (64, 100, 60, 100)
    assert (work.sequences, work.tokens, work.targets, work.micro_batches) == (32, 1000, 400, 4)
    assert (work.scored, work.scored_targets) == (1000, 400)
    assert workload(recipe, longest=10).columns == 50
