from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.ops import attention as module
from accord.ops.attention import causal_attention

D = 8


def inputs(queries: int, keys: int, heads: int, kinds: int, dtype: torch.dtype, width: int = D) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, queries, D), (1, kinds, keys, D), (1, kinds, keys, width)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def naive(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """One query of one head after the other, from the definition, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    group, offset = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    heads = []
    for h in range(query.shape[1]):
        rows = []
        for i in range(query.shape[2]):
            last = offset + i + 1
            first = 0 if window is None else max(0, last - window)
            weights = (scale * key[0, h // group, first:last] @ query[0, h, i]).softmax(0)
            rows.append(weights @ value[0, h // group, first:last])
        heads.append(torch.stack(rows))
    return torch.stack(heads)[None]


CASES = {
    "one token": (1, 1, None),
    "two blocks": (7, 7, None),
    "keys before": (5, 11, None),
    "window": (9, 9, 3),
    "window with keys before": (6, 13, 4),
    "window of one": (5, 5, 1),
    "window wider than all": (5, 7, 20),
}


@pytest.mark.parametrize(("queries", "keys", "window"), CASES.values(), ids=CASES)
@pytest.mark.parametrize(("heads", "kinds"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("block", [1, 4, 192])
@pytest.mark.parametrize("width", [D, D - 3])
def test_values_and_gradients_equal_the_definition(monkeypatch, queries, keys, window, heads, kinds, block, width):
    # In float64, by the function itself, so that nothing but the formula is compared.
    monkeypatch.setattr(module, "QUERIES", block)
    leaves = inputs(queries, keys, heads, kinds, torch.float64, width)
    weight = torch.randn(1, heads, queries, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = naive(*leaves, 0.3, window)
    got = module._CausalAttention.apply(*leaves, 0.3, window, {})
    gradients = torch.autograd.grad((weight * got).sum(), leaves)
    expected_gradients = torch.autograd.grad((weight * expected).sum(), leaves)
    for one, other in zip((got, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys", "window"), [(60, 60, None), (40, 90, None), (70, 70, 16)])
def test_bfloat16_gradients_are_no_worse_than_the_kernels(queries, keys, window):
    leaves = inputs(queries, keys, 6, 2, torch.bfloat16)
    weight = torch.randn(1, 6, queries, D, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = torch.autograd.grad((weight.double() * naive(*leaves, 0.4, window)).sum(), leaves)
    own = torch.autograd.grad(causal_attention(*leaves, scale=0.4, window=window), leaves, weight)
    kernel = torch.autograd.grad(module._kernel(*leaves, 0.4, window, 0.0, {}), leaves, weight)

    def error(got: tuple[Tensor, ...]) -> list[float]:
        return [float((g.double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True)]

    for mine, theirs in zip(error(own), error(kernel), strict=True):
        assert mine < 2**-7 and mine < 1.25 * theirs


def test_who_computes_backward(monkeypatch):
    def kind(dtype: torch.dtype, keys: int) -> str:
        return type(causal_attention(*inputs(1, keys, 2, 2, dtype)).grad_fn).__name__

    assert kind(torch.bfloat16, module.LONGEST) == "_CausalAttentionBackward"
    assert "ScaledDotProduct" in kind(torch.bfloat16, module.LONGEST + 1)
    assert "ScaledDotProduct" in kind(torch.float32, 4)


def test_values_are_the_same_bits_with_and_without_gradients():
    leaves = inputs(50, 50, 6, 2, torch.bfloat16)
    learnt = causal_attention(*leaves)
    with torch.no_grad():
        assert torch.equal(learnt, causal_attention(*leaves))


def test_the_default_scale_is_that_of_the_width():
    leaves = inputs(5, 5, 2, 2, torch.float64)
    torch.testing.assert_close(causal_attention(*leaves), naive(*leaves, D**-0.5, None), rtol=1e-10, atol=1e-12)
