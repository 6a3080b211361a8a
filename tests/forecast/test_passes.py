"""Passes of a recipe: constants that are those of the code, and tall models that need not be counted layer by layer."""

from __future__ import annotations

import pytest

from accord.forecast import passes
from accord.forecast.devices import parse_device
from accord.forecast.passes import Passes
from accord.forecast.residents import residents
from accord.forecast.workload import workload
from accord.ops import logprobs
from forecast.recipes import LLAMA_7B, recipe_of, shape_folder

WIDE = LLAMA_7B | {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "vocab_size": 512}


def test_a_tile_is_as_large_as_the_code_makes_it():
    assert passes.TILE_ELEMENTS == logprobs.TILE_ELEMENTS


@pytest.mark.parametrize("adapter", [{"r": 8}, None])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tokens", [8, 512])
@pytest.mark.parametrize("several", [False, True])
def test_a_tall_model_is_what_its_layers_are(adapter, checkpointing, tokens, several, tmp_path, monkeypatch):
    """Few tokens: gradients outweigh activations, and the backward pass peaks at its end."""
    folder = shape_folder(tmp_path, WIDE | {"num_hidden_layers": 30})
    recipe = recipe_of(
        "sft",
        folder,
        adapter=adapter,
        train={"batch_size": 2, "micro_batch_tokens": tokens, "activation_checkpointing": checkpointing},
        data={"max_tokens": tokens},
    )
    made = Passes(recipe, residents(recipe), workload(recipe), parse_device("24GiB"))
    (learner,) = made.held.learners
    whole = made._at_height(learner, several, 30)
    assert made._trained(learner, several) == whole


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
