"""The whole forecast: by hand for a tiny recipe, monotone, and the field's 20 billion in 24 GB."""

from __future__ import annotations

import pytest

from accord.forecast.devices import GIB, parse_device
from accord.forecast.memory import CONTEXT, FRAGMENTATION, PROCESS, forecast
from accord.forecast.passes import HEAP_SHARE, Passes
from accord.forecast.residents import residents
from accord.forecast.workload import workload
from forecast.recipes import LLAMA_7B, NEOX_20B, TINY, recipe_of, shape_folder

BIG = parse_device("24GiB")
SMALL = {"train": {"batch_size": 2, "micro_batch_tokens": 64}, "data": {"max_tokens": 8}}


def test_a_tiny_recipe_by_hand(tmp_path):
    """One layer, hidden 8, feed-forward 16, vocabulary 10, two sequences of 8 tokens, all weights in float32."""
    recipe = recipe_of("sft", shape_folder(tmp_path, TINY), adapter=None, **SMALL)
    told = forecast(recipe, parse_device("cpu:1GiB"))
    attention, mlp, norms, ends = 4 * 8 * 8, 3 * 8 * 16, 3 * 8, 2 * 10 * 8
    weights = attention + mlp + norms + ends
    assert told.of("update", "base") == 4 * weights == 3296
    assert told.of("update", "optimiser") == 8 * weights
    stream, inner, number = (
        16 * 8 * 4,
        16 * 16 * 4,
        16 * 4,
    )  # bytes of 16 tokens of float32: hidden, feed-forward, one number
    saved = (
        3 * (2 * stream + number)  # three norms: their input, the scaled input, a root a token
        + 2 * stream  # what q, k, v read; what gate and up read
        + 3 * stream  # q and k as they were turned, and v
        + stream + 2 * number  # what attention gives, and a sum a token for each of two heads
        + stream  # what o reads
        + 4 * inner  # gate, its silu, up, their product
        + stream  # what the output layer reads
        + 2 * 4 * number  # cosine and sine of four features
    )  # fmt: skip
    assert saved == 12_096
    held = residents(recipe)
    passes = Passes(recipe, held, workload(recipe), told.device)
    peak, gradients, _ = passes._trained(held.learners[0], several=False)
    assert (peak.saved, gradients) == (saved, 4 * weights)
    assert told.peak_phase == "update"
    assert PROCESS < told.peak < PROCESS + 60_000


def test_rows_are_no_longer_than_the_models_positions(tmp_path):
    folder = shape_folder(tmp_path, TINY | {"max_position_embeddings": 20})
    recipe = recipe_of("sft", folder, data={"max_tokens": 512})
    assert forecast(recipe, BIG).work.longest == 20
    assert forecast(recipe, BIG, longest=7).work.longest == 7
    prompts = recipe_of("sft", folder, data={"max_tokens": 512}, adapter={"method": "prompt", "tokens": 5})
    assert forecast(prompts, BIG).work.longest == 15


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"train": {"batch_size": 4}}, {"train": {"batch_size": 8}}),
        ({"train": {"micro_batch_tokens": 256}}, {"train": {"micro_batch_tokens": 512}}),
        ({"data": {"max_tokens": 64}}, {"data": {"max_tokens": 128}}),
        ({"adapter": {"r": 4}}, {"adapter": {"r": 8}}),
        ({"adapter": {"method": "ia3"}}, {"adapter": {"method": "lora", "dtype": "float32"}}),
        ({"adapter": {"method": "lora"}}, {"adapter": None}),
        ({"model": {"dtype": "bfloat16"}}, {"model": {"dtype": "float32"}}),
        ({"model": {"quantize": "nf4"}}, {"model": {"quantize": "int8"}}),
        (
            {"model": {"quantize": "int8"}, "adapter": {"dtype": "float32"}},
            {"model": {"quantize": "none"}, "adapter": {"dtype": "float32"}},
        ),
        ({"train": {"activation_checkpointing": True}}, {"train": {"activation_checkpointing": False}}),
        ({"train": {"optimizer": "sgd"}}, {"train": {"optimizer": "adamw"}}),
        ({"placement": {"allocator": "lean"}}, {"placement": {"allocator": "fast"}}),
    ],
)
@pytest.mark.parametrize("device", ["24GiB", "cpu:24GiB"])
def test_more_of_anything_never_takes_less(less, more, device, tmp_path):
    config = LLAMA_7B | {
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_attention_heads": 8,
    }
    folder = shape_folder(tmp_path, config)
    base = {"train": {"batch_size": 4, "micro_batch_tokens": 512}, "data": {"max_tokens": 128}}

    def peak(over):
        given = {
            key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in over.items()
        }
        return forecast(recipe_of("sft", folder, **{**base, **given}), parse_device(device)).peak

    small, large = peak(less), peak(more)
    same_on_accelerators = "placement" in less and device == "24GiB"
    assert small == large if same_on_accelerators else small < large


def test_twenty_billion_in_int8_with_lora_and_a_shared_reference_fit_24_gigabytes(tmp_path):
    """Reinforcement learning on a GPT-NeoX of 20.6 billion parameters: one base in int8, LoRA, the reference on the same base."""
    folder = shape_folder(tmp_path, NEOX_20B)
    sizes = {
        "train": {"batch_size": 8, "micro_batch_tokens": 128, "activation_checkpointing": True},
        "data": {"max_tokens": 128},
        "rollout": {"max_new_tokens": 64},
    }
    told = forecast(recipe_of("ppo", folder, model={"quantize": "int8"}, **sizes), BIG)
    assert told.fits
    assert 21 * GIB < told.peak < 24 * GIB
    assert told.of("update", "base", "reference") == 0  # shared
    assert told.of("update", "base") / 1e9 == pytest.approx(21.19, abs=0.01)
    packed = forecast(recipe_of("ppo", folder, model={"quantize": "nf4"}, **sizes), BIG)
    assert packed.peak < 15 * GIB
    whole = forecast(recipe_of("ppo", folder, **sizes), BIG)
    assert not whole.fits


def test_rollouts_take_a_cache_of_rows_and_columns(tmp_path):
    recipe = recipe_of(
        "grpo",
        shape_folder(tmp_path, LLAMA_7B),
        train={"batch_size": 32},
        data={"max_prompt_tokens": 96},
        rollout={"max_new_tokens": 32, "max_sequences": 16},
    )
    told = forecast(recipe, BIG)
    assert list(told.phases) == ["load", "rollout", "score", "update"]
    assert told.of("rollout", "KV cache") == 16 * 128 * 32 * 2 * 4096 * 2


def test_waste_is_a_share_of_what_comes_and_goes(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, LLAMA_7B))
    told = forecast(recipe, BIG)
    passing = sum(told.of("update", what) for what in ("gradients", "activations", "logits tiles", "workspace"))
    assert told.of("update", "fragmentation") == int(FRAGMENTATION * passing)
    assert told.of("update", "process") == CONTEXT
    on_cpu = forecast(recipe, parse_device("cpu:24GiB"))
    assert on_cpu.of("update", "fragmentation") > 0 < HEAP_SHARE
    assert on_cpu.of("update", "process") == PROCESS
    lean = forecast(
        recipe_of("sft", shape_folder(tmp_path, LLAMA_7B), placement={"allocator": "lean"}), parse_device("cpu:24GiB")
    )
    assert lean.of("update", "fragmentation") == 0


def test_computing_layers_again_never_needs_more(tmp_path):
    """Holes in the heap are what no backward pass needs of all that is made: the same with and without."""
    folder = shape_folder(tmp_path, LLAMA_7B)
    told = [
        forecast(recipe_of("sft", folder, train={"activation_checkpointing": on}), parse_device("cpu:64GiB"))
        for on in (False, True)
    ]
    assert told[1].of("update", "fragmentation") <= 1.01 * told[0].of("update", "fragmentation")
    assert told[1].peak < told[0].peak


def test_full_fine_tuning_of_kto_scores_beside_the_optimisers_state(tmp_path):
    told = forecast(recipe_of("kto", shape_folder(tmp_path, TINY), adapter=None), BIG)
    assert told.of("score", "optimiser") == told.of("update", "optimiser") > 0


def test_devices_that_stay_idle_are_named_and_ranks_share_a_batch(tmp_path):
    folder = shape_folder(tmp_path, LLAMA_7B)
    sizes = {"train": {"batch_size": 8, "micro_batch_tokens": 8192}, "data": {"max_tokens": 1024}}
    eight = parse_device("8xA100-80GB")
    alone = forecast(recipe_of("sft", folder, **sizes), eight)
    assert "uses one of the 8 devices" in alone.notes[0]
    shared = forecast(recipe_of("sft", folder, placement={"type": "torchrun"}, **sizes), eight)
    assert not shared.notes
    assert shared.work.update.tokens == 1024 < alone.work.update.tokens == 8192


def test_a_family_that_is_only_estimated_says_so(model_folder):
    told = forecast(recipe_of("sft", str(model_folder("jamba"))), BIG)
    assert told.notes[0].startswith("approximate: the scan of a Mamba layer")
    assert forecast(recipe_of("sft", str(model_folder("llama"))), BIG).notes == ()
