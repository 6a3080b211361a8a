"""Products of 16-bit numbers where the processor has no instructions for them."""

from __future__ import annotations

import pytest
import torch

from accord.ops import products
from accord.ops.logprobs import token_logprobs
from accord.ops.products import fast_type, input_gradient, linear

CPU, OTHER = torch.device("cpu"), torch.device("meta")
SLOW, FAST = frozenset({"float32"}), frozenset({"float32", "bfloat16", "float16"})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    def has(types: frozenset[str]) -> None:
        monkeypatch.setattr(products, "fast_types", lambda: types)

    return has


def test_a_cpu_without_instructions_computes_in_float32_and_other_devices_in_their_own_type(processor) -> None:
    processor(SLOW)
    assert fast_type(torch.bfloat16, CPU) == fast_type(torch.float16, CPU) == torch.float32
    assert fast_type(torch.bfloat16, OTHER) == torch.bfloat16
    assert fast_type(torch.float64, CPU) == torch.float64
    processor(FAST)
    assert fast_type(torch.bfloat16, CPU) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 1000], ids=["one row", "a rest", "one block"])
def test_blocks_give_the_exact_product_rounded_once(processor, monkeypatch, dtype, with_bias, rows) -> None:
    processor(SLOW)
    monkeypatch.setattr(products, "BLOCK_ELEMENTS", rows * 48)
    torch.manual_seed(0)
    x, weight, grad = torch.randn(7, 48).to(dtype), torch.randn(33, 48).to(dtype), torch.randn(7, 33).to(dtype)
    bias = torch.randn(33).to(dtype) if with_bias else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    step = torch.finfo(dtype).eps
    got = linear(x, weight, bias)
    assert got.dtype == dtype and torch.allclose(got.double(), exact, rtol=step / 2 * 1.01, atol=1e-5)
    back = input_gradient(grad, weight)
    assert back.dtype == dtype
    assert torch.allclose(back.double(), grad.double() @ weight.double(), rtol=step / 2 * 1.01, atol=1e-5)


def test_a_fast_type_is_multiplied_as_it_is(processor) -> None:
    processor(FAST)
    x, weight = torch.randn(7, 48), torch.randn(33, 48)
    assert torch.equal(linear(x, weight, None), torch.nn.functional.linear(x, weight))
    assert torch.equal(input_gradient(x @ weight.T, weight), (x @ weight.T) @ weight)


@pytest.mark.parametrize("learns", [True, False], ids=["output layer learns", "output layer frozen"])
def test_log_probabilities_and_gradients_are_those_of_float32_numbers(processor, learns) -> None:
    processor(SLOW)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 16), torch.randn(40, 16), torch.randint(40, (9,))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        h = hidden.bfloat16().to(dtype).requires_grad_()
        w = weight.bfloat16().to(dtype).requires_grad_(learns)
        logprobs, _ = token_logprobs(h, w, None, targets)
        found.append([logprobs, *torch.autograd.grad(logprobs.sum(), [h, w] if learns else [h])])
    for ours, exact in zip(*found, strict=True):
        assert torch.allclose(ours.float(), exact, rtol=0.02, atol=0.03)
