"""LoRA in the base's type against plain peft, and against the definition."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from accord.model.lora import ThinLinear, use_thin_layers

IN, OUT, R = 12, 20, 4


class Two(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Linear(IN, OUT, bias=True, dtype=dtype),
            nn.Linear(OUT, IN, bias=False, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(dtype: torch.dtype, **options: object) -> tuple[peft.PeftModel, peft.PeftModel]:
    """The same weights with our layers, and with peft's."""
    torch.manual_seed(0)
    base = Two(dtype).requires_grad_(False)
    models = []
    for thin in (True, False):
        config = peft.LoraConfig(
            r=R, lora_alpha=6, target_modules=["first", "second"], init_lora_weights=False, **options
        )
        model = copy.deepcopy(base)
        if thin:
            use_thin_layers(config, model)
        models.append(peft.get_peft_model(model, config))
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1]


def learnt(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return y.detach(), {name: weight.grad for name, weight in learnt(model).items()}, x.grad


def test_float32_equals_peft():
    ours, theirs = pair(torch.float32)
    assert isinstance(ours.base_model.model.first, ThinLinear) and type(theirs.base_model.model.first) is PeftLinear
    x = torch.randn(2, 5, IN)
    y, gradients, grad_x = run(ours, x)
    expected, expected_gradients, expected_x = run(theirs, x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_x, expected_x, rtol=1e-5, atol=1e-6)
    assert len(gradients) == 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_point_where_float32_ones_do():
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(64, IN).bfloat16()
    y, gradients, grad_x = run(ours, x)
    exact = copy.deepcopy(theirs).float()
    expected, expected_gradients, expected_x = run(exact, x.float())
    _, peft_gradients, _ = run(theirs, x)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32 and gradient.is_contiguous()
        ours_off, peft_off = (
            float((g - expected_gradients[name]).norm() / expected_gradients[name].norm())
            for g in (gradient, peft_gradients[name])
        )
        cosine = torch.cosine_similarity(gradient.flatten(), expected_gradients[name].flatten(), dim=0)
        assert cosine > 0.9999 and ours_off < 2**-6 and ours_off < 4 * peft_off + 2**-7
    assert float((y.float() - expected).norm() / expected.norm()) < 2**-7
    assert float((grad_x.float() - expected_x).norm() / expected_x.norm()) < 2**-6


def test_the_adapter_itself_stays_in_float32_and_tiny_steps_add_up():
    ours, _ = pair(torch.bfloat16)
    weight = ours.base_model.model.first.lora_A["default"].weight
    before = weight.detach().clone()
    with torch.no_grad():
        for _ in range(1000):
            weight.add_(1e-6)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight - before, torch.full_like(weight, 1e-3), rtol=2e-2, atol=0)


def test_with_b_at_zero_the_values_are_the_bases_bit_for_bit():
    # At the first step the KL to the reference, which is the base with adapters off, is exactly 0.
    ours, _ = pair(torch.bfloat16)
    for name, weight in learnt(ours).items():
        if "lora_B" in name:
            weight.data.zero_()
    x = torch.randn(33, IN).bfloat16()
    with_adapter = ours(x)
    with torch.no_grad():
        assert torch.equal(with_adapter, ours(x))
        with ours.disable_adapter():
            assert torch.equal(with_adapter, ours(x))


def test_what_is_not_plain_goes_peft_s_way():
    layer = pair(torch.bfloat16, lora_dropout=0.5)[0].base_model.model.first
    x = torch.randn(3, IN).bfloat16()
    assert layer.train()._plain(x) is None and layer.eval()._plain(x) == "default"
    assert layer._plain(x.float()) is None, "inputs of another type than the base"
    layer.get_base_layer().weight.requires_grad_(True)
    assert layer._plain(x) is None, "the base learns"
    assert pair(torch.bfloat16, use_dora=True)[0].base_model.model.first._plain(x) is None
    two = pair(torch.bfloat16)[0]
    two.merge_adapter()
    assert two.base_model.model.first._plain(x) is None
    two.unmerge_adapter()
    two.disable_adapter_layers()
    assert two.base_model.model.first._plain(x) is None


def test_only_the_active_adapter_acts_and_learns():
    ours, _ = pair(torch.float32)
    config = peft.LoraConfig(r=R, target_modules=["first", "second"], init_lora_weights=False)
    use_thin_layers(config, ours)
    ours.add_adapter("other", config)
    x = torch.randn(3, IN)
    first = ours(x)
    ours.set_adapter("other")
    assert not torch.allclose(first, ours(x))
    ours(x).sum().backward()
    grads = {name: weight.grad for name, weight in ours.named_parameters() if "lora_" in name}
    assert all((gradient is not None) == (".other." in name) for name, gradient in grads.items())


def test_a_frozen_input_gets_no_gradient_and_half_an_adapter_learns():
    ours, theirs = pair(torch.float32)
    for model in (ours, theirs):
        model.base_model.model.second.lora_A["default"].weight.requires_grad_(False)
    x = torch.randn(3, IN)
    for model in (ours, theirs):
        model(x).sum().backward()
    for name, weight in learnt(ours).items():
        torch.testing.assert_close(weight.grad, dict(theirs.named_parameters())[name].grad, rtol=1e-5, atol=1e-6)
    assert ours.base_model.model.second.lora_A["default"].weight.grad is None


class Other(nn.Linear):
    """Stands for a quantised layer."""


@pytest.mark.parametrize("kind", [nn.Linear, Other])
def test_models_with_other_linear_layers_keep_peft_s(kind):
    model = Two(torch.float32)
    model.second = kind(OUT, IN)
    config = peft.LoraConfig(r=R, target_modules=["first"])
    use_thin_layers(config, model)
    wrapped = peft.get_peft_model(model, config).base_model.model.first
    assert isinstance(wrapped, ThinLinear) == (kind is nn.Linear)
