from __future__ import annotations

import pytest
import torch

from accord.algorithms.pairs import answers, pair_batch
from algorithms.test_reward import PAIRS


def test_the_rejected_answer_lies_behind_the_chosen_one():
    batch = pair_batch(PAIRS)
    assert batch.input_ids_T.tolist() == [1, 2, 3, 1, 4, 5, 6, 5, 7, 8, 9]
    assert batch.pair_N.tolist() == [0, 0, 1, 1] and batch.margins_N.tolist() == [0.0, 0.0, 2.0, 2.0]
    assert pair_batch(PAIRS[:1]).margins_N is None


def test_answers_by_hand_and_nothing_behind_the_mask():
    """Sums over target tokens alone: a NaN at a prompt token reaches neither a value nor a gradient."""
    batch = pair_batch(PAIRS)
    logprobs = torch.tensor([torch.nan, -1.0, -2.0, torch.nan, -4.0, 9.0, -8.0, 9.0, -16.0, -32.0, -64.0])
    logprobs.requires_grad_()
    both = answers(logprobs, batch)
    assert both["chosen_P"].tolist() == [-3.0, -8.0] and both["rejected_P"].tolist() == [-4.0, -112.0]
    assert both["chosen_lengths_P"].tolist() == [2.0, 1.0] and both["rejected_lengths_P"].tolist() == [1.0, 3.0]
    (both["chosen_P"].sum() - 2 * both["rejected_P"].sum()).backward()
    assert logprobs.grad.tolist() == [0.0, 1.0, 1.0, 0.0, -2.0, 0.0, 1.0, 0.0, -2.0, -2.0, -2.0]


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_micro_batches_keep_pairs_whole(limit):
    batch = pair_batch(PAIRS)
    logprobs = torch.arange(11.0)
    pieces = [answers(logprobs[batch.token_index(m)], batch.select(m)) for m in batch.bins(limit)]
    for name, values in answers(logprobs, batch).items():
        assert sorted(torch.cat([piece[name] for piece in pieces]).tolist()) == sorted(values.tolist())
