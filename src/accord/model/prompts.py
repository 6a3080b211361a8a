"""Virtual tokens before each sequence of a packed batch: prompt tuning, p-tuning and prefix tuning.

The numbers come from peft's own encoders; where they go in a packed batch is computed here, so that each sequence sees its own
copy and the result is that of peft's forward on one sequence at a time:

- Embeddings of virtual tokens (prompt tuning, p-tuning) go through the model with the sequence, and their hidden states are
  left out afterwards.
- Keys and values (prefix tuning) go before those of each sequence in every layer. As in peft they are not rotated.

In both cases the first token of a sequence has the position `tokens` and not 0. Of an encoder-decoder model the encoder reads
embeddings before the prompt, and the decoder's attention to itself gets a prefix, as in peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedModel

from accord.batch import TokenBatch
from accord.errors import ConfigError
from accord.model.attention import packed_arguments
from accord.model.reading import KeyStore, Reading


@dataclass(frozen=True)
class Places:
    """Where the tokens of a batch are once each of its sequences has virtual tokens before it."""

    own_T: Tensor
    """New places of the batch's own tokens, int64 [T]."""
    virtual_W: Tensor
    """Places of the virtual tokens, sequence by sequence, int64 [W]."""
    bounds: Tensor
    """`cu_seqlens` with virtual tokens, int32 [N+1]."""

    @classmethod
    def of(cls, batch: TokenBatch, tokens: int) -> Places:
        """Places with so many virtual tokens before each sequence."""
        device = batch.cu_seqlens.device
        before = tokens * torch.arange(batch.sequences + 1, device=device, dtype=torch.int32)
        bounds = batch.cu_seqlens + before
        own_T = torch.arange(batch.tokens, device=device) + tokens * (batch.sequence_T + 1)
        virtual_W = (bounds[:-1, None] + torch.arange(tokens, device=device)).flatten()
        return cls(own_T, virtual_W.long(), bounds)

    def join(self, own: Tensor, virtual: Tensor, dimension: int) -> Tensor:
        """Own rows and one sequence's virtual rows, the latter for each sequence, in their places along a dimension."""
        repeats = [1] * own.ndim
        repeats[dimension] = len(self.virtual_W) // virtual.shape[dimension]
        shape = list(own.shape)
        shape[dimension] = len(self.own_T) + len(self.virtual_W)
        joined = own.new_empty(shape).index_copy(dimension, self.own_T, own)
        return joined.index_copy(dimension, self.virtual_W, virtual.to(own.dtype).repeat(repeats))


def check_virtual_tokens(method: str, base: str, reading: Reading, model: PreTrainedModel) -> None:
    """Refuse methods that a model cannot carry by the way it reads, or by the width of its embeddings.

    Args:
        method: `adapter.method`, of those with virtual tokens.
        base: the model, for the message.
        reading: how it reads.
        model: it may be without weights.

    Raises:
        ConfigError: with the reason and another method.
    """
    embeddings: Any = model.get_input_embeddings()
    width = model.config.get_text_config().hidden_size
    if method != "prefix" and embeddings.weight.shape[-1] != width:
        raise ConfigError(
            f"adapter.method: {method} makes embeddings as wide as the layers of {base}, {width}, and its own are only "
            f"{embeddings.weight.shape[-1]} wide (word_embed_proj_dim): use adapter.method: prefix or lora"
        )
    if reading.way == "rows":
        raise ConfigError(
            f"adapter.method: {method} puts virtual tokens before packed sequences, and {base} is not packed: {reading.why}. "
            "Use adapter.method: lora or ia3"
        )


def fit_virtual_tokens(config: Any, model: Any) -> None:
    """Say what peft guesses wrong of an encoder-decoder model, or cannot know.

    Args:
        config: peft's, of a prompt learning method.
        model: transformers' config of the base.
    """
    config.num_transformer_submodules = 1  # a decoder would have prompts of its own, which peft's forward never reads
    if model.is_encoder_decoder and config.peft_type == peft.PeftType.PREFIX_TUNING:
        config.num_transformer_submodules = 2  # peft then makes the cache that such a decoder takes
        config.num_layers, config.num_attention_heads = model.num_decoder_layers, model.num_heads
        config.token_dim = model.num_heads * model.d_kv  # not always the width of the layers


class VirtualTokens:
    """The virtual tokens of one adapter.

    Args:
        model: peft's model of a prompt learning method over the shared base, with one adapter.
        name: of that adapter.
    """

    def __init__(self, model: peft.PeftModel, name: str) -> None:
        self.model = model
        self.encoder: nn.Module = model.prompt_encoder[name]
        config: Any = model.peft_config[name]
        self.config = config
        self.tokens: int = config.num_virtual_tokens
        """How many come before each sequence."""
        self.in_layers = config.peft_type == peft.PeftType.PREFIX_TUNING
        """Whether they are keys and values of every layer, and not embeddings."""

    def embeddings(self) -> Tensor:
        """Of methods whose virtual tokens are embeddings: [tokens, H]."""
        prompt: Tensor = self.model.get_prompt(1)[0]
        return prompt

    def before_encoder(self) -> Tensor | None:
        """What the encoder of an encoder-decoder model reads before each prompt, [tokens, H]."""
        return None if self.in_layers else self.embeddings()

    def before_decoder(self, rows: int) -> EncoderDecoderCache | None:
        """A cache for the decoder of an encoder-decoder model, the prefix's keys and values before those of each row's own."""
        if not self.in_layers:
            return None
        cache: Any = self.model.get_prompt(rows)
        return cache  # type: ignore[no-any-return]

    def places(self, batch: TokenBatch) -> Places:
        """Where the tokens of a batch go."""
        return Places.of(batch, 0 if self.in_layers else self.tokens)

    def arguments(self, trunk: nn.Module, batch: TokenBatch, store: KeyStore | None = None) -> dict[str, Any]:
        """Keyword arguments with which a trunk reads a packed batch behind its virtual tokens.

        Args:
            trunk: turns token ids into hidden states.
            batch: packed sequences.
            store: takes the keys and values of all tokens, the virtual ones included.
        """
        places = Places.of(batch, self.tokens)
        arguments = packed_arguments(batch)
        longest = arguments["max_length_k"] + self.tokens
        keys = {"cu_seq_lens_k": places.bounds, "max_length_k": longest}
        if self.in_layers:
            prefix = PrefixKeys(self.model.get_prompt(1), places, store)
            shifted = {"position_ids": batch.position_ids_T[None] + self.tokens, "past_key_values": prefix}
            return arguments | keys | shifted | {"key_bounds": places.bounds.tolist()}
        embed: Any = trunk.get_input_embeddings()  # type: ignore[operator]
        embeddings_TH = places.join(embed(batch.input_ids_T), self.embeddings(), 0)
        first = torch.arange(self.tokens, device=batch.position_ids_T.device)
        positions_T = places.join(batch.position_ids_T + self.tokens, first, 0)
        del arguments["input_ids"]
        arguments |= {"inputs_embeds": embeddings_TH[None], "position_ids": positions_T[None]} | keys
        arguments |= {"segment_bounds": places.bounds.tolist(), "cu_seq_lens_q": places.bounds, "max_length_q": longest}
        return arguments if store is None else arguments | {"past_key_values": store}


class PrefixKeys:
    """Stands where transformers expects a cache: puts the prefix's keys and values before those of each packed sequence.

    Args:
        prefix: peft's cache that holds the keys and values of one prefix, [1, heads, tokens, D] a layer.
        places: of the batch that will come.
        store: gets all keys and values.
    """

    def __init__(self, prefix: Any, places: Places, store: KeyStore | None) -> None:
        self.prefix, self.places, self.store = prefix, places, store

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Packed keys and values [1, heads, T, D] of a layer -> those with the prefix [1, heads, T + W, D]."""
        own: Any = self.prefix.layers[layer]
        keys, values = self.places.join(keys, own.keys, 2), self.places.join(values, own.values, 2)
        return (keys, values) if self.store is None else self.store.update(keys, values, layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the prefix."""
        return int(self.prefix.get_seq_length(layer_idx))
