"""The native engine: samples with the learner's own weights, in the learner's process."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from accord.batch import TokenBatch
from accord.errors import GenerationError
from accord.model.forward import Role, trunk_states
from accord.model.reading import way_of
from accord.model.roles import Roles
from accord.rollout.cache import RowCache
from accord.rollout.drawing import Response, draw, ending
from accord.rollout.protocol import Completion, OnToken, Progress, Request, Sampling
from accord.rollout.rows import generate_in_rows
from accord.types import FinishReason


class NativeEngine:
    """Continuous batching over one cache: finished sequences leave at once, waiting prompts take their place.

    Prompts go through the model packed, end to end; sequences in flight lie left-aligned in the cache, one row each, and a
    step computes one token for each. No padding token is ever computed. Models that cannot be packed are decoded in rows of
    one length instead, see `generate_in_rows`.

    Args:
        roles: the models; `role` names the one that samples.
        max_sequences: rows of the cache.
        prefill_tokens: most prompt tokens in one forward pass.
        role: usually the policy.
    """

    def __init__(self, roles: Roles, max_sequences: int, prefill_tokens: int = 4096, role: str = "policy") -> None:
        self.roles = roles
        self.role = role
        self.max_sequences = max_sequences
        self.prefill_tokens = prefill_tokens
        self._version = 0

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
        with torch.no_grad(), self.roles.use(self.role) as role:
            if way_of(role.trunk) != "packed":
                return generate_in_rows(self.roles, role, requests, sampling, self.max_sequences, progress, on_token)
            return _Generation(self, role, requests, sampling, progress, on_token).run()


class _Generation:
    """One call of `generate`: the queue of waiting requests, the sequences in flight, the finished ones."""

    def __init__(
        self,
        engine: NativeEngine,
        role: Role,
        requests: Sequence[Request],
        sampling: Sampling,
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
        longest = max((len(request.prompt_ids) for request in requests), default=0) + sampling.max_new_tokens
        longest += self.virtual
        self.cache = RowCache(min(engine.max_sequences, max(len(requests), 1)), longest, self.device)

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
        """Run waiting prompts through the model and draw their first tokens."""
        chosen: list[int] = []
        prompts: dict[tuple[int, ...], int] = {}  # each is computed once, however many rows begin with it
        tokens = 0
        while self.waiting and len(self.flying) + len(chosen) < self.cache.rows:
            prompt = self.requests[self.waiting[0]].prompt_ids
            if prompt not in prompts:
                length = self.virtual + len(prompt)
                if chosen and tokens + length > self.engine.prefill_tokens:
                    break
                prompts[prompt] = len(prompts)
                tokens += length
            chosen.append(self.waiting.popleft())
        batch = TokenBatch.from_sequences(prompts, [[False] * len(prompt) for prompt in prompts]).to(self.device)
        owners = [prompts[self.requests[index].prompt_ids] for index in chosen]
        self.cache.begin_prefill([self.virtual + len(prompt) for prompt in prompts], owners)
        hidden_TH = trunk_states(self.role, batch, self.cache)
        first = len(self.flying)
        self.flying += [Response.begin(index, self.requests[index], self.sampling) for index in chosen]
        last_B = (batch.cu_seqlens[1:].long() - 1)[torch.tensor(owners, device=self.device)]
        self._draw(hidden_TH[last_B], first)

    def _step(self) -> None:
        """One token for each sequence in flight."""
        last = torch.tensor([[sequence.token_ids[-1] for sequence in self.flying]])
        positions = self.cache.lengths[None, : self.cache.active].clone()
        step = self.cache.begin_step()
        hidden_BH = self.role.trunk(
            input_ids=last.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            step=step,
        ).last_hidden_state[0]
        self._draw(hidden_BH, 0)

    def _draw(self, hidden_BH: Tensor, first: int) -> None:
        """Draw the next token of the sequences from number `first` on; those that end leave the batch."""
        rows = self.flying[first:]
        draw(self.role, hidden_BH, rows, self.sampling, self.on_token)
        done = 0
        for position in range(len(self.flying) - 1, first - 1, -1):
            reason = ending(self.flying[position], self.sampling, self.tokenizer)
            if reason is not None:
                self._finish(position, reason)
                done += 1
        if self.progress is not None:
            self.progress(done, len(rows))

    def _finish(self, position: int, reason: FinishReason) -> None:
        row = self.flying[position]
        self.finished[row.index] = row.completed(reason)
        moved = self.cache.drop(position)
        self.flying[position] = self.flying[moved]
        self.flying.pop()
