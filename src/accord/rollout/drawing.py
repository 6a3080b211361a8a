"""Responses in the making: what they drew so far, the next token, and when they end. The same for every way of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from accord.errors import GenerationError
from accord.model.forward import Role, for_output
from accord.rollout.lookup import Lookup, Speculation
from accord.rollout.protocol import Completion, OnToken, Request, Sampling
from accord.rollout.sampling import sample_tokens
from accord.types import FinishReason


@dataclass(slots=True)
class Response:
    """A response in the making."""

    index: int
    """Of its request."""
    uniforms: Tensor
    """All its random numbers, from its own seed: what else is in the batch changes nothing."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    lookup: Lookup | None = None
    """Where drafts come from."""

    @classmethod
    def begin(
        cls, index: int, request: Request, sampling: Sampling, speculation: Speculation | None = None
    ) -> Response:
        """An empty response to a request."""
        generator = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(sampling.max_new_tokens, generator=generator)
        lookup = None if speculation is None else Lookup(request.prompt_ids, speculation.ngram)
        return cls(index, uniforms, lookup=lookup)

    def take(self, token: int, logprob: float) -> None:
        """One more token.

        Raises:
            GenerationError: its log-probability is NaN.
        """
        if logprob != logprob:
            raise GenerationError(
                f"the model gave NaN for token {len(self.token_ids) + 1} of the response to request {self.index}; "
                "its weights are not finite: lower train.learning_rate and go on with --resume"
            )
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if self.lookup is not None:
            self.lookup.append(token)

    def draft(self, speculation: Speculation, sampling: Sampling) -> list[int]:
        """What may come next, leaving room for the token that is drawn after it."""
        room = sampling.max_new_tokens - len(self.token_ids) - 1
        return [] if self.lookup is None else self.lookup.draft(min(speculation.tokens, room))

    def completed(self, reason: FinishReason) -> Completion:
        """What the engine gives back."""
        return Completion(tuple(self.token_ids), tuple(self.logprobs), reason)


def advance(
    role: Role,
    hidden_NH: Tensor,
    responses: Sequence[Response],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    on_token: OnToken | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
) -> list[FinishReason | None]:
    """Draw the next token of each response, tell `on_token` of it, and say why the response ends there, or `None`.

    With drafts, several tokens: at each place a token is drawn from the model's own distribution with that place's own random
    number, and as long as it is the one that the draft has there, the next place is valid too. So the tokens are those that
    would have been drawn one by one, whatever the drafts say.

    Args:
        role: whose output layer gives the logits.
        hidden_NH: hidden states, for each response that of its last token and those of its draft.
        responses: in the making; they grow.
        sampling, tokenizer: see `ending`.
        on_token: told of each token.
        drafts: one for each response, empty where there is none.

    Raises:
        GenerationError: the model gave NaN.
    """
    drafts = drafts or [()] * len(responses)
    uniforms_N = torch.cat(
        [row.uniforms[len(row.token_ids) :][: len(draft) + 1] for row, draft in zip(responses, drafts, strict=True)]
    )
    tokens_N, logprobs_N = _draw(role, hidden_NH, uniforms_N, sampling)
    reasons: list[FinishReason | None] = []
    first = 0
    for row, draft in zip(responses, drafts, strict=True):
        reason = None
        for place in range(len(draft) + 1):
            row.take(tokens_N[first + place], logprobs_N[first + place])
            if on_token is not None:
                on_token(row.index, row.token_ids[-1])
            reason = ending(row, sampling, tokenizer)
            if reason is not None or place == len(draft) or row.token_ids[-1] != draft[place]:
                break
        reasons.append(reason)
        first += len(draft) + 1
    return reasons


def _draw(role: Role, hidden_NH: Tensor, uniforms_N: Tensor, sampling: Sampling) -> tuple[list[int], list[float]]:
    assert role.output is not None
    weight = role.output.weight
    logits_NV = functional.linear(for_output(role, hidden_NH).to(weight.dtype), weight, role.output.bias)
    tokens_N, logprobs_N = sample_tokens(logits_NV, uniforms_N.to(logits_NV.device), sampling)
    return tokens_N.tolist(), logprobs_N.tolist()


def ending(row: Response, sampling: Sampling, tokenizer: PreTrainedTokenizerBase) -> FinishReason | None:
    """Why a response ends with the token drawn last, or `None`."""
    if row.token_ids[-1] in sampling.stop_ids:
        return "stop"
    if sampling.stop_texts:
        longest = max(len(text.encode()) for text in sampling.stop_texts)  # a token holds a byte or more
        tail = tokenizer.decode(row.token_ids[-longest - 4 :])
        if any(text in tail for text in sampling.stop_texts):
            return "stop"
    return "length" if len(row.token_ids) >= sampling.max_new_tokens else None
