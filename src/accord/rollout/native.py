"""The native engine: samples with the learner's own weights, in the learner's process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from accord.batch import TokenBatch
from accord.errors import GenerationError, ModelError
from accord.model.device import memory_bytes
from accord.model.folding import folded_bytes
from accord.model.forward import Role, trunk_states
from accord.model.reading import way_of
from accord.model.roles import Roles
from accord.rollout.budget import choose_rows
from accord.rollout.cache import RowCache
from accord.rollout.drawing import Response, advance
from accord.rollout.lookup import Speculation
from accord.rollout.protocol import Completion, OnToken, Progress, Request, Sampling
from accord.rollout.rows import generate_in_rows
from accord.types import FinishReason

FOLDING_PAYS = 64
"""Steps from which on folding an adapter in takes less time than it saves: it costs about 14 steps and saves a fourth of each
(docs/rollouts.md)."""
FOLDED_SHARE = 8
"""The copy of the layers that are folded takes at most one part in so many of the device's memory."""


class NativeEngine:
    """Continuous batching over one cache: finished sequences leave at once, waiting prompts take their place.

    Prompts go through the model packed, end to end; sequences in flight lie left-aligned in the cache, one row each, and a
    step computes one token for each. No padding token is ever computed. Models that cannot be packed are decoded in rows of
    one length instead, see `generate_in_rows`.

    Args:
        roles: the models; `role` names the one that samples.
        max_sequences: rows of the cache; `None` = as many as pay and fit into memory, see `choose_rows`.
        prefill_tokens: most prompt tokens in one forward pass.
        role: usually the policy.
        merge: fold the role's adapter into the base while sampling; `None` = where it pays, see `_folds`.
        speculation: how drafts are made; `None` = one token at a time.

    Raises:
        ModelError: `merge` is true and the adapter cannot be folded in.
    """

    def __init__(
        self,
        roles: Roles,
        max_sequences: int | None,
        prefill_tokens: int = 4096,
        role: str = "policy",
        *,
        merge: bool | None = False,
        speculation: Speculation | None = None,
    ) -> None:
        self.roles = roles
        self.role = role
        self.merge = merge
        self.speculation = speculation
        self.drafted = self.accepted = 0
        """Tokens of drafts so far, and how many of them were right."""
        self.max_sequences = max_sequences
        if merge and roles.foldable(role) is None:
            raise ModelError(
                "rollout.merge_adapter: true needs a plain LoRA adapter on linear layers of float32 or bfloat16 that are not "
                "quantised; leave it at auto"
            )
        self.prefill_tokens = prefill_tokens
        self._version = 0

    def take_drafts(self) -> tuple[int, int] | None:
        """Tokens of drafts since it was last asked, and how many of them were right; `None` without speculation."""
        counts, self.drafted, self.accepted = (self.drafted, self.accepted), 0, 0
        return counts if self.speculation is not None else None

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""
        return self._version

    def load(self, weights: Mapping[str, Any] | None, version: int) -> None:
        """The weights are the learner's own, so only their version is noted."""
        assert weights is None, "the native engine shares the learner's weights"
        self._version = version

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """One completion for each request, in the same order; see `Engine.generate`."""
        for index, request in enumerate(requests):
            if not request.prompt_ids:
                raise GenerationError(f"request {index} has an empty prompt: a model predicts from at least one token")
        if not requests:
            return []
        with torch.no_grad(), self.roles.use(self.role) as role:
            columns = max(len(request.prompt_ids) for request in requests) + sampling.max_new_tokens
            columns += 0 if role.prompt is None else role.prompt.tokens
            rows = self.max_sequences or choose_rows(role.trunk, columns, memory_bytes(self.roles.device))
            rows = min(rows, len(requests))
            rounds = math.ceil(len(requests) / rows) * sampling.max_new_tokens
            with self.roles.folded(self.role, self._version) if self._folds(rounds) else nullcontext():
                if way_of(role.trunk) != "packed":
                    return generate_in_rows(self.roles, role, requests, sampling, rows, progress, on_token)
                return _Generation(
                    self, role, requests, sampling, RowCache(rows, columns, self.roles.device), progress, on_token
                ).run()

    def _folds(self, steps: int) -> bool:
        """Whether the adapter is folded in for about so many steps."""
        if self.merge is not None:
            return self.merge
        layers = self.roles.foldable(self.role) if steps >= FOLDING_PAYS else None
        return layers is not None and folded_bytes(layers) <= memory_bytes(self.roles.device) // FOLDED_SHARE


class _Generation:
    """One call of `generate`: the queue of waiting requests, the sequences in flight, the finished ones."""

    def __init__(
        self,
        engine: NativeEngine,
        role: Role,
        requests: Sequence[Request],
        sampling: Sampling,
        cache: RowCache,
        progress: Progress | None,
        on_token: OnToken | None,
    ) -> None:
        self.engine, self.role, self.requests, self.sampling = engine, role, requests, sampling
        self.progress, self.on_token = progress, on_token
        self.device = engine.roles.device
        self.tokenizer: PreTrainedTokenizerBase = engine.roles.tokenizer
        self.waiting = deque(range(len(requests)))
        self.flying: list[Response] = []
        self.finished: list[Completion | None] = [None] * len(requests)
        self.virtual = role.prompt.tokens if role.prompt is not None else 0  # before each prompt, and in the cache
        self.cache = cache
        self.latest: tuple[tuple[int, ...], Tensor] | None = None
        """The prompt that was computed last, if more of its samples wait for a row, and the state behind it, [1, H]."""

    def run(self) -> list[Completion]:
        while self.waiting or self.flying:
            if self.waiting and self._room_pays():
                self._admit()
            else:
                self._step()
        done = [completion for completion in self.finished if completion is not None]
        assert len(done) == len(self.requests)
        return done

    def _room_pays(self) -> bool:
        """A forward pass over new prompts pays once an eighth of the rows is free (or nothing else is left to do)."""
        free = self.cache.rows - len(self.flying)
        return free >= min(max(1, self.cache.rows // 8), len(self.waiting))

    def _admit(self) -> None:
        """Waiting sequences begin: their prompts are put into rows, and their first tokens are drawn."""
        first = len(self.flying)
        self._advance(torch.cat(self._repeat_prompt() + self._compute_prompts()), first)

    def _repeat_prompt(self) -> list[Tensor]:
        """More samples of the prompt that was computed last begin with its keys and values; gives the states behind it, one for
        each new row, [B, H]."""
        if self.latest is None:
            return []
        prompt, state_1H = self.latest
        begun = len(self.flying)
        while self._room() and self.requests[self.waiting[0]].prompt_ids == prompt:
            self._begin(self.waiting.popleft())
        count = len(self.flying) - begun
        self.cache.repeat(count)
        return [state_1H.expand(count, -1)]

    def _compute_prompts(self) -> list[Tensor]:
        """Run waiting prompts through the model, what they begin with alike once; gives the states behind them as well."""
        chosen: list[int] = []
        prompts: dict[tuple[int, ...], int] = {}  # each is computed once, however many rows begin with it
        tokens = 0
        while self._room():
            prompt = self.requests[self.waiting[0]].prompt_ids
            if prompt not in prompts:
                length = self.virtual + len(prompt)
                if chosen and tokens + length > self.engine.prefill_tokens:
                    break
                prompts[prompt] = len(prompts)
                tokens += length
            chosen.append(self.waiting.popleft())
            self._begin(chosen[-1])
        if not chosen:
            return []
        batch = TokenBatch.from_sequences(list(prompts), [[False] * len(prompt) for prompt in prompts]).to(self.device)
        owners = [prompts[self.requests[index].prompt_ids] for index in chosen]
        self.cache.begin_prefill([self.virtual + len(prompt) for prompt in prompts], owners)
        hidden_TH = trunk_states(self.role, batch, self.cache)
        last_B = (batch.cu_seqlens[1:].long() - 1)[torch.tensor(owners, device=self.device)]
        states_BH = hidden_TH[last_B]
        prompt = self.requests[chosen[-1]].prompt_ids
        self.latest = None
        if self.waiting and self.requests[self.waiting[0]].prompt_ids == prompt:
            self.latest = prompt, states_BH[-1:]
            self.cache.keep(self.virtual + len(prompt))
        return [states_BH]

    def _room(self) -> bool:
        """Whether a sequence waits and a row is free."""
        return bool(self.waiting) and len(self.flying) < self.cache.rows

    def _begin(self, index: int) -> None:
        self.flying.append(Response.begin(index, self.requests[index], self.sampling, self.engine.speculation))

    def _step(self) -> None:
        """One token for each sequence in flight; with drafts, as many as are right and one more."""
        speculation = self.engine.speculation
        drafts = None if speculation is None else [row.draft(speculation, self.sampling) for row in self.flying]
        if drafts is None or not any(drafts):
            drafts, tokens = None, [row.token_ids[-1] for row in self.flying]
            positions_N = self.cache.lengths[: self.cache.active].clone()
        else:
            tokens = [
                token for row, draft in zip(self.flying, drafts, strict=True) for token in (row.token_ids[-1], *draft)
            ]
            starts = self.cache.lengths[: self.cache.active].tolist()
            positions_N = torch.cat(
                [torch.arange(start, start + len(draft) + 1) for start, draft in zip(starts, drafts, strict=True)]
            )
        step = self.cache.begin_step(None if drafts is None else [len(draft) + 1 for draft in drafts])
        hidden_NH = self.role.trunk(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=positions_N[None].to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            step=step,
        ).last_hidden_state[0]
        self._advance(hidden_NH, 0, drafts)

    def _advance(self, hidden_NH: Tensor, first: int, drafts: list[list[int]] | None = None) -> None:
        """Draw the next tokens of the sequences from number `first` on; those that end leave the batch."""
        rows = self.flying[first:]
        before = [len(row.token_ids) for row in rows]
        reasons = advance(self.role, hidden_NH, rows, self.sampling, self.tokenizer, self.on_token, drafts)
        taken = [len(row.token_ids) - length for row, length in zip(rows, before, strict=True)]
        if drafts is not None:
            self.cache.take_back([len(draft) + 1 - count for draft, count in zip(drafts, taken, strict=True)])
            self.engine.drafted += sum(len(draft) for draft in drafts)
            self.engine.accepted += sum(taken) - len(taken)
        for place in range(len(rows) - 1, -1, -1):
            reason = reasons[place]
            if reason is not None:
                self._finish(first + place, reason)
        if self.progress is not None:
            self.progress(sum(reason is not None for reason in reasons), sum(taken))

    def _finish(self, position: int, reason: FinishReason) -> None:
        row = self.flying[position]
        self.finished[row.index] = row.completed(reason)
        moved = self.cache.drop(position)
        self.flying[position] = self.flying[moved]
        self.flying.pop()
