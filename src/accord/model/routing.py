"""What the routers of a mixture-of-experts model decide, seen while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from accord.errors import ConfigError


@dataclass
class Tally:
    """Decisions of all routers over the tokens of some forward passes; those of E experts."""

    top_k: int
    """Experts that a token goes to in each layer."""
    probabilities_E: Tensor | None = None
    """Softmax of the routers' logits, summed over tokens and layers, float32; with its gradient."""
    choices_E: Tensor | None = None
    """How often each expert was among the `top_k` likeliest, float32."""
    routed: int = 0
    """Tokens times layers."""

    def add(self, logits_UE: Tensor, uses_U: Tensor | None = None) -> None:
        """Take in one layer's logits for U tokens, each as often as it is used; `None`: once."""
        probabilities_UE = logits_UE.float().softmax(-1)
        uses_U = torch.ones_like(logits_UE[:, 0], dtype=torch.long) if uses_U is None else uses_U
        chosen = probabilities_UE.detach().topk(self.top_k, dim=-1).indices.flatten()
        counts = uses_U.repeat_interleave(self.top_k).float()
        choices_E = torch.bincount(chosen, counts, minlength=logits_UE.shape[-1])
        sum_E = (probabilities_UE * uses_U[:, None]).sum(0)
        self.probabilities_E = sum_E if self.probabilities_E is None else self.probabilities_E + sum_E
        self.choices_E = choices_E if self.choices_E is None else self.choices_E + choices_E
        self.routed += int(uses_U.sum())


class Routers:
    """The routers of a model, found by what transformers itself records as `router_logits`.

    They are found by name where transformers names them, so that a router inside an adapter's wrapper is seen with the
    adapter's part.
    """

    def __init__(self, trunk: nn.Module, coef: float) -> None:
        self.coef = coef
        self.places = _routers(trunk)
        config: Any = trunk.config
        self.top_k = int(config.num_experts_per_tok)

    @contextmanager
    def watched(self, uses_U: Tensor | None = None) -> Iterator[Tally]:
        """Count what the routers decide inside; the tally is filled at the end.

        Args:
            uses_U: of the tokens that go through the model, how often each counts; `None`: once.
        """
        tally, seen = Tally(self.top_k), list[Tensor]()

        def take(index: int) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                # No arithmetic here: a layer that is computed again in backward has no hook by then, and must do the same.
                seen.append(output[index] if isinstance(output, tuple) else output)

            return hook

        handles = [module.register_forward_hook(take(index)) for module, index in self.places]
        try:
            yield tally
        finally:
            for handle in handles:
                handle.remove()
        for logits in seen:
            tally.add(logits.flatten(0, -2), uses_U)


def routers_of(model: PreTrainedModel, trunk: nn.Module, coef: float | None) -> Routers | None:
    """The routers whose balance a run should keep, or `None`: a model without any, or a coefficient of 0.

    Args:
        model: the base.
        trunk: see `trunk_of`.
        coef: of the recipe; `None` takes `router_aux_loss_coef` of the model's config.

    Raises:
        ConfigError: a coefficient is given, but the model's experts are not balanced by this loss, or it has none.
    """
    config: Any = model.config.get_text_config()
    own = getattr(config, "router_aux_loss_coef", None)
    chosen = own if coef is None else coef
    known = own is not None and getattr(config, "num_experts_per_tok", None) and _routers(trunk)
    if coef and not known:
        raise ConfigError(
            f"model.router_aux_coef: {coef} balances the experts of a model, and a {type(model).__name__} has no routers "
            "with such a loss (router_aux_loss_coef in its config); leave it out"
        )
    return Routers(trunk, float(chosen)) if chosen and known else None


def _routers(trunk: nn.Module) -> list[tuple[nn.Module, int]]:
    """Router modules, and which of their outputs holds the logits."""
    recorder: Any = (getattr(trunk, "_can_record_outputs", None) or {}).get("router_logits")
    if recorder is None or isinstance(recorder, list):
        return []
    if recorder.layer_name is not None:
        return [
            (m, recorder.index) for name, m in trunk.named_modules() if f".{name}".endswith(f".{recorder.layer_name}")
        ]
    return [(m, recorder.index) for m in trunk.modules() if isinstance(m, recorder.target_class)]
