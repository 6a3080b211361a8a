"""Passes of a recipe: constants that are those of the code, and tall models that need not be counted layer by layer."""

from __future__ import annotations

from typing import Literal

import pytest

from accord.config import LoraConfig, ReferenceConfig, RolloutConfig
from accord.forecast import blocks, passes
from accord.forecast.devices import parse_device
from accord.forecast.families import architecture
from accord.forecast.memory import forecast
from accord.forecast.passes import Passes
from accord.forecast.residents import residents
from accord.forecast.workload import workload
from accord.ops import attention, logprobs
from forecast.recipes import LLAMA_7B, recipe_of, shape_folder

WIDE = LLAMA_7B | {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "vocab_size": 512}


def test_a_tile_is_as_large_as_the_code_makes_it():
    assert passes.TILE_ELEMENTS == logprobs.TILE_ELEMENTS
    assert passes.BLOCK_ELEMENTS == logprobs.BLOCK_ELEMENTS
    assert passes.OWN_BACKWARD == attention.LONGEST
    quantized = pytest.importorskip("accord.model.quantized")
    assert blocks.TILE == quantized.TILE


@pytest.mark.parametrize("adapter", [{"r": 8}, None])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tokens", [8, 64, 512])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("vocabulary", [512, 65536])
def test_a_tall_model_is_what_its_layers_are(adapter, checkpointing, tokens, several, vocabulary, tmp_path):
    """Few tokens: gradients outweigh activations, and the backward pass peaks at its end; with a large vocabulary only from a
    height on, since below it the output layer's gradient is the peak."""
    folder = shape_folder(tmp_path, WIDE | {"num_hidden_layers": 60, "vocab_size": vocabulary})
    recipe = recipe_of(
        "sft",
        folder,
        adapter=adapter,
        train={"batch_size": 2, "micro_batch_tokens": tokens, "activation_checkpointing": checkpointing},
        data={"max_tokens": tokens},
    )
    made = Passes(recipe, residents(recipe), workload(recipe), parse_device("24GiB"))
    (learner,) = made.held.learners
    whole = made._at_height(learner, several, 60)
    assert made._trained(learner, several) == whole


def test_text_beside_the_rewards_counts_where_it_is_longer(tmp_path):
    folder = shape_folder(tmp_path, WIDE)
    sizes = {"train": {"batch_size": 8, "micro_batch_tokens": 4096}, "rollout": {"max_new_tokens": 16}}
    plain = forecast(recipe_of("ppo", folder, **sizes, data={"max_prompt_tokens": 16}), parse_device("24GiB"))
    peaks = [plain.peak]
    for longest in (16, 2048):
        ptx = {"data": {"path": "text.jsonl", "max_tokens": longest}, "batch_size": 2}
        told = forecast(
            recipe_of("ppo", folder, **sizes, data={"max_prompt_tokens": 16}, ptx=ptx), parse_device("24GiB")
        )
        peaks.append(told.peak)
    assert peaks[0] == peaks[1] < peaks[2]
    alone = forecast(
        recipe_of("sft", folder, train={"batch_size": 2, "micro_batch_tokens": 4096}, data={"max_tokens": 2048}),
        parse_device("24GiB"),
    )
    own = ("activations", "logits tiles")
    assert sum(told.of("update", what) for what in own) == pytest.approx(
        sum(alone.of("update", what) for what in own), rel=0.03
    )


def test_what_an_update_needs_adds_up_to_its_peak(tmp_path):
    folder = shape_folder(tmp_path, WIDE)
    recipe = recipe_of("ppo", folder, train={"batch_size": 8})
    made = Passes(recipe, residents(recipe), workload(recipe), parse_device("24GiB"))
    moments = list(made.update(1))
    assert [moment[-1].role for moment in moments] == ["policy", "critic", "all"]
    policy, critic, step = ({(t.role, t.what): t.bytes for t in moment} for moment in moments)
    assert critic["policy", "gradients"] == step["policy", "gradients"] > 0
    peak, _, _ = made._trained(made.held.learners[0], False)
    assert sum(policy.values()) == max(peak.forward, peak.backward)


class Engine(RolloutConfig):
    """The rollout section of an engine that chooses its rows and folds adapters in."""

    max_sequences: int | Literal["auto"] = "auto"  # type: ignore[assignment]
    merge_adapter: bool | Literal["auto"] = "auto"


def test_an_engine_that_chooses_its_rows_takes_a_share_of_the_device(tmp_path):
    folder = shape_folder(tmp_path, LLAMA_7B)
    recipe = recipe_of("grpo", folder, train={"batch_size": 1024}, data={"max_prompt_tokens": 96})
    chosen = recipe.model_copy(update={"rollout": Engine(samples=8, max_new_tokens=32)})
    row = 128 * 32 * 2 * 4096 * 2
    for where, rows in (("24GiB", None), ("640GiB", 256)):
        device = parse_device(where)
        made = forecast(chosen, device)
        weights = made.of("rollout", "base")
        assert made.of("rollout", "KV cache") == (rows or (device.bytes - weights) // 4 // row) * row
    assert made.of("rollout", "folded adapter") == 0  # 32 steps are too few for it to pay
    longer = chosen.model_copy(update={"rollout": Engine(samples=8, max_new_tokens=64)})
    assert forecast(longer, device).of("rollout", "folded adapter") == 2 * architecture(LLAMA_7B).linear_parameters


def test_lora_in_the_base_s_own_type_keeps_less(tmp_path):
    recipe = recipe_of("sft", shape_folder(tmp_path, LLAMA_7B | {"num_hidden_layers": 2}))
    told = {
        kind: forecast(recipe.model_copy(update={"adapter": LoraConfig(dtype=kind)}), parse_device("80GiB"))
        for kind in ("auto", "float32")
    }
    assert told["auto"].of("update", "activations") < 0.75 * told["float32"].of("update", "activations")
    assert told["auto"].of("update", "gradients") == told["float32"].of("update", "gradients")


def test_offloaded_weights_are_there_only_while_they_score(tmp_path):
    class Away(ReferenceConfig):
        offload: bool = True

    recipe = recipe_of("grpo", shape_folder(tmp_path, WIDE), adapter=None)
    away = recipe.model_copy(update={"reference": Away()})
    accelerator, cpu = parse_device("24GiB"), parse_device("cpu:24GiB")
    size = forecast(recipe, accelerator).of("update", "base", "reference")
    told = forecast(away, accelerator)
    assert size > 0
    assert [told.of(phase, "base", "reference") for phase in told.phases] == [0, 0, size, 0]
    assert forecast(away, cpu).peak == forecast(recipe, cpu).peak
