"""Decoding for models that cannot be packed: prompts of one length go together, with transformers' own cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from accord.model.forward import Role
from accord.model.reading import Virtual, encode, encoder_input, grouped, way_of
from accord.model.roles import Roles
from accord.rollout.drawing import Response, advance
from accord.rollout.protocol import Completion, OnToken, Progress, Request, Sampling


def generate_in_rows(
    roles: Roles,
    role: Role,
    requests: Sequence[Request],
    sampling: Sampling,
    max_sequences: int,
    progress: Progress | None = None,
    on_token: OnToken | None = None,
) -> list[Completion]:
    """One completion for each request, in the same order.

    Requests whose prompts have one length are decoded together, at most `max_sequences` at once; at every step all rows are
    equally long, so nothing is padded. A row that has ended leaves the cache.
    """
    done: dict[int, Completion] = {}
    for _, members in grouped(range(len(requests)), lambda index: len(requests[index].prompt_ids)):
        for first in range(0, len(members), max_sequences):
            chosen = members[first : first + max_sequences]
            rows = [Response.begin(index, requests[index], sampling) for index in chosen]
            stepper = _stepper(role, [list(requests[index].prompt_ids) for index in chosen], roles.device)
            hidden_BH = stepper.prefill()
            while True:
                reasons = advance(role, hidden_BH, rows, sampling, roles.tokenizer, on_token)
                done |= {row.index: row.completed(why) for row, why in zip(rows, reasons, strict=True) if why}
                kept = [place for place, why in enumerate(reasons) if why is None]
                if progress is not None:
                    progress(len(rows) - len(kept), len(rows))
                if not kept:
                    break
                rows = [rows[place] for place in kept]
                hidden_BH = stepper.step(kept, [row.token_ids[-1] for row in rows])
    return [done[index] for index in range(len(requests))]


def _stepper(role: Role, prompts: list[list[int]], device: torch.device) -> _Cached | _Whole | _Decoder:
    trunk = role.trunk
    if way_of(trunk) == "encoder-decoder":
        return _Decoder(trunk, prompts, device, role.prompt)
    if "past_key_values" in inspect.signature(trunk.forward).parameters:
        return _Cached(trunk, prompts, device)
    return _Whole(trunk, prompts, device)


class _Cached:
    """Rows of a causal model; `DynamicCache` holds whatever its layers keep: keys and values, windows, recurrent states."""

    def __init__(self, trunk: nn.Module, prompts: list[list[int]], device: torch.device) -> None:
        self.trunk, self.device = trunk, device
        self.prompts_BL = torch.tensor(prompts, device=device)
        config: Any = trunk.config
        self.cache = DynamicCache(config=config)

    def prefill(self) -> Tensor:
        """State after each prompt, [B, H]."""
        return self._run(self.prompts_BL)

    def step(self, kept: list[int], tokens: list[int]) -> Tensor:
        """State after one more token of each row that goes on, [B, H]; `kept` are the places of these rows before."""
        _keep(self.cache, kept, self.device)
        return self._run(torch.tensor(tokens, device=self.device)[:, None])

    def _run(self, ids_BL: Tensor) -> Tensor:
        states = self.trunk(input_ids=ids_BL, past_key_values=self.cache, use_cache=True).last_hidden_state
        return states[:, -1]


class _Whole:
    """Rows of a model whose trunk takes no such cache: each step reads them from their beginning again."""

    def __init__(self, trunk: nn.Module, prompts: list[list[int]], device: torch.device) -> None:
        self.trunk, self.rows_BL = trunk, torch.tensor(prompts, device=device)

    def prefill(self) -> Tensor:
        """See `_Cached`."""
        states: Tensor = self.trunk(input_ids=self.rows_BL, use_cache=False).last_hidden_state
        return states[:, -1]

    def step(self, kept: list[int], tokens: list[int]) -> Tensor:
        """See `_Cached`."""
        last = torch.tensor(tokens, device=self.rows_BL.device)[:, None]
        self.rows_BL = torch.cat([self.rows_BL[kept], last], dim=1)
        return self.prefill()


class _Decoder:
    """Rows of an encoder-decoder model: prompts are encoded once, and the decoder begins with its start token."""

    def __init__(
        self, model: nn.Module, prompts: list[list[int]], device: torch.device, virtual: Virtual | None
    ) -> None:
        config: Any = model.config
        self.decoder: Any = model.get_decoder()  # type: ignore[operator]
        self.device, self.start = device, config.decoder_start_token_id
        prompts_BL = torch.tensor([encoder_input(prompt, config) for prompt in prompts], device=device)
        self.encoded = encode(model, prompts_BL, virtual)
        prefix = None if virtual is None else virtual.before_decoder(len(prompts))
        fresh = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        self.cache = fresh if prefix is None else prefix

    def prefill(self) -> Tensor:
        """See `_Cached`."""
        return self._run([self.start] * len(self.encoded))

    def step(self, kept: list[int], tokens: list[int]) -> Tensor:
        """See `_Cached`."""
        if len(kept) < len(self.encoded):
            self.encoded = self.encoded[kept]
        _keep(self.cache, kept, self.device)
        return self._run(tokens)

    def _run(self, tokens: list[int]) -> Tensor:
        return self.decoder(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            encoder_hidden_states=self.encoded,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def _keep(cache: DynamicCache | EncoderDecoderCache, kept: list[int], device: torch.device) -> None:
    """Leave only some rows in a cache. `reorder_cache` is the one operation that every kind of layer has."""
    rows: Any = torch.tensor(kept, device=device)
    cache.reorder_cache(rows)
