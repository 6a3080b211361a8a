"""`accord csft`: learn answers of every quality, each under its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.algorithms import CSFT
from accord.config import CSFTRecipe, DataConfig
from accord.data import Encoded, Encoder, Loaded, TokenSequence, encode_examples
from accord.data.conditioning import Conditioning, Value, as_examples, fit_conditioning
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.examples import build_examples
from accord.recipes.rewards import add_rewards, check_columns, mixed, open_light
from accord.rewards import MixedReward, RewardSource
from accord.training.loop import Parts
from accord.types import Example, Rollout


def build(recipe: CSFTRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    conditioner = _Conditioner(recipe, open_light(recipe.reward))
    model = f"{recipe.output}/model"
    return build_examples(
        recipe,
        CSFT(),
        add_role=conditioner.add_roles,
        encode=conditioner.encode,
        length=len,
        save=conditioner.save,
        next_steps=[("try it", f'accord generate {model} --prompt "..."  (asks for the best label)')],
    )


class _Conditioner:
    """Scores the rows if a reward is named, and puts labels into their prompts. The training rows come first, and say where one
    label ends and the next begins."""

    def __init__(self, recipe: CSFTRecipe, light: Mapping[str, RewardSource]) -> None:
        self.recipe, self.light = recipe, light
        self.rewards: MixedReward | None = None
        self.conditioning: Conditioning | None = None

    def add_roles(self, roles: Roles) -> None:
        roles.add_policy()
        scorer = Scorer(roles, self.recipe.train.micro_batch_tokens)
        terms = self.recipe.reward
        add_rewards(terms, roles)
        self.rewards = mixed(terms, self.light, scorer, roles.device) if terms else None

    def encode(self, loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[TokenSequence]:
        options = self.recipe.algorithm
        examples, values = as_examples(loaded, None if self.rewards else options.column)
        if self.rewards is not None:
            check_columns(self.recipe.reward, (record.columns for record in examples.records))
            values = self._scores(examples, encoder, self.rewards)
        if self.conditioning is None:
            self.conditioning = fit_conditioning(options.template, options.labels, values)
        labelled: list[Any] = []
        for record, value in zip(examples.records, values, strict=True):
            assert isinstance(record, Example)
            prompt = self.conditioning.apply(record.prompt, self.conditioning.label_of(value))
            labelled.append(replace(record, prompt=prompt))
        return encode_examples(replace(examples, records=labelled), encoder, config)

    def _scores(self, loaded: Loaded, encoder: Encoder, rewards: MixedReward) -> list[Value]:
        """What the sources say of each row, without any label in its prompt."""
        rollouts = [_as_rollout(record, encoder) for record in loaded.records if isinstance(record, Example)]
        return [rollout.total_score for rollout in rewards.score(rollouts)]

    def save(self, roles: Roles, folder: Path) -> None:
        save_policy(roles, folder)
        assert self.conditioning is not None
        self.conditioning.save(folder)


def _as_rollout(example: Example, encoder: Encoder) -> Rollout:
    row = encoder.encode_example(example.prompt, example.completion)
    start = row.target_mask.index(True)
    text = example.completion if isinstance(example.completion, str) else example.completion[-1].content
    return Rollout(
        prompt_ids=row.input_ids[:start],
        response_ids=row.input_ids[start:],
        sampler_logprobs=(0.0,) * (len(row) - start),
        finish_reason="stop",
        prompt_text=encoder.prompt_text(example.prompt),
        response_text=text,
        columns=example.columns,
        version=-1,
    )
