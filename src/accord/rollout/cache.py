"""Keys and values of the sequences in flight, in one block per layer."""

from __future__ import annotations

import torch
from torch import Tensor


class RowCache:
    """A cache with one row per sequence in flight, each filled from its first column on; rows 0 to `active` are in use.

    It takes the place of transformers' cache: attention layers call `update`. A prefill writes packed prompts into new rows
    and lets attention see the packed keys; a decoding step writes one token into each active row and lets attention see the
    rows. Memory is taken once, when the first keys arrive, and grows by doubling if longer sequences come.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.active = 0
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._prefill: tuple[Tensor, Tensor] | None = None

    def begin_prefill(self, lengths: list[int]) -> None:
        """The next forward pass brings packed prompts of these lengths, for the rows after the active ones."""
        self._reserve(max(lengths))
        first = self.active
        rows = torch.arange(first, first + len(lengths))
        counts = torch.tensor(lengths)
        columns = torch.cat([torch.arange(length) for length in lengths])
        self._prefill = (torch.repeat_interleave(rows, counts), columns)
        self.lengths[rows] = counts
        self.active += len(lengths)

    def begin_step(self) -> Tensor:
        """The next forward pass brings one token for each active row; returns the mask, bool [active, 1, 1, columns]."""
        self._prefill = None
        longest = int(self.lengths[: self.active].max()) + 1
        self._reserve(longest)
        self._width = longest
        self.lengths[: self.active] += 1
        return (torch.arange(longest) < self.lengths[: self.active, None])[:, None, None, :]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, heads, Q, D]; returns those that the queries may see."""
        store_k, store_v = self._block(self._keys, layer, keys), self._block(self._values, layer, values)
        if self._prefill is not None:
            rows, columns = self._prefill
            store_k[rows, :, columns] = keys[0].transpose(0, 1)
            store_v[rows, :, columns] = values[0].transpose(0, 1)
            return keys, values
        rows = torch.arange(self.active)
        last = self.lengths[: self.active] - 1
        store_k[rows, :, last] = keys[:, :, 0]
        store_v[rows, :, last] = values[:, :, 0]
        return store_k[: self.active, :, : self._width], store_v[: self.active, :, : self._width]

    def drop(self, row: int) -> int:
        """Free a row: the last active row moves into its place. Returns the number that the moved row had."""
        last = self.active - 1
        if row != last:
            length = int(self.lengths[last])
            for store in (*self._keys.values(), *self._values.values()):
                store[row, :, :length] = store[last, :, :length]
            self.lengths[row] = length
        self.active = last
        return last

    def _block(self, blocks: dict[int, Tensor], layer: int, like: Tensor) -> Tensor:
        if layer not in blocks:
            blocks[layer] = like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3])
        return blocks[layer]

    def _reserve(self, columns: int) -> None:
        if columns <= self.columns:
            return
        self.columns = max(columns, 2 * self.columns)
        for blocks in (self._keys, self._values):
            for layer, old in blocks.items():
                new = old.new_zeros(self.rows, old.shape[1], self.columns, old.shape[3])
                new[:, :, : old.shape[2]] = old
                blocks[layer] = new

    # What transformers asks of a cache before it builds masks; ours come ready made, so the answers change nothing.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest active row."""
        return int(self.lengths[: self.active].max()) if self.active else 0
