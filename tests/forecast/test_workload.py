"""How many tokens go through a model at once."""

from __future__ import annotations

import pytest

from accord import packing
from accord.batch import TokenBatch
from accord.forecast.workload import DROPOUT, OWN_TO_SHARED, SHORTEST, Micro, micro_batches, workload
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
    most = max(part.tokens for part in parts)
    assert micro_batches(sequences, 0, longest, unit, limit) == (Micro(most, most), len(parts))


@pytest.mark.parametrize("limit", [2000, 500, 240, 150])
@pytest.mark.parametrize("group", [2, 4])
def test_micro_batches_of_groups_are_those_of_a_batch(group, limit):
    """Prompts of 60 tokens, 8 sequences with 40 of their own."""
    ids = [[number // group] * 60 + [100 + number] * 40 for number in range(8)]
    batch = TokenBatch.from_sequences(ids, [[False] * 60 + [True] * 40] * 8)
    parts = batch.split(limit, shares=True)
    micro, count = micro_batches(8, 60, 40, 1, limit, group)
    assert count == len(parts)
    # Batches of equal sequences are cut evenly; where lengths differ, one may be filled.
    assert max(part.layout.tokens for part in parts) <= micro.tokens <= limit
    assert max(part.targets for part in parts) <= micro.targets
    if len(parts) in (1, 8 // group):
        assert micro.tokens == max(part.layout.tokens for part in parts)


def test_prompts_are_shared_where_the_packing_shares_them():
    assert (SHORTEST, OWN_TO_SHARED) == (packing.SHORTEST, packing.OWN_TO_SHARED)


def test_dropout_is_where_an_algorithm_uses_it():
    from accord.algorithms import ALGORITHMS

    assert set(DROPOUT) == {name for name, algorithm in ALGORITHMS.items() if algorithm.uses_dropout}


def test_examples_and_pairs(tmp_path):
    folder = shape_folder(tmp_path, TINY)
    sizes = {"train": {"batch_size": 4, "micro_batch_tokens": 1024}, "data": {"max_tokens": 256}}
    sft, dpo = (workload(recipe_of(kind, folder, **sizes)) for kind in ("sft", "dpo"))
    assert (sft.sequences, sft.update.tokens, sft.micro_batches) == (4, 1024, 1)
    assert (dpo.sequences, dpo.update.tokens, dpo.micro_batches) == (8, 1024, 2)
    assert workload(recipe_of("sft", folder, **sizes), longest=100).update.tokens == 400
    assert workload(recipe_of("sft", folder, **sizes), longest=9999).longest == 256
    assert workload(recipe_of("sft", folder, **sizes), ranks=2).update.tokens == 512


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
    assert (work.sequences, work.update, work.micro_batches) == (32, Micro(1000, 400), 4)
    assert work.scored == Micro(1000, 400)
    assert workload(recipe, longest=10).columns == 50


@pytest.mark.parametrize(
    ("limit", "minibatches", "update", "count"),
    [
        (
            1000,
            1,
            Micro(4 * 220, 4 * 160, 4 * 3 * 100),
            2,
        ),  # 8 prompts of 60, 4 answers of 40 behind each: four groups fit
        (150, 1, Micro(140, 80, 100), 16),  # a group does not fit: two answers behind a prompt do
        (1000, 2, Micro(1000, 400), 2),  # minibatches cut groups
    ],
)
def test_a_prompt_counts_once_for_its_samples(limit, minibatches, update, count, tmp_path):
    recipe = recipe_of(
        "grpo",
        shape_folder(tmp_path, TINY),
        train={"batch_size": 32, "micro_batch_tokens": limit},
        data={"max_prompt_tokens": 60},
        rollout={"max_new_tokens": 40, "samples": 4},
        algorithm={"minibatches": minibatches},
    )
    work = workload(recipe, shares=True)
    assert (work.update, work.micro_batches) == (update, count)
    assert workload(recipe).update.joined == 0
