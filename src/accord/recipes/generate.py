"""Sample from a saved model: what `accord generate` and the quickstart do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.config import LoraConfig, ModelConfig, PlacementConfig, ReferenceConfig
from accord.data import EncodedPrompt
from accord.data.conditioning import read_conditioning
from accord.errors import ConfigError
from accord.model.device import choose_device
from accord.recipes.build import check_context, open_model
from accord.rollout.collect import Collector
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Progress, Sampling
from accord.types import Rollout, Text


@dataclass(frozen=True)
class GenerateOptions:
    """How to sample."""

    samples: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    """0 = the likeliest token each time."""
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    max_sequences: int = 64
    seed: int = 0
    label: str | None = None
    """For a model of conditional fine-tuning, what to ask for; by default its best label."""

    def __post_init__(self) -> None:
        rules = {
            "samples must be 1 or more": self.samples >= 1,
            "max_new_tokens must be 1 or more": self.max_new_tokens >= 1,
            "temperature must be 0 or more": self.temperature >= 0,
            "top_k must be 0 or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "max_sequences must be 1 or more": self.max_sequences >= 1,
            "seed must be 0 or more": self.seed >= 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("; ".join(broken))


def generate(
    model: ModelConfig,
    prompts: Sequence[Text],
    options: GenerateOptions | None = None,
    placement: PlacementConfig | None = None,
    progress: Progress | None = None,
) -> list[Rollout]:
    """`samples` responses to each prompt, in the order of the prompts.

    Args:
        model: a whole model, or an adapter on its base.
        prompts: plain text, or conversations for the model's chat template.
        options: sampling.
        placement: device.
        progress: told of finished responses and sampled tokens.

    Raises:
        ConfigError: prompt and response do not fit into the model.
        ModelError, GenerationError: see there.
    """
    options = options or GenerateOptions()
    roles, encoder = open_model(model, LoraConfig(), choose_device(placement or PlacementConfig()))
    roles.add_reference(ReferenceConfig())  # the frozen model as it was saved: base, or base with its adapter
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop_ids=encoder.stop_ids,
        stop_texts=options.stop,
    )
    engine = NativeEngine(roles, options.max_sequences, role="reference")
    collector = Collector(engine, None, roles.tokenizer, sampling, options.samples, options.seed)
    conditioning = read_conditioning(model.path)
    if conditioning is not None:
        prompts = [conditioning.apply(text, options.label) for text in prompts]
    elif options.label is not None:
        raise ConfigError(
            f"label {options.label!r}: {model.path} was not trained with labels (`accord csft` does that)"
        )
    encoded = [EncodedPrompt(encoder.encode_prompt(text), encoder.prompt_text(text)) for text in prompts]
    longest = max((len(prompt.ids) for prompt in encoded), default=0)
    check_context(roles, longest + options.max_new_tokens, "the prompt or max_new_tokens")
    return collector.collect(encoded, 0, progress).rollouts
