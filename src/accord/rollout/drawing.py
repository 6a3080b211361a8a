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

    @classmethod
    def begin(cls, index: int, request: Request, sampling: Sampling) -> Response:
        """An empty response to a request."""
        generator = torch.Generator().manual_seed(request.seed)
        return cls(index, torch.rand(sampling.max_new_tokens, generator=generator))

    def completed(self, reason: FinishReason) -> Completion:
        """What the engine gives back."""
        return Completion(tuple(self.token_ids), tuple(self.logprobs), reason)


def draw(
    role: Role,
    hidden_BH: Tensor,
    responses: Sequence[Response],
    sampling: Sampling,
    on_token: OnToken | None = None,
) -> None:
    """Draw the next token of each response from the hidden state of its row, and tell `on_token` of it.

    Raises:
        GenerationError: the model gave NaN.
    """
    assert role.output is not None
    weight = role.output.weight
    logits = functional.linear(for_output(role, hidden_BH).to(weight.dtype), weight, role.output.bias)
    uniforms = torch.stack([row.uniforms[len(row.token_ids)] for row in responses]).to(logits.device)
    tokens, logprobs = sample_tokens(logits, uniforms, sampling)
    for row, token, logprob in zip(responses, tokens.tolist(), logprobs.tolist(), strict=True):
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        if logprob != logprob:
            raise GenerationError(
                f"the model gave NaN for token {len(row.token_ids)} of the response to request {row.index}; "
                "its weights are not finite: lower train.learning_rate and go on with --resume"
            )
        if on_token is not None:
            on_token(row.index, token)


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
