"""Rows that are held out, and what the header says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.data import Encoder, encode_labelled, encode_pairs
from accord.errors import ConfigError
from accord.recipes.build import Split, load_split
from recipes.tiny_runs import pairs, recipe, write_rows


def split(tokenizer, folder: Path, kind: str, rows, **data) -> Split:
    encoder, encode = Encoder(tokenizer), encode_labelled if kind == "kto" else encode_pairs
    over = {"data": {"path": write_rows(folder / "rows.jsonl", rows), **data}}
    return load_split(recipe(kind, "somewhere", folder, over), lambda loaded, config: encode(loaded, encoder, config))


def prompts(tokenizer, sequences) -> list[str]:
    return [
        tokenizer.decode(sequence.input_ids[: sequence.target_mask.index(True)], skip_special_tokens=True)
        for sequence in sequences
    ]


def test_both_halves_of_a_pair_are_on_one_side(tokenizer, tmp_path: Path):
    made = split(tokenizer, tmp_path, "kto", pairs(12), eval_fraction=0.25)
    assert made.facts["held out"] == "3 of these rows, made 6"
    held_out, train = (prompts(tokenizer, [row.sequence for row in rows]) for rows in (made.held_out, made.train))
    assert len(held_out) == 6 and len(train) == 18
    assert held_out[::2] == held_out[1::2] and train[::2] == train[1::2], "in the order of the rows"
    assert not set(held_out) & set(train)
    # The rows are those that recipes on pairs hold out, too.
    whole = split(tokenizer, tmp_path, "dpo", pairs(12), eval_fraction=0.25)
    assert whole.facts["held out"] == "3 of these rows"
    assert prompts(tokenizer, [pair.chosen for pair in whole.held_out]) == held_out[::2]


def test_rows_cannot_all_be_held_out(tokenizer, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data.eval_fraction: 0.9 of 1 rows leaves none to learn from"):
        split(tokenizer, tmp_path, "kto", pairs(1), eval_fraction=0.9)


def test_rows_are_held_out_before_any_is_rejected(tokenizer, tmp_path: Path):
    rows = pairs(8)
    whole = split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25)
    aside = prompts(tokenizer, [pair.chosen for pair in whole.held_out])
    place = next(i for i, row in enumerate(rows) if row["prompt"] == aside[0])
    rows[place] = rows[place] | {"chosen": " good" * 100}
    over = {"on_bad_row": "skip", "max_tokens": 64}
    made = split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25, **over)
    assert prompts(tokenizer, [pair.chosen for pair in made.held_out]) == aside[1:] and len(made.train) == 6
    assert made.facts["held out"] == "1 of these rows"
    rows = [row | {"chosen": " good" * 100} if row["prompt"] in aside else row for row in rows]
    with pytest.raises(ConfigError, match="none of the rows that are held out can be used"):
        split(tokenizer, tmp_path, "dpo", rows, eval_fraction=0.25, **over)


def test_rows_and_their_parts_are_counted_apart(tokenizer, tmp_path: Path):
    long = " good" * 100
    rows = [
        *pairs(4),
        {"prompt": "one", "chosen": long, "rejected": " odd"},
        {"prompt": "both", "chosen": long, "rejected": long + " odd"},
        {"prompt": "none", "chosen": "", "rejected": " odd"},
    ]
    made = split(tokenizer, tmp_path, "kto", rows, on_bad_row="skip", max_tokens=64)
    told = made.facts["data"].partition(": ")[2]
    assert told == "5 of 7 rows (preference), made 9, 2 rejected, 1 parts of rows rejected"
