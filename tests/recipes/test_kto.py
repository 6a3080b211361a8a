"""`accord kto` and `accord bco` from Python, from labelled rows, conversations and pairs, with LoRA and on all weights."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
from transformers import AutoModelForCausalLM

import accord
from accord.config import KTOConfig, KTORecipe, build
from accord.data import EncodedLabelled, TokenSequence
from accord.errors import ConfigError
from accord.recipes.build import longest_allowed
from accord.recipes.kto import balance
from accord.recipes.labelled import one_sided
from recipes.tiny_runs import labelled, pairs, recipe, recipe_dict, run, same_weights, timeless, write_rows

FULL = pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
KINDS = pytest.mark.parametrize("kind", ["kto", "bco"])


@FULL
@KINDS
def test_a_run_starts_at_the_reference_and_its_model_loads_anywhere(kind, full, base, tmp_path: Path):
    over = {"data": {"eval_fraction": 0.25}} | ({"adapter": None} if full else {})
    done = run(kind, base, tmp_path, over)
    first, last = done.metrics[0], done.metrics[-1]
    assert first[f"{kind}/loss"] == pytest.approx(0.5 if kind == "kto" else 0.693147, rel=1e-4)
    # Not exactly 0: a step's rows lie in another order in the frozen pass, and sums of floats depend on it.
    assert abs(first["rewards/chosen"]) < 1e-5 and abs(first["rewards/rejected"]) < 1e-5
    if kind == "kto":
        assert first["objective/kl"] == 0.0
    assert first["rewards/margins"] != last["rewards/margins"]
    assert {"eval/loss", "eval/accuracy", "eval/rewards/margins", "eval/logps/chosen"} <= last.keys()
    assert not {"eval/perplexity", f"{kind}/perplexity"} & last.keys()
    model = AutoModelForCausalLM.from_pretrained(base if not full else done.model)
    if not full:
        peft.PeftModel.from_pretrained(model, str(done.model))


@KINDS
def test_pairs_are_taken_apart(kind, base, tmp_path: Path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(6))
    unpaired = [
        {"prompt": p["prompt"], "completion": p[key], "label": key == "chosen"}
        for p in pairs(6)
        for key in ("chosen", "rejected")
    ]
    one = run(kind, base, tmp_path / "one", {"data": {"path": path}})
    other = run(kind, base, tmp_path / "two", {"data": {"path": write_rows(tmp_path / "rows.jsonl", unpaired)}})
    assert timeless(one.metrics) == timeless(other.metrics) and same_weights(one.model, other.model)


@KINDS
def test_conversations(kind, base, tmp_path: Path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"film {i}?"},
                {"role": "assistant", "content": "good" if i % 2 else "odd and slow"},
            ],
            "label": bool(i % 2),
        }
        for i in range(8)
    ]
    over = {"data": {"path": write_rows(tmp_path / "rows.jsonl", rows)}, "model": {"chat_template": "transcript"}}
    assert len(run(kind, base, tmp_path, over).metrics) == 2


def test_apo_zero_is_kto_with_its_point_of_reference_at_0(base, tmp_path: Path):
    apo = run("kto", base, tmp_path / "apo", {"algorithm": {"loss": "apo_zero_unpaired"}})
    zero = run("kto", base, tmp_path / "zero", {"algorithm": {"kl": False}})
    assert timeless(apo.metrics) == timeless(zero.metrics) and same_weights(apo.model, zero.model)
    assert "objective/kl" not in apo.metrics[0]


@KINDS
def test_micro_batches_do_not_change_a_run(kind, base, tmp_path: Path):
    train = {"steps": 4, "learning_rate": 3e-3}
    whole = run(kind, base, tmp_path / "whole", {"train": train})
    cut = run(kind, base, tmp_path / "cut", {"train": train | {"micro_batch_tokens": 16}})
    for a, b in zip(timeless(whole.metrics), timeless(cut.metrics), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-5)


@KINDS
def test_the_reference_may_be_another_model(kind, base, sft_adapter, tmp_path: Path):
    done = run(kind, base, tmp_path, {"reference": {"source": "model", "path": str(sft_adapter)}})
    assert abs(done.metrics[0]["rewards/chosen"]) > 0.01


def test_an_adapter_to_start_from_is_the_reference(base, sft_adapter, tmp_path: Path):
    done = run("kto", sft_adapter, tmp_path)
    assert abs(done.metrics[0]["rewards/chosen"]) < 1e-5


def test_one_row_a_step_has_no_other_answer(base, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"train.batch_size is 1, and kto estimates its KL term .* algorithm.kl: false"
    ):
        build(KTORecipe, recipe_dict("kto", base, tmp_path, {"train": {"batch_size": 1}}))
    run("kto", base, tmp_path, {"train": {"batch_size": 1}, "algorithm": {"kl": False}})


def test_virtual_tokens_leave_mismatched_rows_less_room(model_folder, tmp_path: Path):
    """A long prompt beside a long answer, on a model that has learnt 128 positions and no more."""
    base, virtual = model_folder("gpt2"), 40
    rows = [
        {"prompt": "the film was odd " * 15, "completion": " good", "label": True},
        {"prompt": "the film", "completion": " odd good" * 30, "label": False},
    ]
    over = {"data": {"path": write_rows(tmp_path / "long.jsonl", rows), "max_tokens": 1024}, "train": {"batch_size": 2}}
    prompt = {"adapter": {"method": "prompt", "tokens": virtual}}
    done = run("kto", base, tmp_path / "fresh", over | prompt)
    assert longest_allowed(recipe("kto", base, tmp_path / "l", over | prompt)) == 128 - virtual
    on = {"adapter": {"method": "prompt", "tokens": 7}}
    assert longest_allowed(recipe("kto", done.model, tmp_path / "on", over | on)) == 128 - virtual
    other = {"reference": {"source": "model", "path": str(done.model)}}
    assert longest_allowed(recipe("kto", base, tmp_path / "other", over | other)) == 128 - virtual
    assert longest_allowed(recipe("kto", base, tmp_path / "none", over)) == 128


def test_a_last_step_or_held_out_rows_of_one_are_refused_before_the_run(base, tmp_path: Path):
    config = recipe_dict("kto", base, tmp_path, {"train": {"batch_size": 11}})
    config["train"].pop("steps")
    with pytest.raises(ConfigError, match=r"each needs 2 or more, and the last one would have 1: set train\.steps"):
        accord.train(config, quiet=True)
    with pytest.raises(ConfigError, match="needs 2 or more held-out rows, and there is 1"):
        run("kto", base, tmp_path, {"data": {"eval_fraction": 0.05}})
    assert not (tmp_path / "run").exists()


def test_apo_with_kl_is_refused():
    with pytest.raises(ValueError, match="has no meaning"):
        KTOConfig(loss="apo_zero_unpaired", kl=True)
    assert KTOConfig(loss="apo_zero_unpaired").kl is False


def rows(up: int, down: int) -> list[EncodedLabelled]:
    sequence = TokenSequence((1, 2), (False, True))
    return [EncodedLabelled(sequence, n < up) for n in range(up + down)]


@pytest.mark.parametrize(
    ("up", "down", "weights", "cure"),
    [
        (50, 50, {}, None),
        (40, 30, {}, None),
        (30, 60, {"desirable_weight": 2.0}, None),
        (20, 80, {}, "algorithm.desirable_weight between 4 and 5.33"),
        (80, 20, {}, "algorithm.undesirable_weight between 3 and 4"),
        (60, 60, {"undesirable_weight": 2.0}, "algorithm.desirable_weight between 2 and 2.67"),
    ],
)
def test_balance_of_the_labels(up, down, weights, cure):
    notes = balance(KTOConfig(**weights), rows(up, down))
    assert len(notes) == (cure is not None)
    if cure is not None:
        assert notes[0].endswith(cure)
        key, low, high = cure.removeprefix("algorithm.").replace(" between ", " ").replace(" and ", " ").split()
        for weight in (float(low), float(high)):
            mended = balance(
                KTOConfig(**weights | {key: weight * (0.995 if weight == float(high) else 1.005)}), rows(up, down)
            )
            assert mended == [], "the weight that it names mends it"


@pytest.mark.parametrize(("up", "label"), [(5, "up"), (0, "down")])
def test_labels_that_are_all_the_same(up, label):
    assert one_sided(rows(up, 5 - up)) == balance(KTOConfig(), rows(up, 5 - up))
    assert f"all 5 rows have a thumb {label}" in one_sided(rows(up, 5 - up))[0]
    assert one_sided(rows(1, 4)) == []


def test_the_note_is_shown(base, tmp_path: Path, capsys):
    only_up = [row | {"label": True} for row in labelled(6)] + [row | {"label": False} for row in labelled(2)]
    config = recipe_dict("kto", base, tmp_path, {"data": {"path": write_rows(tmp_path / "rows.jsonl", only_up)}})
    accord.train(config)
    assert "note: 6 thumbs up and 2 down weigh 3 : 1" in capsys.readouterr().out
