"""From a config.json to the shape of its model: one function a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from accord.errors import ModelError
from accord.forecast.hybrids import jamba, mamba, t5
from accord.forecast.shapes import Architecture, Config, Experts, Layer, Matrix, gated, split


def architecture(config: Config, where: str = "config.json") -> Architecture:
    """The shape of the model of a config.json.

    Args:
        config: its content.
        where: its path, for messages.

    Raises:
        ModelError: a family that is not known here, and that does not look like Llama, or a key is missing.
    """
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    guess = family is None
    if family is None:
        if not {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"} <= set(config):
            raise ModelError(
                f"{where}: no forecast for model_type {kind!r}; known are {', '.join(sorted(FAMILIES))}, and what is shaped "
                "like Llama"
            )
        family = _llama
    try:
        made = family(config)
    except KeyError as error:
        raise ModelError(f"{where} has no key {error}, which a model of type {kind} needs") from error
    return _with(made, family=kind, approximate=f"{kind} is taken for a Llama" if guess else made.approximate)


def _with(made: Architecture, **changes: Any) -> Architecture:
    given = str(made.facts.get("dtype") or made.facts.get("torch_dtype") or "float32").removeprefix("torch.")
    kinds: list[Layer] = []
    for layer in made.layers:  # equal layers become one object, by which they are told
        kinds += [] if layer in kinds else [layer]
    layers = tuple(kinds[kinds.index(layer)] for layer in made.layers)
    return dataclasses.replace(made, dtype=given, layers=layers, **changes)


def _windows(config: Config, count: int, default: list[str]) -> list[int | None]:
    """The sliding window of each layer, `None` where a token sees all."""
    kinds = config.get("layer_types") or default
    window = config.get("sliding_window")
    return [window if kinds[i] == "sliding_attention" else None for i in range(count)]


def _llama(config: Config) -> Architecture:
    """Llama and what is shaped like it: Mistral, Qwen 2, Qwen 3, Granite, Cohere, Mixtral, Qwen 3 MoE."""
    kind = config.get("model_type")
    hidden, count = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    dim = config.get("head_dim") or hidden // heads
    qk_norm = kind in ("qwen3", "qwen3_moe")
    one_norm = kind == "cohere"
    attention_bias = kind == "qwen2" or bool(config.get("attention_bias", False))
    sliding = kind == "mistral" and config.get("sliding_window")
    windows = _windows(config, count, ["sliding_attention" if sliding else "full_attention"] * count)
    experts = _experts(config, hidden) if kind in ("mixtral", "qwen3_moe") else None
    attention = split(hidden, heads, kv, dim, attention_bias, False if kind == "qwen2" else None)
    layers = []
    for i in range(count):
        dense = experts is None or not _is_sparse(config, i)
        forward = gated(hidden, config["intermediate_size"], bool(config.get("mlp_bias", False))) if dense else {}
        layers.append(
            Layer(
                {**attention, **forward},
                heads,
                kv,
                dim,
                norms=hidden * (1 if one_norm else 2) + (2 * dim if qk_norm else 0),
                norm="cohere" if one_norm else "rms",
                activation=str(config.get("hidden_act", "silu")),
                window=windows[i],
                qk_norm=qk_norm,
                parallel="one norm" if one_norm else "no",
                attention_dropout=float(config.get("attention_dropout") or 0.0),
                experts=None if dense else experts,
            )
        )
    tied = bool(config.get("tie_word_embeddings", kind == "cohere"))
    return Architecture(
        str(kind),
        hidden,
        config["vocab_size"],
        tuple(layers),
        tied,
        hidden,
        other=hidden,
        facts=config,
        final_norm="cohere" if one_norm else "rms",
    )


def _experts(config: Config, hidden: int) -> Experts:
    count = config.get("num_local_experts") or config.get("num_experts") or 8
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    return Experts(count, config.get("num_experts_per_tok") or 2, hidden, width)


def _is_sparse(config: Config, index: int) -> bool:
    """Whether a layer of Qwen 3 MoE has experts; all of Mixtral's have."""
    step = config.get("decoder_sparse_step") or 1
    return index not in (config.get("mlp_only_layers") or ()) and (index + 1) % step == 0


def _gemma3(config: Config) -> Architecture:
    text = config.get("text_config", config)
    hidden, count = text["hidden_size"], text["num_hidden_layers"]
    heads, kv, dim = text["num_attention_heads"], text["num_key_value_heads"], text.get("head_dim") or 256
    every = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or 6
    usual = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    windows = _windows({"sliding_window": 4096, **text}, count, usual)
    matrices = split(hidden, heads, kv, dim, bool(text.get("attention_bias", False)))
    matrices |= gated(hidden, text["intermediate_size"])
    layers = tuple(
        Layer(
            matrices,
            heads,
            kv,
            dim,
            norms=4 * hidden + 2 * dim,
            norm="gemma",
            activation=str(text.get("hidden_activation", "gelu_pytorch_tanh")),
            window=windows[i],
            qk_norm=True,
            sandwich=True,
        )
        for i in range(count)
    )
    tower, why = 0, None
    if "vision_config" in config:
        tower = _tower(config["vision_config"], hidden)
        why = "the image tower is counted and not followed: no text reaches it"
    vocabulary = text.get("vocab_size", 262_208)
    tied = bool(config.get("tie_word_embeddings", True))
    facts = {"dtype": text.get("dtype") or text.get("torch_dtype"), **config}
    return Architecture(
        "gemma3",
        hidden,
        vocabulary,
        layers,
        tied,
        hidden,
        hidden + tower,
        facts=facts,
        final_norm="gemma",
        approximate=why,
    )


def _tower(vision: Config, hidden: int) -> int:
    """Parameters of SigLIP and of the projector behind it."""
    width, deep = vision.get("hidden_size", 768), vision.get("intermediate_size", 3072)
    patch, side = vision.get("patch_size", 16), vision.get("image_size", 224)
    block = 4 * (width * width + width) + 2 * width * deep + width + deep + 4 * width
    patches = (side // patch) ** 2
    seen = 3 * patch * patch * width + width + patches * width
    head = 0
    if vision.get("vision_use_head", True):
        head = 4 * (width * width + width) + 2 * width * deep + width + deep + 2 * width + width
    return vision.get("num_hidden_layers", 12) * block + seen + 2 * width + head + width * hidden + width


def _gpt2(config: Config) -> Architecture:
    hidden = config.get("n_embd", config.get("hidden_size", 768))
    count, heads = config.get("n_layer", 12), config.get("n_head", 12)
    if "num_hidden_layers" in config:
        count, heads = config["num_hidden_layers"], config.get("num_attention_heads", heads)
    width = config.get("n_inner") or 4 * hidden
    layer = Layer(
        {
            "qkv": Matrix("c_attn", hidden, 3 * hidden, True),
            "o": Matrix("c_proj", hidden, hidden, True),
            "up": Matrix("c_fc", hidden, width, True),
            "down": Matrix("c_proj", width, hidden, True),
        },
        heads,
        heads,
        hidden // heads,
        norms=4 * hidden,
        norm="layer",
        activation=str(config.get("activation_function", "gelu_new")),
        rotary=0.0,
        dropout=float(config.get("resid_pdrop", 0.1)),
        attention_dropout=float(config.get("attn_pdrop", 0.1)),
    )
    positions = config.get("n_positions", config.get("max_position_embeddings", 1024)) * hidden
    return Architecture(
        "gpt2",
        hidden,
        config.get("vocab_size", 50257),
        (layer,) * count,
        bool(config.get("tie_word_embeddings", True)),
        hidden,
        other=positions + 2 * hidden,
        facts=config,
        final_norm="layer",
    )


def _gpt_neox(config: Config) -> Architecture:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    bias = bool(config.get("attention_bias", True))
    rope = config.get("rope_parameters") or {}
    layer = Layer(
        {
            "qkv": Matrix("query_key_value", hidden, 3 * hidden, bias),
            "o": Matrix("dense", hidden, hidden, bias),
            "up": Matrix("dense_h_to_4h", hidden, config["intermediate_size"], True),
            "down": Matrix("dense_4h_to_h", config["intermediate_size"], hidden, True),
        },
        heads,
        heads,
        hidden // heads,
        norms=4 * hidden,
        norm="layer",
        activation=str(config.get("hidden_act", "gelu")),
        rotary=float(rope.get("partial_rotary_factor") or config.get("rotary_pct") or 0.25),
        parallel="two norms" if config.get("use_parallel_residual", True) else "no",
        dropout=float(config.get("hidden_dropout", 0.0)),
        attention_dropout=float(config.get("attention_dropout") or 0.0),
    )
    return Architecture(
        "gpt_neox",
        hidden,
        config["vocab_size"],
        (layer,) * config["num_hidden_layers"],
        bool(config.get("tie_word_embeddings", False)),
        hidden,
        other=2 * hidden,
        facts=config,
        final_norm="layer",
    )


def _bloom(config: Config) -> Architecture:
    hidden = config.get("hidden_size", config.get("n_embed", 64))
    heads = config.get("n_head", config.get("num_attention_heads", 8))
    layer = Layer(
        {
            "qkv": Matrix("query_key_value", hidden, 3 * hidden, True),
            "o": Matrix("dense", hidden, hidden, True),
            "up": Matrix("dense_h_to_4h", hidden, 4 * hidden, True),
            "down": Matrix("dense_4h_to_h", 4 * hidden, hidden, True),
        },
        heads,
        heads,
        hidden // heads,
        norms=4 * hidden,
        norm="layer",
        activation="bloom",
        attention="eager",
        rotary=0.0,
        dropout=float(config.get("hidden_dropout", 0.0)),
        attention_dropout=float(config.get("attention_dropout") or 0.0),
    )
    return Architecture(
        "bloom",
        hidden,
        config.get("vocab_size", 250880),
        (layer,) * config.get("n_layer", config.get("num_hidden_layers", 2)),
        bool(config.get("tie_word_embeddings", True)),
        hidden,
        other=4 * hidden,
        reads="rows",
        facts=config,
        final_norm="layer",
        approximate="rows of one length go through together, so attention depends on how the lengths fall",
    )


def _opt(config: Config) -> Architecture:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    narrow = config.get("word_embed_proj_dim") or hidden
    bias, affine = bool(config.get("enable_bias", True)), bool(config.get("layer_norm_elementwise_affine", True))
    matrices = split(hidden, heads, heads, hidden // heads, bias)
    matrices["o"] = Matrix("out_proj", hidden, hidden, bias)
    matrices |= {
        "up": Matrix("fc1", hidden, config["ffn_dim"], bias),
        "down": Matrix("fc2", config["ffn_dim"], hidden, bias),
    }
    layer = Layer(
        matrices,
        heads,
        heads,
        hidden // heads,
        norms=4 * hidden * affine,
        norm="layer",
        activation=str(config.get("activation_function", "relu")),
        rotary=0.0,
        dropout=float(config.get("dropout", 0.1)),
        attention_dropout=float(config.get("attention_dropout") or 0.0),
    )
    before = bool(config.get("do_layer_norm_before", True)) and not config.get("_remove_final_layer_norm", False)
    other = (config["max_position_embeddings"] + 2) * hidden + 2 * hidden * (before and affine)
    other += 2 * narrow * hidden if narrow != hidden else 0
    return Architecture(
        "opt",
        hidden,
        config["vocab_size"],
        (layer,) * config["num_hidden_layers"],
        bool(config.get("tie_word_embeddings", True)),
        narrow,
        other=other,
        facts=config,
        final_norm="layer",
    )


FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "granite", "cohere", "mixtral", "qwen3_moe"), _llama),
    **dict.fromkeys(("gemma3", "gemma3_text"), _gemma3),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "opt": _opt,
    "jamba": jamba,
    "mamba": mamba,
    **dict.fromkeys(("t5", "mt5", "umt5"), t5),
}
"""`model_type` -> its shape."""
