"""Scalar heads."""

from __future__ import annotations

import torch

from accord.model.heads import ScalarHead


def test_a_head_starts_at_zero_and_reads_any_type_in_float32() -> None:
    hidden = torch.randn(5, 8, dtype=torch.bfloat16)
    assert torch.equal(ScalarHead(8)(hidden), torch.zeros(5))
    weight = torch.randn(8, dtype=torch.bfloat16)
    scores = ScalarHead(8, weight)(hidden)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, hidden.float() @ weight.float())


def test_a_head_copies_the_weight_it_starts_from() -> None:
    start = torch.ones(1, 4)
    head = ScalarHead(4, start)
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(start, torch.ones(1, 4)) and head.weight.requires_grad
