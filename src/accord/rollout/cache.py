"""Keys and values of the sequences in flight, in one block per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.model.attention import Step


class RowCache:
    """A cache with one row per sequence in flight, each filled from its first column on; rows 0 to `active` are in use.

    It takes the place of transformers' cache: attention layers call `update`. A prefill writes packed prompts into new rows
    and lets attention see the packed keys; a decoding step writes the new tokens of each active row and lets attention see the
    rows. Memory is taken once, when the first keys arrive, and grows by doubling if longer sequences come.
    """

    def __init__(self, rows: int, columns: int, device: torch.device | None = None) -> None:
        self.rows, self.columns = rows, columns
        self.device = device or torch.device("cpu")
        self.active = 0
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._blocks = (self._keys, self._values)
        self._kept: list[dict[int, Tensor]] = []
        self._prefill: tuple[Tensor, Tensor, Tensor] | None = None
        self._row_N, self._column_N = self.lengths, self.lengths  # where the tokens of a step go
        self._written: dict[int, Tensor] = {}

    def begin_prefill(self, lengths: Sequence[int], owners: Sequence[int] | None = None) -> None:
        """The next forward pass brings packed prompts of these lengths, for the rows after the active ones.

        Args:
            lengths: of each prompt.
            owners: for each new row, which prompt it begins with; by default each prompt has one row, in their order.
        """
        self._reserve(max(lengths))
        owners = range(len(lengths)) if owners is None else owners
        starts = torch.tensor([0, *lengths]).cumsum(0)
        counts = torch.tensor([lengths[owner] for owner in owners])
        columns = torch.cat([torch.arange(count) for count in counts.tolist()])
        tokens = torch.cat([torch.arange(int(starts[owner]), int(starts[owner + 1])) for owner in owners])
        rows = torch.arange(self.active, self.active + len(counts))
        self._prefill = (
            torch.repeat_interleave(rows, counts).to(self.device),
            columns.to(self.device),
            tokens.to(self.device),
        )
        self.lengths[rows] = counts
        self.active += len(counts)

    def keep(self, columns: int) -> None:
        """Put the first columns of the last active row aside, for `repeat`."""
        last = self.active - 1
        self._kept = [
            {layer: block[last, :, :columns].clone() for layer, block in blocks.items()} for blocks in self._blocks
        ]

    def repeat(self, times: int) -> None:
        """So many new rows begin with what was put aside last."""
        new, columns = slice(self.active, self.active + times), 0
        for blocks, kept in zip(self._blocks, self._kept, strict=True):
            for layer, part in kept.items():
                columns = part.shape[1]
                blocks[layer][new, :, :columns] = part
        self.lengths[new] = columns
        self.active += times

    def begin_step(self, new: Sequence[int] | None = None) -> Step:
        """The next forward pass brings so many tokens for each active row (by default one each), end to end."""
        self._prefill, self._written = None, {}
        before = self.lengths[: self.active]
        counts = torch.ones(self.active, dtype=torch.long) if new is None else torch.tensor(new)
        after = before + counts
        width = int(after.max())
        self._reserve(width)
        order = torch.arange(int(counts.max()))
        seen_BQ = torch.where(order < counts[:, None], before[:, None] + order + 1, 0)
        row_N, place_N = (seen_BQ > 0).nonzero(as_tuple=True)
        self._row_N, self._column_N = row_N.to(self.device), (before[row_N] + place_N).to(self.device)
        self.lengths[: self.active] = after
        return Step(seen_BQ.to(self.device), width)

    def take_back(self, counts: Sequence[int]) -> None:
        """So many last tokens of each active row were not to come; what follows takes their places."""
        self.lengths[: self.active] -= torch.tensor(counts)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store new keys and values, packed [1, heads, N, D]; returns those that the queries may see."""
        store_k, store_v = self._block(self._keys, layer, keys), self._block(self._values, layer, values)
        if self._prefill is not None:
            rows, columns, tokens = self._prefill
            store_k[rows, :, columns] = keys[0].transpose(0, 1)[tokens]
            store_v[rows, :, columns] = values[0].transpose(0, 1)[tokens]
            return keys, values
        places = self._places(keys.shape[1])
        for store, fresh in ((store_k, keys), (store_v, values)):
            store.view(-1, store.shape[3]).index_copy_(0, places, fresh[0].transpose(0, 1).flatten(0, 1))
        return store_k[: self.active], store_v[: self.active]

    def drop(self, row: int) -> int:
        """Free a row: the last active row moves into its place. Returns the number that the moved row had."""
        last = self.active - 1
        if row != last:
            length = int(self.lengths[last])
            for block in (*self._keys.values(), *self._values.values()):
                block[row, :, :length] = block[last, :, :length]
            self.lengths[row] = length
        self.active = last
        return last

    def _places(self, heads: int) -> Tensor:
        """Where the tokens of a step go in a block seen as [rows x heads x columns, D]; made once for all layers."""
        if heads not in self._written:
            of_row_NH = self._row_N[:, None] * heads + torch.arange(heads, device=self.device)
            self._written[heads] = (of_row_NH * self.columns + self._column_N[:, None]).flatten()
        return self._written[heads]

    def _block(self, blocks: dict[int, Tensor], layer: int, like: Tensor) -> Tensor:
        if layer not in blocks:
            blocks[layer] = like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3])
        return blocks[layer]

    def _reserve(self, columns: int) -> None:
        if columns <= self.columns:
            return
        self.columns = max(columns, 2 * self.columns)
        for blocks in self._blocks:
            for layer, old in blocks.items():
                new = old.new_zeros(self.rows, old.shape[1], self.columns, old.shape[3])
                new[:, :, : old.shape[2]] = old
                blocks[layer] = new

    # What transformers asks of a cache before it builds masks; ours come ready made, so the answers change nothing.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest active row."""
        return int(self.lengths[: self.active].max()) if self.active else 0
