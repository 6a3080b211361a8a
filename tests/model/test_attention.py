"""Segment attention: what it computes, and the calls that it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from accord.batch import TokenBatch
from accord.errors import ModelError
from accord.model import attention
from accord.model.attention import (
    FLASH,
    SEGMENTS,
    Step,
    choose_attention,
    flash_attention,
    packed_arguments,
    segment_attention,
)
from accord.ops import attention as kernel

LAYER = nn.Identity()


def qkv(tokens: int, keys: int | None = None, rows: int = 1, key_heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, tokens), (key_heads, keys or tokens), (key_heads, keys or tokens))
    return tuple(torch.randn(rows, heads, length, 8, generator=generator) for heads, length in sizes)


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v with a mask written out; heads of a group share keys."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 5, 50])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_each_segment_attends_to_its_own_past_within_the_window(window: int | None, key_heads: int) -> None:
    query, key, value = qkv(12, key_heads=key_heads)
    bounds = [0, 5, 6, 12]
    got, weights = segment_attention(LAYER, query, key, value, None, segment_bounds=bounds, sliding_window=window)
    segment = torch.tensor([0] * 5 + [1] + [2] * 6)
    distance = torch.arange(12)[:, None] - torch.arange(12)[None, :]
    allowed = (segment[:, None] == segment[None, :]) & (distance >= 0) & (distance < (window or 99))
    assert weights is None
    torch.testing.assert_close(got, by_hand(query, key, value, allowed), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("new", [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_a_step_sees_the_filled_columns_of_its_row_within_the_window(window: int | None, new: tuple[int, ...]) -> None:
    """Ragged new tokens over rows of a cache: each query by hand, one at a time. Heads share keys in pairs."""
    query, key, value = qkv(sum(new), keys=10, rows=3)
    query = query[:1]
    lengths = torch.tensor([9, 4, 6])
    places = torch.arange(max(new))
    seen_BQ = torch.where(
        places < torch.tensor(new)[:, None], lengths[:, None] - torch.tensor(new)[:, None] + places + 1, 0
    )
    got, _ = segment_attention(LAYER, query, key, value, None, step=Step(seen_BQ, 9), sliding_window=window)
    assert got.shape == (1, sum(new), query.shape[1], query.shape[3])
    n = 0
    for row, count in enumerate(new):
        for seen in seen_BQ[row, :count].tolist():
            keys = key[[row], :, :seen][:, :, -(window or 99) :]
            values = value[[row], :, :seen][:, :, -(window or 99) :]
            wanted = by_hand(query[:, :, [n]], keys, values, torch.ones(1, 1, 1, keys.shape[2], dtype=torch.bool))
            torch.testing.assert_close(got[:, [n]], wanted, atol=1e-6, rtol=1e-5)
            n += 1


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 50])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_segments_attend_to_what_precedes_them_on_their_paths(
    window: int | None, key_heads: int, block: int, monkeypatch
) -> None:
    """A prompt of 4 with an answer, two more answers to it, and one that goes on from part of the second of them."""
    monkeypatch.setattr(kernel, "BLOCK", block)
    query, key, value = qkv(16, key_heads=key_heads)
    paths = [(), [(0, 4)], [(0, 4)], [(0, 4), (1, 3)]]
    masks: kernel.Masks = {}
    settings = {"segment_bounds": [0, 6, 10, 11, 16], "key_paths": paths, "masks": masks, "sliding_window": window}
    got, _ = segment_attention(LAYER, query, key, value, None, **settings)
    own = [list(range(6)), [*range(4), 6, 7, 8, 9], [*range(4), 10], [*range(4), 6, 7, 8, 11, 12, 13, 14, 15]]
    allowed = torch.zeros(16, 16, dtype=torch.bool)
    for sequence in own:
        for t, token in enumerate(sequence):
            allowed[token, sequence[max(0, t + 1 - (window or 99)) : t + 1]] = True
    torch.testing.assert_close(got, by_hand(query, key, value, allowed), atol=1e-6, rtol=1e-5)
    made = dict(masks)
    again, _ = segment_attention(LAYER, query, key, value, None, **settings)
    assert torch.equal(again, got) and masks.keys() == made.keys()
    assert all(masks[kind] is mask for kind, mask in made.items()), "the next layer takes the same masks"


def test_layers_with_and_without_a_window_share_no_mask() -> None:
    query, key, value = qkv(9)
    masks: kernel.Masks = {}
    arguments = {"segment_bounds": [0, 5, 9], "key_paths": [(), [(0, 4)]], "masks": masks}
    for window in (None, 5, None, 5):
        got, _ = segment_attention(LAYER, query, key, value, None, sliding_window=window, **arguments)
        alone, _ = segment_attention(LAYER, query, key, value, None, sliding_window=window, **arguments | {"masks": {}})
        assert torch.equal(got, alone)


def test_scaling_is_used() -> None:
    query, key, value = qkv(4)
    got, _ = segment_attention(LAYER, query, key, value, None, scaling=0.5, segment_bounds=[0, 4])
    same, _ = segment_attention(LAYER, query * 0.5 * 8**0.5, key, value, None, segment_bounds=[0, 4])
    torch.testing.assert_close(got, same)


def test_one_whole_sequence_needs_no_bounds() -> None:
    query, key, value = qkv(7)
    got, _ = segment_attention(LAYER, query, key, value, None, sliding_window=3)
    same, _ = segment_attention(LAYER, query, key, value, None, sliding_window=3, segment_bounds=[0, 7])
    assert torch.equal(got, same)


def test_calls_that_would_see_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="does not see padding"):
        segment_attention(LAYER, *qkv(5, rows=2), None)
    with pytest.raises(ValueError, match="needs a `step`"):
        segment_attention(LAYER, *qkv(1, keys=5), None)


def test_a_padded_batch_through_a_whole_model_is_refused(family, model_folder, make_roles) -> None:
    roles = make_roles(model_folder(family))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="does not see padding"):
        roles.model(input_ids=torch.full((2, 4), 5), attention_mask=mask, use_cache=False)


def test_attention_that_is_not_computed_here_is_refused() -> None:
    with pytest.raises(ModelError, match="Identity has soft-capped attention scores"):
        segment_attention(LAYER, *qkv(3), None, segment_bounds=[0, 3], softcap=50.0)
    with pytest.raises(ModelError, match="Identity has attention sinks"):
        segment_attention(LAYER, *qkv(3), None, segment_bounds=[0, 3], s_aux=torch.zeros(4))


def test_packed_arguments_carry_neither_mask_nor_cache(batch) -> None:
    arguments = packed_arguments(batch)
    assert arguments["use_cache"] is False and "attention_mask" not in arguments
    assert arguments["segment_bounds"] == batch.cu_seqlens.tolist()
    assert arguments["max_length_q"] == arguments["max_length_k"] == 17
    assert torch.equal(arguments["position_ids"][0], batch.position_ids_T)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "chosen"),
    [
        ("cpu", torch.bfloat16, True, SEGMENTS),
        ("cuda", torch.bfloat16, True, FLASH),
        ("cuda", torch.float16, True, FLASH),
        ("cuda", torch.float32, True, SEGMENTS),
        ("cuda", torch.bfloat16, False, SEGMENTS),
    ],
)
def test_choose_attention(monkeypatch, device: str, dtype: torch.dtype, installed: bool, chosen: str) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: installed)
    assert choose_attention(torch.device(device), dtype) == chosen


def test_flash_takes_packed_sequences_and_leaves_decoding_to_segments(monkeypatch) -> None:
    """The kernels know no rows of a cache, so a decoding step must not reach them. (They themselves need a GPU.)"""
    calls = []

    def kernels(module, query, key, value, attention_mask, **arguments):
        calls.append((attention_mask, sorted(arguments)))
        return query.transpose(1, 2), None

    monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernels)
    query, key, value = qkv(5)
    flash_attention(LAYER, query, key, value, None, segment_bounds=[0, 2, 5], cu_seq_lens_q=torch.tensor([0, 2, 5]))
    assert calls == [(None, ["cu_seq_lens_q"])]
    query, key, value = qkv(1, 5)
    step = Step(torch.tensor([[4]]), 4)
    out, _ = flash_attention(LAYER, query, key, value, None, step=step)
    assert len(calls) == 1
    assert torch.equal(out, segment_attention(LAYER, query, key, value, None, step=step)[0])


def test_packed_arguments_of_shared_prefixes_by_hand() -> None:
    prompt = list(range(20, 40))
    batch = TokenBatch.from_sequences([[*prompt, 5, 6], [9], [*prompt, 7]], [[False] * 22, [False], [False] * 21])
    assert packed_arguments(batch)["segment_bounds"] == [0, 22, 23, 44]
    arguments = packed_arguments(batch, shares=True)
    assert arguments["input_ids"].tolist() == [[*prompt, 5, 6, 9, 7]]
    assert arguments["position_ids"].tolist() == [[*range(22), 0, 20]]
    assert arguments["segment_bounds"] == [0, 22, 23, 24] == arguments["cu_seq_lens_q"].tolist()
    assert arguments["cu_seq_lens_k"].tolist() == [0, 22, 23, 44] and arguments["cu_seq_lens_k"].dtype == torch.int32
    assert arguments["key_places"].tolist() == [*range(22), 22, *range(20), 23]
    assert (arguments["max_length_q"], arguments["max_length_k"]) == (22, 22)
    assert arguments["use_cache"] is False and "attention_mask" not in arguments
    other = batch.select([0, 1])
    assert packed_arguments(other, shares=True)["segment_bounds"] == [0, 22, 23], "nothing in common: as it is"


@pytest.mark.parametrize("window", [None, 3])
def test_flash_gets_the_keys_of_each_segment_end_to_end(monkeypatch, window: int | None) -> None:
    """The kernels need a GPU; what they are given is computed here by their definition: segments of queries and of keys, causal
    from the last query and the last key back, so many keys to the left."""

    def kernels(module, query, key, value, attention_mask, **arguments):
        assert not set(arguments) & {"segment_bounds", "key_bounds", "key_paths", "key_places", "masks"}
        bounds_q, bounds_k = arguments["cu_seq_lens_q"].tolist(), arguments["cu_seq_lens_k"].tolist()
        assert arguments["max_length_k"] == max(b - a for a, b in pairwise(bounds_k))
        allowed = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool)
        for n, end in enumerate(bounds_k[1:]):
            for t in range(bounds_q[n], bounds_q[n + 1]):
                last = end - (bounds_q[n + 1] - t)
                allowed[t, max(bounds_k[n], last + 1 - (window or 99)) : last + 1] = True
        return by_hand(query, key, value, allowed), None

    monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernels)
    prompt = list(range(20, 40))
    ids = [[*prompt, 5, 6], [9], [*prompt, 7, 8, 9], [*prompt, 7, 8, 9, 3]]
    arguments = packed_arguments(TokenBatch.from_sequences(ids, [[False] * len(s) for s in ids]), shares=True)
    arguments = {k: v for k, v in arguments.items() if k not in ("input_ids", "position_ids", "use_cache")}
    query, key, value = qkv(arguments["segment_bounds"][-1])
    got, _ = flash_attention(LAYER, query, key, value, None, sliding_window=window, **arguments)
    want, _ = segment_attention(LAYER, query, key, value, None, sliding_window=window, **arguments)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
