"""The recipe's adapters as peft says them."""

from __future__ import annotations

import peft
import pytest

from accord.config import METHODS, IA3Config, LoraConfig, PrefixConfig, PromptConfig, PTuningConfig
from accord.errors import ConfigError
from accord.model.loading import make_skeleton, read_config
from accord.model.methods import METHOD_OF, check_targets, peft_config
from model.kinds import KINDS


def test_every_method_has_peft_s_name():
    assert set(METHOD_OF.values()) == set(METHODS)
    for config in KINDS.values():
        made = peft_config(config, "base")
        assert METHOD_OF[made.peft_type.value] == config.method
        assert made.task_type == "CAUSAL_LM" and not made.inference_mode


def test_lora_with_its_options():
    config = peft_config(LoraConfig(r=5, alpha=7.5, dropout=0.1, targets=("q_proj",)), "base")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (5, 7.5, 0.1, {"q_proj"})
    assert not config.use_rslora and not config.use_dora
    both = peft_config(LoraConfig(rslora=True, dora=True), "base")
    assert both.use_rslora and both.use_dora and both.target_modules == "all-linear"
    assert peft_config(LoraConfig(targets=r".*\.mlp\..*"), "base").target_modules == r".*\.mlp\..*"


def test_adalora_with_its_options():
    config = METHODS["adalora"](
        init_r=9, target_r=3, alpha=5, every=4, orthogonality=0.1, beta1=0.7, beta2=0.6, dropout=0.2
    )
    made = peft_config(config, "base")
    assert (made.init_r, made.target_r, made.lora_alpha, made.deltaT) == (9, 3, 5, 4)
    assert (made.orth_reg_weight, made.beta1, made.beta2, made.lora_dropout) == (0.1, 0.7, 0.6, 0.2)


def test_ia3_with_its_options():
    assert peft_config(IA3Config(), "base").target_modules is None
    made = peft_config(IA3Config(targets=("k", "d"), feedforward=("d",)), "base")
    assert made.target_modules == {"k", "d"} and made.feedforward_modules == {"d"}


@pytest.mark.parametrize(
    ("config", "init", "text", "tokenizer"),
    [
        (PromptConfig(init="random"), "RANDOM", None, None),
        (PromptConfig(), "SAMPLE_VOCAB", None, None),
        (PromptConfig(text="good"), "TEXT", "good", "base"),
    ],
)
def test_prompt_tuning_with_its_starts(config, init, text, tokenizer):
    made = peft_config(config, "base")
    assert (made.prompt_tuning_init, made.prompt_tuning_init_text, made.tokenizer_name_or_path) == (
        init,
        text,
        tokenizer,
    )
    assert made.num_virtual_tokens == 20


def test_prefixes_and_p_tuning_with_their_networks():
    assert peft_config(PrefixConfig(), "base").init_weights is None
    assert peft_config(PrefixConfig(init="zero"), "base").init_weights == "zero"
    made = peft_config(PrefixConfig(tokens=4, projection=True, hidden=9), "base")
    assert (made.num_virtual_tokens, made.prefix_projection, made.encoder_hidden_size) == (4, True, 9)
    made = peft_config(PTuningConfig(tokens=4, encoder="lstm", hidden=9, layers=3, dropout=0.1), "base")
    assert made.encoder_reparameterization_type == peft.PromptEncoderReparameterizationType.LSTM
    assert (made.encoder_hidden_size, made.encoder_num_layers, made.encoder_dropout) == (9, 3, 0.1)


@pytest.mark.parametrize(
    ("family", "targets", "refused"),
    [
        ("mamba", ["in_proj", "x_proj"], "x_proj"),
        ("jamba", ["dt_proj"], "dt_proj"),
        ("jamba", r".*mamba\.dt_.*", "dt_proj"),
        ("jamba", ["x_proj"], None),
        ("jamba", "all-linear", None),
        ("jamba", None, None),
        ("llama", ["q_proj"], None),
    ],
)
def test_layers_that_are_read_past_an_adapter_are_no_targets(family, targets, refused, model_folder):
    base = str(model_folder(family))
    skeleton = make_skeleton(base, read_config(base))
    if refused is None:
        check_targets(targets, base, skeleton)
        return
    with pytest.raises(
        ConfigError, match=rf"adapter.targets: .* multiplies with the weight of {refused} itself .* leave"
    ):
        check_targets(targets, base, skeleton)
