"""The native engine: samples with the learner's own weights, in the learner's process."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from accord.batch import TokenBatch
from accord.errors import GenerationError
from accord.model.forward import Role, hidden_states
from accord.model.roles import Roles
from accord.rollout.cache import RowCache
from accord.rollout.protocol import Completion, Progress, Request, Sampling
from accord.rollout.sampling import sample_tokens
from accord.types import FinishReason


@dataclass(slots=True)
class _Sequence:
    """A response in the making."""

    index: int
    uniforms: Tensor
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class NativeEngine:
    """Continuous batching over one cache: finished sequences leave at once, waiting prompts take their place.

    Prompts go through the model packed, end to end; sequences in flight lie left-aligned in the cache, one row each, and a
    step computes one token for each. No padding token is ever computed.

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
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        """One completion for each request, in the same order; see `Engine.generate`."""
        for index, request in enumerate(requests):
            if not request.prompt_ids:
                raise GenerationError(f"request {index} has an empty prompt: a model predicts from at least one token")
        with torch.no_grad(), self.roles.use(self.role) as role:
            return _Generation(self, role, requests, sampling, progress).run()


class _Generation:
    """One call of `generate`: the queue of waiting requests, the sequences in flight, the finished ones."""

    def __init__(
        self,
        engine: NativeEngine,
        role: Role,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None,
    ) -> None:
        self.engine, self.role, self.requests, self.sampling, self.progress = engine, role, requests, sampling, progress
        self.device = engine.roles.device
        self.tokenizer: PreTrainedTokenizerBase = engine.roles.tokenizer
        self.waiting = deque(range(len(requests)))
        self.flying: list[_Sequence] = []
        self.finished: list[Completion | None] = [None] * len(requests)
        self.virtual = role.prompt.tokens if role.prompt is not None else 0  # before each prompt, and in the cache
        longest = max((len(request.prompt_ids) for request in requests), default=0) + sampling.max_new_tokens
        longest += self.virtual
        self.cache = RowCache(min(engine.max_sequences, max(len(requests), 1)), longest)

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
        tokens = 0
        while self.waiting and len(self.flying) + len(chosen) < self.cache.rows:
            length = self.virtual + len(self.requests[self.waiting[0]].prompt_ids)
            if chosen and tokens + length > self.engine.prefill_tokens:
                break
            chosen.append(self.waiting.popleft())
            tokens += length
        prompts = [self.requests[index].prompt_ids for index in chosen]
        batch = TokenBatch.from_sequences(prompts, [[False] * len(prompt) for prompt in prompts]).to(self.device)
        self.cache.begin_prefill([self.virtual + len(prompt) for prompt in prompts])
        hidden_TH = hidden_states(self.role, batch, self.cache)
        first = len(self.flying)
        self.flying += [_Sequence(index, self._uniforms(self.requests[index].seed)) for index in chosen]
        self._draw(hidden_TH[batch.cu_seqlens[1:].long() - 1], first)

    def _uniforms(self, seed: int) -> Tensor:
        """All random numbers of a response, from its own seed."""
        return torch.rand(self.sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed))

    def _step(self) -> None:
        """One token for each sequence in flight."""
        last = torch.tensor([[sequence.token_ids[-1]] for sequence in self.flying])
        positions = self.cache.lengths[: self.cache.active, None].clone()
        mask = self.cache.begin_step()
        hidden = self.role.trunk(
            input_ids=last.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=mask.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
        self._draw(hidden, 0)

    def _draw(self, hidden_BH: Tensor, first: int) -> None:
        """Draw the next token of the sequences from number `first` on; those that end leave the batch."""
        assert self.role.output is not None
        weight = self.role.output.weight
        logits = functional.linear(hidden_BH.to(weight.dtype), weight, self.role.output.bias)
        rows = self.flying[first:]
        uniforms = torch.stack([row.uniforms[len(row.token_ids)] for row in rows]).to(logits.device)
        tokens, logprobs = sample_tokens(logits, uniforms, self.sampling)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if logprob != logprob:
                raise GenerationError(
                    f"the model gave NaN for token {len(row.token_ids)} of the response to request {row.index}; "
                    "its weights are not finite: lower train.learning_rate and go on with --resume"
                )
        done = 0
        for position in range(len(self.flying) - 1, first - 1, -1):
            reason = self._end(self.flying[position])
            if reason is not None:
                self._finish(position, reason)
                done += 1
        if self.progress is not None:
            self.progress(done, len(rows))

    def _end(self, row: _Sequence) -> FinishReason | None:
        if row.token_ids[-1] in self.sampling.stop_ids:
            return "stop"
        if self.sampling.stop_texts:
            longest = max(len(text.encode()) for text in self.sampling.stop_texts)  # a token holds a byte or more
            tail = self.tokenizer.decode(row.token_ids[-longest - 4 :])
            if any(text in tail for text in self.sampling.stop_texts):
                return "stop"
        return "length" if len(row.token_ids) >= self.sampling.max_new_tokens else None

    def _finish(self, position: int, reason: FinishReason) -> None:
        row = self.flying[position]
        self.finished[row.index] = Completion(tuple(row.token_ids), tuple(row.logprobs), reason)
        moved = self.cache.drop(position)
        self.flying[position] = self.flying[moved]
        self.flying.pop()
