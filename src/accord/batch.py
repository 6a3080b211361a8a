"""`TokenBatch`: the one contract between data, rollouts and training. Sequences lie end to end; nothing is padded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy
import torch
from torch import Tensor

from accord.layout import Layout
from accord.packing import micro_batches

TOKEN_STREAMS = (
    "sampler_logprobs_T",
    "old_logprobs_T",
    "ref_logprobs_T",
    "values_T",
    "rewards_T",
    "advantages_T",
    "returns_T",
    "weights_T",
    "labels_T",
    "classes_T",
)
SEQUENCE_STREAMS = (
    "ref_logprobs_N",
    "match_N",
    "labels_N",
    "learnt_N",
    "baselines_N",
    "scores_N",
    "margins_N",
    "group_N",
    "version_N",
    "pair_N",
)


@dataclass(frozen=True)
class TokenBatch:
    """N sequences of together T tokens, end to end.

    A per-token stream holds at index t what belongs to token t: its log-probability given the tokens before it, the value of
    the state in which it was chosen, the reward after it. Streams are 0 where `target_mask_T` is false.

    Raises:
        ValueError: the parts do not fit together; the message names the sequence.
    """

    input_ids_T: Tensor
    """int64 [T]"""
    position_ids_T: Tensor
    """int64 [T], from 0 in each sequence"""
    cu_seqlens: Tensor
    """int32 [N+1]: sequence n is the tokens from cu_seqlens[n] up to cu_seqlens[n+1]"""
    target_mask_T: Tensor
    """bool [T]: true where a token is trained or scored. Never true for the first token of a sequence: nothing precedes it."""
    sampler_logprobs_T: Tensor | None = None
    """float32 [T]: log-probability (nats) at which the engine drew the token"""
    old_logprobs_T: Tensor | None = None
    """float32 [T]: log-probability under the policy before this iteration's first step"""
    ref_logprobs_T: Tensor | None = None
    """float32 [T]: log-probability under the reference"""
    values_T: Tensor | None = None
    """float32 [T]: the critic's value of the state in which the token was chosen, before this iteration's first step"""
    rewards_T: Tensor | None = None
    advantages_T: Tensor | None = None
    returns_T: Tensor | None = None
    weights_T: Tensor | None = None
    """float32 [T]: weight of the token in the loss"""
    labels_T: Tensor | None = None
    """float32 [T]: how good the step is that ends at the token, from 0 to 1"""
    classes_T: Tensor | None = None
    """int64 [T]: number of the class that is read at the token. With it the first token of a sequence may be a target: a class is
    read at the target itself, not predicted before it"""
    ref_logprobs_N: Tensor | None = None
    """float32 [N]: log-probability of all target tokens of the sequence under the reference (the sum of `ref_logprobs_T`)"""
    labels_N: Tensor | None = None
    """bool [N]: true for a thumb up, false for a thumb down"""
    learnt_N: Tensor | None = None
    """bool [N]: false where nothing is learnt from the sequence, although it has targets; `None`: all are learnt from"""
    baselines_N: Tensor | None = None
    """float32 [N]: the reward that counts as neither good nor bad; the same for all sequences of a step"""
    scores_N: Tensor | None = None
    """float32 [N]: what the reward sources said"""
    margins_N: Tensor | None = None
    """float32 [N]: by how much a pair's chosen answer is better; the same for both members"""
    group_N: Tensor | None = None
    """int64 [N]: answers to one prompt have the same number"""
    version_N: Tensor | None = None
    """int64 [N]: policy version that sampled the sequence"""
    pair_N: Tensor | None = None
    """int64 [N]: the two sequences of a pair have the same number and follow each other, chosen first"""
    match_N: Tensor | None = None
    """float32 [N]: the log-ratio that the sequence's own is compared with, when that comes from another pair of the step (AOT)"""

    def __post_init__(self) -> None:
        if self.cu_seqlens.ndim != 1 or len(self.cu_seqlens) < 2 or int(self.cu_seqlens[0]) != 0:
            raise ValueError(f"cu_seqlens must be [0, ..., T] of at least one sequence, got {self.cu_seqlens.tolist()}")
        tokens = int(self.cu_seqlens[-1])
        if self.input_ids_T.shape != (tokens,):
            raise ValueError(f"cu_seqlens ends at {tokens}, but input_ids_T has shape {tuple(self.input_ids_T.shape)}")
        empty = (self.lengths_N <= 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"sequence {empty[0]} has no tokens")
        starts = self.cu_seqlens[:-1].long()
        for name, expected in (("position_ids_T", tokens), ("target_mask_T", tokens)):
            self._check_shape(name, expected)
        if self.target_mask_T.dtype != torch.bool:
            raise ValueError(f"target_mask_T must be bool, got {self.target_mask_T.dtype}")
        bad = self.target_mask_T[starts].nonzero().flatten().tolist()
        if bad and self.classes_T is None:
            raise ValueError(
                f"sequence {bad[0]}: its first token is a target, but no token precedes it to predict it from"
            )
        bad = self.position_ids_T[starts].nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"sequence {bad[0]}: its positions do not start at 0")
        for name in TOKEN_STREAMS:
            self._check_shape(name, tokens)
        for name in SEQUENCE_STREAMS:
            self._check_shape(name, self.sequences)
        self._check_pairs()

    def _check_shape(self, name: str, expected: int) -> None:
        stream: Tensor | None = getattr(self, name)
        if stream is not None and stream.shape != (expected,):
            raise ValueError(f"{name} must have shape ({expected},), got {tuple(stream.shape)}")

    def _check_pairs(self) -> None:
        if self.pair_N is None:
            return
        pairs = self.pair_N.tolist()
        for n in range(0, len(pairs), 2):
            if n + 1 >= len(pairs) or pairs[n] != pairs[n + 1]:
                raise ValueError(f"sequence {n}: the two sequences of pair {pairs[n]} must follow each other")

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """T"""
        return len(self.input_ids_T)

    @property
    def sequences(self) -> int:
        """N"""
        return len(self.cu_seqlens) - 1

    @property
    def lengths_N(self) -> Tensor:
        """Tokens of each sequence, int64 [N]."""
        return self.cu_seqlens.diff().long()

    @property
    def targets(self) -> int:
        """Number of target tokens, K."""
        return int(self.target_mask_T.sum())

    @property
    def sequence_T(self) -> Tensor:
        """For each token, the index of its sequence: int64 [T]."""
        return torch.repeat_interleave(torch.arange(self.sequences, device=self.cu_seqlens.device), self.lengths_N)

    # --- what sequences have in common --------------------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """Which tokens are computed where those that sequences begin with alike are computed once. Found at the first call, and
        the same for every model that reads the batch."""
        return Layout.of(self._codes()).to(self.cu_seqlens.device)

    def _codes(self) -> list[numpy.ndarray]:
        """Id and position of each token in one number: alike are tokens that agree in both."""
        codes_T = (self.position_ids_T << 32) + self.input_ids_T
        return numpy.split(codes_T.cpu().numpy(), self.cu_seqlens[1:-1].cpu().numpy())

    # --- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_sequences(
        cls, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], **streams: Tensor | None
    ) -> Self:
        """Lay token id lists end to end.

        Args:
            ids: token ids of each sequence.
            masks: target mask of each sequence, as long as its ids.
            streams: any of the other fields, already flat.
        """
        for n, (sequence, mask) in enumerate(zip(ids, masks, strict=True)):
            if len(sequence) != len(mask):
                raise ValueError(f"sequence {n} has {len(sequence)} tokens and a mask of {len(mask)}")
        lengths = [len(sequence) for sequence in ids]
        return cls(
            input_ids_T=torch.tensor([i for sequence in ids for i in sequence], dtype=torch.long),
            position_ids_T=torch.cat(
                [torch.arange(length) for length in lengths] or [torch.zeros(0, dtype=torch.long)]
            ),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            target_mask_T=torch.tensor([m for mask in masks for m in mask], dtype=torch.bool),
            **streams,
        )

    def with_streams(self, **streams: Tensor | None) -> Self:
        """A copy with some streams set; tensors are shared, not copied."""
        return self._made(dict(self._fields()) | streams)

    def to(self, device: torch.device | str) -> Self:
        """A copy with all tensors on a device."""
        made = self._made({name: t if t is None else t.to(device) for name, t in self._fields()})
        if "layout" in self.__dict__:
            made.__dict__["layout"] = self.layout.to(device)
        return made

    def _made(self, parts: dict[str, Any]) -> Self:
        return type(self)(**parts)

    def _fields(self) -> Iterator[tuple[str, Tensor | None]]:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            yield field.name, value

    # --- cutting and joining -----------------------------------------------------------------------------------------

    def select(self, indices: Iterable[int]) -> Self:
        """The batch of some sequences, in the given order, with every stream."""
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        tokens, ends = self.token_index(chosen), self.lengths_N[chosen].cumsum(0)
        parts: dict[str, Tensor | None] = {}
        for name, stream in self._fields():
            if name != "cu_seqlens":
                parts[name] = stream if stream is None else stream[tokens if name.endswith("_T") else chosen]
        parts["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.long), ends]).int()
        return self._made(parts)

    def token_index(self, sequences: Sequence[int] | Tensor) -> Tensor:
        """Where the tokens of some sequences lie in this batch, in the given order: int64."""
        chosen = torch.as_tensor(sequences, dtype=torch.long)
        starts, lengths = self.cu_seqlens[:-1].long()[chosen], self.lengths_N[chosen]
        ends = lengths.cumsum(0)
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(ends - lengths, lengths)
        return torch.repeat_interleave(starts, lengths) + within

    def computed(self, shares: bool) -> int:
        """Tokens that a model computes: T, or fewer if it computes prefixes in common once."""
        return self.layout.tokens if shares else self.tokens

    def bins(self, max_tokens: int, shares: bool = False) -> list[list[int]]:
        """Indices of the sequences of each micro-batch of at most `max_tokens` computed tokens, the micro-batches about equally
        costly.

        Pairs stay together; a sequence or pair that is longer stands alone. With `shares`, prefixes in common count once, and
        sequences that begin alike go together (see `packing.micro_batches`).
        """
        unit = 2 if self.pair_N is not None else 1
        return micro_batches(self._codes(), max_tokens, unit=unit, shares=shares)

    def split(self, max_tokens: int, shares: bool = False) -> list[Self]:
        """Cut into micro-batches, see `bins`."""
        if self.tokens <= max_tokens:
            return [self]
        bins = self.bins(max_tokens, shares)
        return [self] if len(bins) == 1 else [self.select(members) for members in bins]

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """Join batches that carry the same streams."""
        parts: dict[str, Tensor | None] = {}
        for field in dataclasses.fields(cls):
            streams = [getattr(batch, field.name) for batch in batches]
            missing = [stream is None for stream in streams]
            if any(missing) and not all(missing):
                raise ValueError(f"cannot join: batch {missing.index(True)} has no {field.name}, others have")
            parts[field.name] = None if all(missing) else torch.cat(streams)
        lengths = torch.cat([batch.lengths_N for batch in batches])
        parts["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
        return batches[0]._made(parts)
