"""Sample from a saved model: what `accord generate` and the quickstart do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from accord.config import LoraConfig, ModelConfig, PlacementConfig, ReferenceConfig, RewardTerm, build
from accord.config.base import Section
from accord.config.reward import refuse_same_labels
from accord.data import EncodedPrompt, Encoder
from accord.data.conditioning import read_conditioning
from accord.errors import ConfigError
from accord.model.classifiers import refuse_without_words
from accord.model.device import choose_device
from accord.model.loading import locate
from accord.model.scorer import Scorer
from accord.recipes.build import check_context, open_model
from accord.recipes.rewards import add_rewards, check_columns, mixed, open_light
from accord.rollout.collect import Collector
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Progress, Sampling
from accord.rollout.select import best_of as choose_best
from accord.types import Prompt, Rollout, Text

SCORED_TOKENS = 4096
"""Tokens that go through a reward model at once."""


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
            "stop must not be an empty text, which would end each response at its first token": all(self.stop),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("; ".join(broken))


class _Rewards(Section):
    """Reward terms alone, read as the section `reward` of a recipe is."""

    reward: tuple[RewardTerm, ...] = ()

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        refuse_same_labels(self.reward)
        return self


def generate(
    model: ModelConfig | str | Path,
    prompts: Sequence[Text | Prompt],
    options: GenerateOptions | None = None,
    placement: PlacementConfig | None = None,
    progress: Progress | None = None,
    *,
    rewards: Sequence[RewardTerm | Mapping[str, Any] | str] = (),
    best_of: int | None = None,
) -> list[Rollout]:
    """`samples` responses to each prompt, in the order of the prompts.

    With `rewards` each response carries its score; with `best_of` too, that many are sampled for each prompt and only the
    one with the highest score is returned. Best-of-n moves the distribution by at most log n - (n - 1) / n nats of KL
    divergence from the one that is sampled (`accord.rollout.select.best_of_kl_bound`).

    Args:
        model: a whole model, or an adapter on its base: folder, hub name, or the section `model` of a recipe.
        prompts: plain text, or conversations for the model's chat template; as `Prompt` with columns for reward functions.
        options: sampling.
        placement: device.
        progress: told of finished responses and sampled tokens.
        rewards: as the section `reward` of a recipe: `FILE.py:NAME`, the path of a reward model, or a mapping with `weight`.
            A reward model that is an adapter on the model's base shares it.
        best_of: responses to choose from; takes the place of `options.samples`.

    Raises:
        ConfigError: prompt and response do not fit into the model, `best_of` without rewards, or one prompt instead of a list.
        ModelError, GenerationError, RewardError: see there.
    """
    model = model if isinstance(model, ModelConfig) else ModelConfig(path=str(model))
    if isinstance(prompts, str | Prompt):  # a text is a sequence too, of its letters
        raise ConfigError("generate takes a list of prompts, and was given one: write [prompt]")
    options = options or GenerateOptions()
    terms = build(_Rewards, {"reward": list(rewards)}).reward
    if best_of is not None:
        options = _with_samples(options, best_of, terms)
    light = open_light(terms)  # before any weights
    check_columns(terms, light, (prompt.columns if isinstance(prompt, Prompt) else {} for prompt in prompts))
    refuse_without_words(model.path, locate(model.source), model.trust_remote_code)
    roles, encoder = open_model(model, LoraConfig(), choose_device(placement or PlacementConfig()))
    roles.add_reference(ReferenceConfig())  # the frozen model as it was saved: base, or base with its adapter
    add_rewards(terms, roles)
    scores = mixed(terms, light, Scorer(roles, SCORED_TOKENS), roles.device) if terms else None
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop_ids=encoder.stop_ids,
        stop_texts=options.stop,
    )
    engine = NativeEngine(roles, options.max_sequences, role="reference")
    collector = Collector(engine, scores, roles.tokenizer, sampling, options.samples, options.seed)
    asked = ask_for(model, options.label)
    encoded = [_encoded(encoder, prompt, asked) for prompt in prompts]
    longest = max((len(prompt.ids) for prompt in encoded), default=0)
    check_context(roles, longest + options.max_new_tokens, "the prompt or max_new_tokens")
    rollouts = collector.collect(encoded, 0, progress).rollouts
    return rollouts if best_of is None else choose_best(rollouts)


def _with_samples(options: GenerateOptions, best_of: int, terms: Sequence[RewardTerm]) -> GenerateOptions:
    if not terms:
        raise ConfigError("best_of needs a reward to tell which response is best: give `rewards` (--reward)")
    if best_of < 1:
        raise ConfigError(f"best_of must be 1 or more (given: {best_of})")
    if options.samples not in (1, best_of):
        raise ConfigError(f"samples {options.samples} and best_of {best_of} contradict each other; give best_of alone")
    if options.temperature == 0 and best_of > 1:
        raise ConfigError(f"at temperature 0 all {best_of} responses would be the same: raise the temperature")
    return replace(options, samples=best_of)


def ask_for(model: ModelConfig, label: str | None = None) -> Callable[[Text], Text]:
    """Puts the wanted label into a prompt, as a model of `accord csft` reads it: by default the best. Other models' prompts stay
    as they are.

    Raises:
        ConfigError: the model does not know the label, or was trained without any.
    """
    conditioning = read_conditioning(locate(model.source).adapter or model.path)
    if conditioning is None:
        if label is not None:
            raise ConfigError(f"label {label!r}: {model.path} was not trained with labels (`accord csft` does that)")
        return lambda text: text
    conditioning.apply("", label)  # an unknown label is refused now and not at the first prompt
    return lambda text: conditioning.apply(text, label)


def _encoded(encoder: Encoder, prompt: Text | Prompt, asked: Callable[[Text], Text]) -> EncodedPrompt:
    text, columns = (prompt.prompt, prompt.columns) if isinstance(prompt, Prompt) else (prompt, {})
    text = asked(text)
    return EncodedPrompt(encoder.encode_prompt(text), encoder.prompt_text(text), columns)
