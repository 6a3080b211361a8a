from __future__ import annotations

import dataclasses
import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from accord.batch import SEQUENCE_STREAMS, TOKEN_STREAMS, TokenBatch

INTEGER_STREAMS = ("group_N", "version_N", "pair_N")


def ragged(seed: int, sequences: int = 9, pairs: bool = False, longest: int = 12) -> TokenBatch:
    """Random lengths, masks and all streams; every value of every stream occurs once, so that no mix-up goes unseen."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, longest) for _ in range(sequences)]
    tokens = sum(lengths)
    unique = iter(range(1, 100_000))
    ids = [[next(unique) for _ in range(length)] for length in lengths]
    masks = [[False] + [draw.random() < 0.6 for _ in range(length - 1)] for length in lengths]
    streams: dict[str, Any] = {
        name: torch.tensor([float(next(unique)) for _ in range(tokens)]) for name in TOKEN_STREAMS
    }
    for name in SEQUENCE_STREAMS:
        dtype = torch.long if name in INTEGER_STREAMS else torch.float32
        streams[name] = torch.tensor([next(unique) for _ in range(sequences)], dtype=dtype)
    streams["pair_N"] = torch.arange(sequences // 2).repeat_interleave(2) if pairs else None
    return TokenBatch.from_sequences(ids, masks, **streams)


def unpack(batch: TokenBatch) -> list[dict[str, Any]]:
    """Each sequence as plain lists, by slicing from bound to bound."""
    bounds = batch.cu_seqlens.tolist()
    result = []
    for n, (start, end) in enumerate(pairwise(bounds)):
        row: dict[str, Any] = {}
        for field in dataclasses.fields(batch):
            stream = getattr(batch, field.name)
            if field.name == "cu_seqlens" or stream is None:
                continue
            row[field.name] = stream[start:end].tolist() if field.name.endswith("_T") else stream[n].item()
        result.append(row)
    return result


def test_layout_by_hand():
    batch = TokenBatch.from_sequences([[7, 8, 9], [5]], [[False, True, True], [False]])
    assert batch.input_ids_T.tolist() == [7, 8, 9, 5]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4] and batch.cu_seqlens.dtype == torch.int32
    assert batch.target_mask_T.tolist() == [False, True, True, False]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1]
    assert (batch.tokens, batch.sequences, batch.targets, batch.lengths_N.tolist()) == (4, 2, 2, [3, 1])


# --- every fault names its place -------------------------------------------------------------------------------------


def parts(**changes: Any) -> dict[str, Any]:
    """Two sequences, of three tokens and of two."""
    good = {
        "input_ids_T": torch.tensor([1, 2, 3, 4, 5]),
        "position_ids_T": torch.tensor([0, 1, 2, 0, 1]),
        "cu_seqlens": torch.tensor([0, 3, 5], dtype=torch.int32),
        "target_mask_T": torch.tensor([False, True, True, False, True]),
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": torch.tensor([0])}, r"cu_seqlens must be \[0, \.\.\., T\] of at least one sequence, got \[0\]"),
        ({"cu_seqlens": torch.tensor([1, 3, 5])}, r"cu_seqlens must be \[0, .* got \[1, 3, 5\]"),
        ({"cu_seqlens": torch.tensor([[0, 5]])}, r"cu_seqlens must be"),
        ({"cu_seqlens": torch.tensor([0, 3, 6])}, r"cu_seqlens ends at 6, but input_ids_T has shape \(5,\)"),
        ({"cu_seqlens": torch.tensor([0, 3, 3, 5])}, "sequence 1 has no tokens"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 5])}, "sequence 1 has no tokens"),
        ({"position_ids_T": torch.arange(4)}, r"position_ids_T must have shape \(5,\), got \(4,\)"),
        ({"position_ids_T": torch.arange(5)}, "sequence 1: its positions do not start at 0"),
        ({"target_mask_T": torch.ones(3, dtype=torch.bool)}, r"target_mask_T must have shape \(5,\), got \(3,\)"),
        ({"target_mask_T": torch.tensor([0, 1, 1, 0, 1])}, "target_mask_T must be bool, got torch.int64"),
        ({"target_mask_T": torch.tensor([False, True, True, True, True])}, "sequence 1: its first token is a target"),
        ({"pair_N": torch.tensor([0, 1])}, "sequence 0: the two sequences of pair 0 must follow each other"),
        *[({name: torch.zeros(2)}, rf"{name} must have shape \(5,\), got \(2,\)") for name in TOKEN_STREAMS],
        *[({name: torch.zeros(5)}, rf"{name} must have shape \(2,\), got \(5,\)") for name in SEQUENCE_STREAMS],
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(changes, message):
    TokenBatch(**parts())
    with pytest.raises(ValueError, match=message):
        TokenBatch(**parts(**changes))


def test_an_odd_sequence_has_no_partner():
    with pytest.raises(ValueError, match="sequence 2: the two sequences of pair 1 must follow each other"):
        TokenBatch.from_sequences([[1]] * 3, [[False]] * 3, pair_N=torch.tensor([0, 0, 1]))


def test_a_mask_of_another_length_is_refused_by_sequence():
    with pytest.raises(ValueError, match="sequence 1 has 2 tokens and a mask of 1"):
        TokenBatch.from_sequences([[1], [1, 2]], [[False], [False]])


def test_nothing_is_not_a_batch():
    with pytest.raises(ValueError, match="at least one sequence"):
        TokenBatch.from_sequences([], [])
    with pytest.raises(ValueError, match="at least one sequence"):
        ragged(0).select([])


def test_with_streams_validates_and_leaves_the_original_alone():
    batch = TokenBatch(**parts())
    changed = batch.with_streams(values_T=torch.ones(5))
    assert batch.values_T is None and changed.values_T is not None
    assert changed.input_ids_T is batch.input_ids_T, "tensors are shared"
    with pytest.raises(ValueError, match="values_T must have shape"):
        batch.with_streams(values_T=torch.ones(4))
    with pytest.raises(TypeError):
        batch.with_streams(value_T=torch.ones(5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.values_T = torch.ones(5)  # type: ignore[misc]


# --- cutting and joining keep every stream aligned -------------------------------------------------------------------


def test_all_fields_are_streams_that_the_tests_fill():
    core = {"input_ids_T", "position_ids_T", "cu_seqlens", "target_mask_T"}
    assert {field.name for field in dataclasses.fields(TokenBatch)} == core | set(TOKEN_STREAMS) | set(SEQUENCE_STREAMS)


@pytest.mark.parametrize("seed", range(20))
def test_select_takes_whole_sequences_in_the_given_order(seed):
    batch = ragged(seed)
    order = random.Random(seed).choices(range(batch.sequences), k=6)  # also the same one twice
    assert unpack(batch.select(order)) == [unpack(batch)[n] for n in order]


@pytest.mark.parametrize("seed", range(20))
def test_token_index_is_where_the_tokens_lie(seed):
    batch = ragged(seed)
    order = random.Random(seed).sample(range(batch.sequences), 5)
    bounds = batch.cu_seqlens.tolist()
    naive = [t for n in order for t in range(bounds[n], bounds[n + 1])]
    assert batch.token_index(order).tolist() == naive
    assert batch.token_index(torch.tensor(order)).tolist() == naive


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_split_then_concat_is_a_permutation(seed, pairs):
    batch = ragged(seed, sequences=10, pairs=pairs)
    limit = random.Random(seed).randint(1, 40)
    pieces, bins = batch.split(limit), batch.bins(limit)
    whole = unpack(batch)
    if batch.tokens <= limit:
        assert pieces == [batch]
        return
    assert sorted(n for members in bins for n in members) == list(range(10))
    assert [unpack(piece) for piece in pieces] == [[whole[n] for n in members] for members in bins]
    joined = TokenBatch.concat(pieces)
    assert unpack(joined) == [whole[n] for members in bins for n in members]
    assert joined.position_ids_T.dtype == torch.long and joined.cu_seqlens.dtype == torch.int32
    back = sorted(range(10), key=[n for members in bins for n in members].__getitem__)
    assert unpack(joined.select(back)) == whole


@pytest.mark.parametrize("seed", range(20))
def test_bins_hold_the_limit_and_keep_pairs_together(seed):
    batch = ragged(seed, sequences=12, pairs=True)
    lengths, limit = batch.lengths_N.tolist(), 25
    for members in batch.bins(limit):
        assert len(members) == 2 or sum(lengths[n] for n in members) <= limit
        assert members[0::2] == [n - 1 for n in members[1::2]] and all(n % 2 == 0 for n in members[0::2])


def test_a_batch_that_fits_is_not_cut():
    batch = ragged(3)
    assert batch.split(batch.tokens) == [batch]
    assert len(batch.split(batch.tokens - 1)) > 1


def test_a_sequence_longer_than_the_limit_stands_alone():
    batch = TokenBatch.from_sequences([[1] * 9, [2], [3] * 2], [[False] * 9, [False], [False] * 2])
    assert batch.bins(4) == [[0], [1, 2]]


def test_concat_of_one_is_the_same():
    assert unpack(TokenBatch.concat([ragged(1)])) == unpack(ragged(1))


def test_concat_refuses_batches_with_different_streams():
    with pytest.raises(ValueError, match="cannot join: batch 1 has no ref_logprobs_T, others have"):
        TokenBatch.concat([ragged(0), ragged(1).with_streams(ref_logprobs_T=None)])


def test_concat_without_optional_streams():
    first, second = TokenBatch(**parts()), TokenBatch(**parts())
    joined = TokenBatch.concat([first, second])
    assert joined.cu_seqlens.tolist() == [0, 3, 5, 8, 10]
    assert joined.values_T is None and joined.scores_N is None


def test_to_moves_every_stream(monkeypatch):
    batch, moved = ragged(0, sequences=4, pairs=True), []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (moved.append(device), tensor.clone())[1])
    copy = batch.to("cpu")
    assert unpack(copy) == unpack(batch)
    assert moved == ["cpu"] * len(dataclasses.fields(batch))
    assert TokenBatch(**parts()).to("cpu").values_T is None


@pytest.mark.parametrize("seed", range(5))
def test_sequence_T_names_the_sequence_of_each_token(seed):
    batch = ragged(seed)
    assert batch.sequence_T.tolist() == [n for n, length in enumerate(batch.lengths_N.tolist()) for _ in range(length)]
