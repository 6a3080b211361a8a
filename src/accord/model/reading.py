"""How a model reads a batch: packed end to end, in rows of equal length, or as encoder and decoder.

Packed is fastest, and needs layers that are transformers' replaceable attention. Every other model reads rows: the sequences
of a batch that have one length go through it together, as [B, L] without padding, so there is no mask that could be wrong.
Both give each sequence what it would get alone. The way is chosen once, from the model's class, before its weights are read.

A packed model may compute what sequences begin with alike once (`TokenBatch.layout`): its state behind a prefix is then the keys
and values of the prefix, which any number of sequences can attend to. The states of other models, such as recurrent ones, are
not of that kind, and rows and encoders have each sequence whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedModel

from accord.batch import TokenBatch
from accord.errors import ModelError
from accord.model.attention import FLASH, SEGMENTS, packed_arguments

Way = Literal["packed", "rows", "encoder-decoder"]
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
OWN_MASKS: dict[str, Callable[[Any], bool]] = {
    "doge": lambda config: True,
    "moshi": lambda config: True,
    "phimoe": lambda config: config.sliding_window is not None,
    "qwen2_moe": lambda config: bool(config.sliding_window),
}
"""Families whose code tells attention by a mask alone what a token sees (windows that are not handed on, masks that are learnt),
by the type of the text model's config. Packed attention gets no mask, and would see everything before the token."""
ENCODER_DECODERS = ("t5", "mt5", "umt5")
"""Encoder-decoder families whose decoder starts, stops and scales as `read_pairs` assumes."""


@dataclass(frozen=True)
class Reading:
    """The way a model reads, and why it is not packed."""

    way: Way
    why: str = ""
    eager: bool = False
    """Its attention has terms that SDPA leaves out, so transformers' plain implementation is needed."""


def choose_reading(base: str, skeleton: PreTrainedModel) -> Reading:
    """The way a model reads, from its class and config alone; `skeleton` may hold no weights.

    Raises:
        ModelError: an encoder-decoder family that is not known here.
    """
    config: Any = skeleton.config
    text = config.get_text_config()
    if config.is_encoder_decoder:
        if config.model_type not in ENCODER_DECODERS:
            raise ModelError(
                f"{base}: of encoder-decoder families {', '.join(ENCODER_DECODERS)} are known here, and not "
                f"{config.model_type}, whose decoder may start or scale otherwise; take one of these, or a causal model"
            )
        return Reading("encoder-decoder", "prompt and response go through stacks of their own")
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return Reading("rows", "its attention scores are soft-capped, which packed attention does not compute", True)
    if any(name.endswith(".sinks") for name, _ in skeleton.named_parameters()):
        return Reading("rows", "its attention has sinks, which packed attention does not compute", True)
    odd = sorted(set(getattr(text, "layer_types", None) or ()) - PACKABLE_LAYERS)
    if odd:
        return Reading("rows", f"packed sequences would see each other in its layers of type {', '.join(odd)}")
    if text.model_type in OWN_MASKS and OWN_MASKS[text.model_type](text):
        return Reading("rows", "what its attention sees is in a mask alone, which packed attention does not get", True)
    if skeleton._is_stateful or not skeleton._supports_attention_backend:
        return Reading("rows", "its layers are not transformers' replaceable attention, which alone can be packed")
    return Reading("packed")


def way_of(trunk: nn.Module) -> Way:
    """The way that was chosen for a trunk when it was loaded: its attention implementation tells."""
    config: Any = getattr(trunk, "config", None)
    if config is None or getattr(config, "_attn_implementation", SEGMENTS) in (SEGMENTS, FLASH):
        return "packed"
    return "encoder-decoder" if config.is_encoder_decoder else "rows"


@dataclass(frozen=True)
class States:
    """Hidden states of a batch, those of shared tokens once."""

    computed_UH: Tensor
    """In the trunk's type."""
    place_T: Tensor | None = None
    """Where the state of each token of the batch lies, int64 [T]; `None`: where the token does."""

    def at(self, tokens: Tensor) -> Tensor:
        """States of some tokens of the batch, [..., H]; the gradient of a shared one is the sum over the sequences it is in."""
        return self.computed_UH[tokens if self.place_T is None else self.place_T[tokens]]

    def all(self) -> Tensor:
        """States of all tokens of the batch, [T, H]."""
        return self.computed_UH if self.place_T is None else self.computed_UH[self.place_T]


class KeyStore(Protocol):
    """What attention layers hand their new keys and values to, such as the cache of an engine."""

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self, layer_idx: int = 0) -> int: ...


class SharedKeys:
    """Stands where transformers expects a cache: gives a store the keys and values of each token of a batch, where some of them
    were computed once for several sequences.

    Args:
        store: gets them.
        place_T: see `States`.
    """

    def __init__(self, store: KeyStore, place_T: Tensor) -> None:
        self.store, self.place_T = store, place_T

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Computed keys and values [1, heads, U, D] of a layer, as they came; the store gets [1, heads, T, D]."""
        self.store.update(keys.index_select(2, self.place_T), values.index_select(2, self.place_T), layer)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the store."""
        return self.store.get_seq_length(layer_idx)


def read(trunk: nn.Module, batch: TokenBatch, store: KeyStore | None = None, shares: bool = False) -> States:
    """Last hidden states of a batch, the way the trunk reads.

    Args:
        trunk: turns token ids into hidden states.
        batch: packed sequences.
        store: takes the keys and values of all tokens; only for trunks that read packed batches.
        shares: compute prefixes in common once; only for such trunks, too.
    """
    way = way_of(trunk)
    if way != "packed":
        return States(read_rows(trunk, batch) if way == "rows" else read_pairs(trunk, batch))
    place_T = batch.layout.place_T if shares and batch.layout.shares else None
    if store is not None and place_T is not None:
        store = SharedKeys(store, place_T)
    arguments = packed_arguments(batch, shares) | ({} if store is None else {"past_key_values": store})
    return States(trunk(**arguments).last_hidden_state[0], place_T)


def read_rows(trunk: nn.Module, batch: TokenBatch) -> Tensor:
    """Hidden states [T, H] of sequences that go through the trunk in rows of one length.

    Floating-point sums may depend on the number of rows in their last bits, as in any batch.
    """
    bounds = batch.cu_seqlens.tolist()
    places, parts = [], []
    for length, members in grouped(range(batch.sequences), lambda n: bounds[n + 1] - bounds[n]):
        place_BL = torch.tensor(
            [[bounds[n] + t for t in range(length)] for n in members], device=batch.cu_seqlens.device
        )
        parts.append(trunk(input_ids=batch.input_ids_T[place_BL], use_cache=False).last_hidden_state.flatten(0, 1))
        places.append(place_BL.flatten())
    return _put_back(parts, places, batch)


def read_pairs(model: nn.Module, batch: TokenBatch, virtual: Virtual | None = None) -> Tensor:
    """Decoder states [T, H] of an encoder-decoder model; those of prompt tokens but the last are 0, for there are none.

    What precedes a sequence's first target is the encoder's (see `encoder_input`); the decoder reads its start token and then
    the rest. So the state before a target token lies one place before it, as in a causal model.

    Args:
        model: with both stacks.
        batch: any sequences; of one without a target, which only fills up a step, no state is read.
        virtual: virtual tokens before encoder or decoder.
    """
    bounds, targets = batch.cu_seqlens.tolist(), batch.target_mask_T.tolist()
    firsts = [_first_target(targets, *pair) for pair in pairwise(bounds)]
    ids = batch.input_ids_T.tolist()
    device = batch.cu_seqlens.device
    config: Any = model.config
    places, parts = [], []
    for (_, length), members in grouped(range(batch.sequences), lambda n: (firsts[n], bounds[n + 1] - bounds[n])):
        prompts = [encoder_input(ids[bounds[n] : bounds[n] + firsts[n]], config) for n in members]
        rest = [[config.decoder_start_token_id, *ids[bounds[n] + firsts[n] : bounds[n] + length]] for n in members]
        encoded = encode(model, torch.tensor(prompts, device=device), virtual)
        before = {} if virtual is None else {"past_key_values": virtual.before_decoder(len(members))}
        decoder: Any = model.get_decoder()  # type: ignore[operator]
        states = decoder(
            input_ids=torch.tensor(rest, device=device), encoder_hidden_states=encoded, use_cache=False, **before
        ).last_hidden_state
        parts.append(states.flatten(0, 1))
        places.append(
            torch.tensor([bounds[n] + t for n in members for t in range(firsts[n] - 1, length)], device=device)
        )
    return _put_back(parts, places, batch)


class Virtual(Protocol):
    """Virtual tokens of an encoder-decoder model, of one kind or the other; see `accord.model.prompts.VirtualTokens`."""

    def before_encoder(self) -> Tensor | None: ...

    def before_decoder(self, rows: int) -> EncoderDecoderCache | None: ...


def encode(model: nn.Module, prompts_BL: Tensor, virtual: Virtual | None = None) -> Tensor:
    """Encoder states of prompts of one length, [B, W + L, H]; W virtual tokens come first, if the encoder reads any."""
    encoder: Any = model.get_encoder()  # type: ignore[operator]
    virtual_WH = None if virtual is None else virtual.before_encoder()
    if virtual_WH is None:
        states: Tensor = encoder(input_ids=prompts_BL).last_hidden_state
        return states
    embed: Any = model.get_input_embeddings()  # type: ignore[operator]
    own_BLH = embed(prompts_BL)
    before = virtual_WH.to(own_BLH.dtype).expand(len(own_BLH), -1, -1)
    states = encoder(inputs_embeds=torch.cat([before, own_BLH], dim=1)).last_hidden_state
    return states


def encoder_input(prompt: Iterable[int], config: Any) -> list[int]:
    """What the encoder reads: the prompt, closed by EOS as T5's own tokenizer closes each text."""
    prompt, eos = list(prompt), config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    return prompt if eos is None or prompt[-1:] == [eos] else [*prompt, eos]


def grouped(items: Iterable[int], key: Any) -> Iterator[tuple[Any, list[int]]]:
    """Items that have the same key, in order of first appearance."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    yield from groups.items()


def output_scale(trunk: nn.Module) -> float:
    """Factor of the hidden states as the output layer reads them, which is a factor of the logits: 1 for most families.

    It is told by the family's code and not by a key's name: Granite divides the logits by `logits_scaling`, and HyperCLOVA X
    multiplies them by it. T5 with tied weights scales its states by d_model**-0.5, mT5 does not.
    """
    config: Any = getattr(trunk, "config", None)
    scale = SCALES.get(getattr(config, "model_type", None))
    return 1.0 if scale is None else float(scale(config))


SCALES: dict[str | None, Callable[[Any], float]] = {
    "t5": lambda config: config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
    "umt5": lambda config: config.d_model**-0.5 if config.tie_word_embeddings else 1.0,
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
    "granite": lambda config: 1 / config.logits_scaling,
    "granitemoe": lambda config: 1 / config.logits_scaling,
    "falcon_h1": lambda config: config.lm_head_multiplier,
}
"""Families whose code scales the logits, by the type of the text model's config."""
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier", "output_multiplier")
"""Keys by which transformers' families scale the logits, each in its own way: 1 leaves them as they are."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "unpadded_vocab_size")
"""Keys of what no factor can stand in for: a tanh over the logits, or a part of them left out."""


def refuse_transform(base: str, text: Any) -> None:
    """Refuse a family whose code does more to the logits than is known here; `text` is the text model's config.

    Raises:
        ModelError: it names the key.
    """
    scales = () if text.model_type in SCALES else FACTORS
    neutral: dict[str, tuple[Any, ...]] = dict.fromkeys(scales, (None, 0, 1)) | dict.fromkeys(CAPS, (None, 0))
    for key, without in neutral.items():
        value = getattr(text, key, None)
        if value not in without:
            raise ModelError(
                f"{base}: its config sets {key} = {value}, a transform of the logits that is not supported for "
                f"{text.model_type}: log-probabilities are computed from the output layer here, and would leave it out"
            )


def refuse_head(base: str, skeleton: PreTrainedModel) -> None:
    """Refuse a model with weights between its trunk and its output layer, such as the dense layer and norm of BERT's kin.

    Raises:
        ModelError: it names one.
    """
    trunk: Any = skeleton.base_model
    output = skeleton.get_output_embeddings()
    if trunk is skeleton or output is None:
        return
    known = {id(parameter) for part in (trunk, output) for parameter in part.parameters()}
    between = [name for name, parameter in skeleton.named_parameters() if id(parameter) not in known]
    if between:
        raise ModelError(
            f"{base}: a {type(skeleton).__name__} has weights between its hidden states and its output layer, such as "
            f"{between[0]}: log-probabilities are computed from the output layer here, and would leave them out"
        )


def _first_target(targets: list[bool], start: int, end: int) -> int:
    """Where the response begins. In a sequence that only fills up a step, and has no target, it is the last token: one must be
    the decoder's, and what it says there is not read."""
    return targets.index(True, start, end) - start if True in targets[start:end] else max(1, end - start - 1)


def _put_back(parts: list[Tensor], places: list[Tensor], batch: TokenBatch) -> Tensor:
    """States of rows to where their tokens lie in the batch."""
    states_KH, place_K = torch.cat(parts), torch.cat(places)
    return states_KH.new_zeros(batch.tokens, states_KH.shape[1]).index_copy(0, place_K, states_KH)
