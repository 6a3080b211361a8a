from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from accord.ops import logprobs as module
from accord.ops.logprobs import full_kl, token_logprobs

K, H, V = 13, 6, 11


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(K, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(V, (K,), generator=generator)


def naive(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """One row after the other, from the definition, in float64."""
    logprobs, entropies = [], []
    for row, target in zip(hidden.double(), targets.tolist(), strict=True):
        logits = weight.double() @ row + (0 if bias is None else bias.double())
        p = torch.exp(logits / temperature) / torch.exp(logits / temperature).sum()
        logprobs.append(p[target].log())
        entropies.append(-(p * p.log()).sum())
    return torch.stack(logprobs), torch.stack(entropies)


def test_literals():
    # logits (0, ln 3): p = (1/4, 3/4); entropy = 1/4 ln 4 + 3/4 ln 4/3
    weight, hidden = torch.tensor([[0.0], [math.log(3)]]), torch.ones(2, 1)
    logprobs, entropies = token_logprobs(hidden, weight, None, torch.tensor([0, 1]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.tensor([-1.3862944, -0.28768207]), rtol=1e-6, atol=0)
    torch.testing.assert_close(entropies, torch.tensor([0.5623351, 0.5623351]), rtol=1e-6, atol=0)


def test_temperature_literal():
    # logits (0, 2 ln 3) at temperature 2 are (0, ln 3)
    weight = torch.tensor([[0.0], [2 * math.log(3)]])
    logprobs, _ = token_logprobs(torch.ones(1, 1), weight, None, torch.tensor([1]), temperature=2.0)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(0.75)]), rtol=1e-6, atol=0)


def test_uniform_distribution_has_the_largest_entropy():
    logprobs, entropies = token_logprobs(
        torch.zeros(3, H), torch.randn(V, H), None, torch.tensor([0, 4, 10]), with_entropy=True
    )
    torch.testing.assert_close(logprobs, torch.full((3,), -math.log(V)), rtol=1e-6, atol=0)
    torch.testing.assert_close(entropies, torch.full((3,), math.log(V)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tile", [1, 3 * V, 5 * V + 2, 1 << 23], ids=["one row", "3 rows", "5 rows", "one tile"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", ["logprobs", "entropies", "both"])
def test_values_and_gradients_equal_the_definition(monkeypatch, tile, temperature, with_bias, kind):
    monkeypatch.setattr(module, "TILE_ELEMENTS", tile)
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    some_bias = bias if with_bias else None
    weights_K = torch.linspace(-1, 2, K)  # a different weight for each token, so that rows cannot be mixed up

    def total(logprobs: Tensor, entropies: Tensor) -> Tensor:
        first, second = (weights_K.to(logprobs) * logprobs).sum(), (weights_K.flip(0).to(entropies) * entropies).sum()
        return {"logprobs": first, "entropies": second, "both": first + second}[kind]

    expected = naive(hidden, weight, some_bias, targets, temperature)
    expected_gradients = torch.autograd.grad(total(*expected), leaves)
    got = token_logprobs(hidden, weight, some_bias, targets, temperature=temperature, with_entropy=True)
    gradients = torch.autograd.grad(total(*got), leaves)
    for one, other in zip((*got, *gradients), (*expected, *expected_gradients), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)
    assert got[0].dtype == got[1].dtype == torch.float32


def test_finite_differences_confirm_the_gradient():
    # The op works in float32, so the step is large and the tolerance that of a central difference: error ~ step^2.
    hidden, weight, bias, targets = inputs(5)
    logprobs, entropies = token_logprobs(hidden, weight, bias, targets, temperature=0.8, with_entropy=True)
    (gradient,) = torch.autograd.grad((logprobs + entropies).sum(), [weight])
    for v, h in [(0, 0), (3, 5), (10, 2)]:
        nudge = torch.zeros_like(weight)
        nudge[v, h] = 1e-2
        with torch.no_grad():
            up = sum(token_logprobs(hidden, weight + nudge, bias, targets, temperature=0.8, with_entropy=True))
            down = sum(token_logprobs(hidden, weight - nudge, bias, targets, temperature=0.8, with_entropy=True))
        assert float((up - down).double().sum() / 2e-2) == pytest.approx(float(gradient[v, h]), rel=2e-3, abs=2e-3)


def test_entropy_costs_nothing_unless_asked_for():
    hidden, weight, bias, targets = inputs()
    logprobs, entropies = token_logprobs(hidden, weight, bias, targets)
    assert torch.equal(entropies, torch.zeros(K))
    one = torch.autograd.grad((logprobs + 5 * entropies).sum(), [hidden], retain_graph=True)[0]
    assert torch.equal(one, torch.autograd.grad(logprobs.sum(), [hidden])[0])


def test_entropy_does_not_change_the_log_probabilities():
    hidden, weight, bias, targets = inputs()
    assert torch.equal(
        token_logprobs(hidden, weight, bias, targets)[0],
        token_logprobs(hidden, weight, bias, targets, with_entropy=True)[0],
    )


def test_gradients_only_where_wanted():
    hidden, weight, bias, targets = inputs()
    logprobs, _ = token_logprobs(hidden, weight.detach(), bias.detach(), targets)
    logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is None and bias.grad is None


def test_no_targets_and_one_target():
    hidden, weight, bias, targets = inputs()
    logprobs, entropies = token_logprobs(hidden[:0], weight, bias, targets[:0], with_entropy=True)
    assert logprobs.shape == entropies.shape == (0,)
    (logprobs.sum() + entropies.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and torch.equal(hidden.grad, torch.zeros_like(hidden))
    one, _ = token_logprobs(hidden[:1], weight, bias, targets[:1])
    torch.testing.assert_close(one.double(), naive(hidden[:1], weight, bias, targets[:1], 1.0)[0], rtol=1e-5, atol=1e-5)


def test_huge_logits_overflow_nothing():
    weight = torch.tensor([[1e4], [-1e4]])
    logprobs, entropies = token_logprobs(torch.ones(2, 1), weight, None, torch.tensor([0, 1]), with_entropy=True)
    assert logprobs.tolist() == [0.0, -2e4] and entropies.tolist() == [0.0, 0.0]


def test_bfloat16_weights_give_the_log_softmax_of_bfloat16_logits_in_float32():
    hidden, weight, bias, targets = inputs(1, torch.bfloat16)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = logits.double().log_softmax(-1)[torch.arange(K), targets]
    got, _ = token_logprobs(hidden, weight, bias, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_are_as_good_as_the_type_allows(monkeypatch):
    monkeypatch.setattr(module, "TILE_ELEMENTS", V)
    hidden, weight, bias, targets = inputs(1, torch.bfloat16)
    leaves = [hidden, weight, bias]
    expected = torch.autograd.grad(naive(hidden, weight, bias, targets, 1.0)[0].sum(), leaves)
    gradients = torch.autograd.grad(token_logprobs(hidden, weight, bias, targets)[0].sum(), leaves)
    for one, other, leaf in zip(gradients, expected, leaves, strict=True):
        assert one.dtype == leaf.dtype
        assert (one.double() - other.double()).norm() / other.double().norm() < 2**-7  # bfloat16 has 8 bits


def test_the_weight_gradient_adds_up_in_float32_over_many_tiles(monkeypatch):
    # 2,000 equal rows in 2,000 tiles. A sum kept in bfloat16 would stop growing at 256 times the summand.
    monkeypatch.setattr(module, "TILE_ELEMENTS", 1)
    weight, bias = torch.zeros(4, 1, dtype=torch.bfloat16).requires_grad_(), torch.zeros(4).bfloat16().requires_grad_()
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    token_logprobs(hidden, weight, bias, torch.zeros(2000, dtype=torch.long))[0].sum().backward()
    # d/d logit = 1[v = 0] - 1/4, times 2,000 rows
    assert weight.grad.flatten().tolist() == [1504.0, -500.0, -500.0, -500.0]  # 1500 rounded to 8 bits is 1504
    assert bias.grad.tolist() == [1504.0, -500.0, -500.0, -500.0]


def test_hidden_states_of_another_type_than_the_weights():
    hidden, weight, bias, targets = inputs(2)
    weight, bias = weight.detach().bfloat16(), bias.detach().bfloat16()
    got, _ = token_logprobs(hidden, weight, bias, targets)
    assert torch.equal(got, token_logprobs(hidden.detach().bfloat16(), weight, bias, targets)[0])
    got.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        self.operations += 1
        return result


@pytest.mark.parametrize("with_entropy", [False, True])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_whole(monkeypatch, with_entropy):
    tokens, vocabulary, width = 512, 50_257, 4
    monkeypatch.setattr(module, "TILE_ELEMENTS", 8 * vocabulary)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with LargestTensor() as largest:
        logprobs, entropies = token_logprobs(
            hidden, weight, None, torch.arange(tokens), temperature=0.9, with_entropy=with_entropy
        )
        in_forward = largest.operations
        (logprobs.sum() + entropies.sum()).backward()
        with torch.no_grad():
            full_kl(hidden, weight, None, hidden, weight, None)
    assert largest.operations > in_forward > tokens // 8, "both passes were watched"
    assert largest.elements == 8 * vocabulary < tokens * vocabulary // 60


def test_nothing_larger_than_the_inputs_waits_for_backward():
    hidden, weight, bias, targets = inputs()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        token_logprobs(hidden, weight, bias, targets, with_entropy=True)
    assert saved and max(tensor.numel() for tensor in saved) == max(K * H, V * H) < K * V


@pytest.mark.parametrize("tile", [1, 4 * V, 1 << 23])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_full_kl_equals_the_sum_over_the_vocabulary(monkeypatch, tile, temperature):
    monkeypatch.setattr(module, "TILE_ELEMENTS", tile)
    hidden, weight, bias, _ = inputs(0)
    ref_hidden, ref_weight, _, _ = inputs(1)
    got = full_kl(hidden, weight, bias, ref_hidden, ref_weight, None, temperature=temperature)
    for k in range(K):
        p = ((weight.double() @ hidden[k].double() + bias.double()) / temperature).softmax(0).tolist()
        q = ((ref_weight.double() @ ref_hidden[k].double()) / temperature).softmax(0).tolist()
        expected = sum(p[v] * math.log(p[v] / q[v]) for v in range(V))
        assert float(got[k]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not got.requires_grad and bool((got > 0).all())


def test_full_kl_literal():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p || q) = 3/4 ln 3/2 + 1/4 ln 1/2; the other way it is 1/2 ln 2/3 + 1/2 ln 2
    p, q = torch.tensor([[math.log(3)], [0.0]]), torch.zeros(2, 1)
    one = torch.ones(1, 1)
    assert float(full_kl(one, p, None, one, q, None)) == pytest.approx(0.13081204, rel=1e-6)
    assert float(full_kl(one, q, None, one, p, None)) == pytest.approx(0.14384104, rel=1e-6)


def test_full_kl_of_a_model_to_itself_is_exactly_0():
    hidden, weight, bias, _ = inputs(4)
    assert torch.equal(full_kl(hidden, weight, bias, hidden, weight, bias, temperature=0.6), torch.zeros(K))


# --- a frozen output layer: the gradient is computed in the forward pass ------------------------------------------------


@pytest.mark.parametrize("tile", [1, 3 * V, 1 << 23], ids=["one row", "3 rows", "one tile"])
@pytest.mark.parametrize("block", [1, 2 * V, 1 << 18], ids=["blocks of a row", "2 rows", "whole tiles"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", ["logprobs", "entropies", "both"])
def test_a_frozen_layer_gives_the_same_values_and_gradient(monkeypatch, tile, block, temperature, with_bias, kind):
    monkeypatch.setattr(module, "TILE_ELEMENTS", tile)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    hidden, weight, bias, targets = inputs(3)
    frozen_bias = bias.detach() if with_bias else None
    weights_K = torch.linspace(-1, 2, K)

    def total(logprobs: Tensor, entropies: Tensor) -> Tensor:
        first, second = (weights_K.to(logprobs) * logprobs).sum(), (weights_K.flip(0).to(entropies) * entropies).sum()
        return {"logprobs": first, "entropies": second, "both": first + second}[kind]

    expected = naive(hidden, weight.detach(), frozen_bias, targets, temperature)
    (expected_gradient,) = torch.autograd.grad(total(*expected), [hidden])
    got = token_logprobs(
        hidden, weight.detach(), frozen_bias, targets, temperature=temperature, with_entropy=kind != "logprobs"
    )
    (gradient,) = torch.autograd.grad(total(*got), [hidden])
    torch.testing.assert_close(gradient.double(), expected_gradient.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=1e-5)


def test_values_are_the_same_bits_whether_gradients_follow_or_not():
    # At the first step the ratio of old and new log-probabilities is exactly 1, and the KL to the reference exactly 0.
    hidden, weight, bias, targets = inputs(6, torch.bfloat16)
    learnt, _ = token_logprobs(hidden, weight, bias, targets, temperature=0.9)
    frozen, _ = token_logprobs(hidden, weight.detach(), bias.detach(), targets, temperature=0.9, with_entropy=True)
    with torch.no_grad():
        without, _ = token_logprobs(hidden, weight, bias, targets, temperature=0.9)
    assert torch.equal(learnt, frozen) and torch.equal(learnt, without)


def test_a_frozen_layer_gives_bfloat16_gradients_as_good_as_the_type_allows_at_any_certainty():
    # Where the model is nearly sure of the target, onehot - p is tiny: it must be rounded after the difference, not before.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, H, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(V, H, generator=generator).bfloat16()
    targets = torch.arange(K) % V
    bias = torch.zeros(V).bfloat16()
    bias[targets[0]] = 12.0
    targets[:] = targets[0]
    (expected,) = torch.autograd.grad(naive(hidden, weight, bias, targets, 1.0)[0].sum(), [hidden])
    (gradient,) = torch.autograd.grad(token_logprobs(hidden, weight, bias, targets)[0].sum(), [hidden])
    norms = (gradient.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    assert float(expected.double().norm(dim=-1).max()) < 0.2, "the model is sure"
    # Logits are rounded to bfloat16 (as everywhere): log p moves by up to 2^-9 x 16, and with it 1 - p.
    assert float(norms.max()) < 0.1


def test_backward_of_a_frozen_layer_computes_no_logits_again(monkeypatch):
    hidden, weight, _, targets = inputs()
    linear = module.functional.linear
    calls = []
    monkeypatch.setattr(module.functional, "linear", lambda *a: (calls.append(1), linear(*a))[1])
    logprobs, _ = token_logprobs(hidden, weight.detach(), None, targets)
    assert len(calls) == 1
    logprobs.sum().backward()
    assert len(calls) == 1
    token_logprobs(hidden, weight, None, targets)[0].sum().backward()
    assert len(calls) == 3, "a layer that learns is computed again"


def test_without_gradients_no_slopes_are_computed(monkeypatch):
    hidden, weight, _, targets = inputs()
    with LargestTensor() as with_gradients:
        token_logprobs(hidden, weight.detach(), None, targets)
    with torch.no_grad(), LargestTensor() as without:
        token_logprobs(hidden, weight.detach(), None, targets)
    assert without.operations < with_gradients.operations
