"""Families of other layers than attention, and of two stacks. Parameters are exact, activations approximate."""

from __future__ import annotations

import math

from accord.forecast.shapes import Architecture, Config, Experts, Layer, Matrix, gated, split

SCAN = "the scan of a Mamba layer without its fused kernels keeps what it can, and that is only estimated"


def jamba(config: Config) -> Architecture:
    """Attention in some layers, Mamba in the others; experts in some, one feed-forward layer in the others."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    dim = hidden // heads
    count = config["num_hidden_layers"]
    chosen = config.get("num_experts_per_tok", 2)
    layers = []
    for i in range(count):
        experts = config.get("num_experts", 16)
        sparse = experts > 1 and i % config.get("expert_layer_period", 2) == config.get("expert_layer_offset", 1)
        attends = i % config.get("attn_layer_period", 8) == config.get("attn_layer_offset", 4)
        own = Experts(experts, chosen, hidden, width) if sparse else None
        forward = {} if sparse else gated(hidden, width)
        if attends:
            matrices = {**split(hidden, heads, kv, dim, False), **forward}
            layers.append(Layer(matrices, heads, kv, dim, 2 * hidden, rotary=0.0, attention="segments", experts=own))
            continue
        inner, state = config.get("mamba_expand", 2) * hidden, config.get("mamba_d_state", 16)
        rank = config.get("mamba_dt_rank", "auto")
        mixer, rest = _mixer(
            hidden,
            inner,
            state,
            math.ceil(hidden / 16) if rank == "auto" else rank,
            config.get("mamba_d_conv", 4),
            bool(config.get("mamba_conv_bias", True)),
            bool(config.get("mamba_proj_bias", False)),
        )
        rank_size = mixer["dt"].inputs
        norms = rest + rank_size + 2 * state + 2 * hidden
        layers.append(
            Layer({**mixer, **forward}, heads, kv, dim, norms, attention="mamba", experts=own, state=inner * state)
        )
    return Architecture(
        "jamba",
        hidden,
        config["vocab_size"],
        tuple(layers),
        bool(config.get("tie_word_embeddings", False)),
        hidden,
        other=hidden,
        reads="rows",
        approximate=SCAN,
        facts=config,
    )


def _mixer(
    hidden: int, inner: int, state: int, rank: int, kernel: int, conv_bias: bool, bias: bool
) -> tuple[dict[str, Matrix], int]:
    """Linear layers of a Mamba mixer, and its other parameters: the convolution, A and D."""
    matrices = {
        "in": Matrix("in_proj", hidden, 2 * inner, bias),
        "x": Matrix("x_proj", inner, rank + 2 * state),
        "dt": Matrix("dt_proj", rank, inner, True),
        "out": Matrix("out_proj", inner, hidden, bias),
    }
    return matrices, inner * kernel + inner * conv_bias + inner * state + inner


def mamba(config: Config) -> Architecture:
    """Mamba layers alone."""
    hidden, state = config["hidden_size"], config.get("state_size", 16)
    inner = config.get("intermediate_size") or config.get("expand", 2) * hidden
    rank = config.get("time_step_rank", "auto")
    matrices, rest = _mixer(
        hidden,
        inner,
        state,
        math.ceil(hidden / 16) if rank == "auto" else rank,
        config.get("conv_kernel", 4),
        bool(config.get("use_conv_bias", True)),
        bool(config.get("use_bias", False)),
    )
    layer = Layer(matrices, 1, 0, 0, rest + hidden, attention="mamba", state=inner * state)
    return Architecture(
        "mamba",
        hidden,
        config["vocab_size"],
        (layer,) * config["num_hidden_layers"],
        bool(config.get("tie_word_embeddings", True)),
        hidden,
        other=hidden,
        reads="rows",
        approximate=SCAN,
        facts=config,
    )


def t5(config: Config) -> Architecture:
    """Encoder and decoder of T5 and its kin; a token goes through one of them."""
    hidden, deep = config["d_model"], config["d_ff"]
    heads, dim = config["num_heads"], config["d_kv"]
    encoders = config["num_layers"]
    decoders = config.get("num_decoder_layers") or encoders
    way = str(config.get("feed_forward_proj", "relu"))
    forward = (
        {"gate": Matrix("wi_0", hidden, deep), "up": Matrix("wi_1", hidden, deep), "down": Matrix("wo", deep, hidden)}
        if way.startswith("gated")
        else {"up": Matrix("wi", hidden, deep), "down": Matrix("wo", deep, hidden)}
    )
    own = {name: Matrix(name, hidden, heads * dim) for name in "qkv"} | {"o": Matrix("o", heads * dim, hidden)}
    cross = {f"cross_{name}": matrix for name, matrix in own.items()}
    buckets = config.get("relative_attention_num_buckets", 32) * heads
    every = config.get("model_type") == "umt5"  # each layer has its own table of distances; T5's first layers alone

    def stack(count: int, matrices: dict[str, Matrix], norms: int) -> list[Layer]:
        activation = "gelu_new" if way == "gated-gelu" else way.removeprefix("gated-")
        rate = float(config.get("dropout_rate", 0.1))
        return [
            Layer(
                matrices,
                heads,
                heads,
                dim,
                norms * hidden + (buckets if every or i == 0 else 0),
                norm="t5",
                activation=activation,
                attention="eager",
                rotary=0.0,
                dropout=rate,
                attention_dropout=rate,
            )
            for i in range(count)
        ]

    layers = stack(encoders, {**own, **forward}, 2) + stack(decoders, {**own, **cross, **forward}, 3)
    return Architecture(
        str(config.get("model_type")),
        hidden,
        config["vocab_size"],
        tuple(layers),
        bool(config.get("tie_word_embeddings", True)),
        hidden,
        other=2 * hidden,
        reads="encoder-decoder",
        encoder_layers=encoders,
        approximate="of encoder and decoder the larger one is taken for all tokens",
        facts=config,
        final_norm="t5",
    )
