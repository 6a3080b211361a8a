"""`accord csft`: learn answers of every quality, each under its label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.algorithms import CSFT
from accord.config import CSFTRecipe, DataConfig
from accord.data import Encoded, Encoder, Loaded, TokenSequence, encode_examples, read_records
from accord.data.conditioning import Conditioning, Value, as_examples, fit_conditioning
from accord.data.encode import encode_records, fitted
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.build import check_context, held_out_rows, model_folder
from accord.recipes.examples import build_examples
from accord.recipes.rewards import add_rewards, check_columns, mixed, open_light
from accord.rewards import MixedReward, RewardSource
from accord.training.loop import Parts
from accord.types import Example, Rollout


def build(recipe: CSFTRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    check_values(recipe)
    conditioner = _Conditioner(recipe, open_light(recipe.reward))
    return build_examples(
        recipe,
        CSFT(),
        add_role=conditioner.add_roles,
        encode=conditioner.encode,
        length=len,
        save=conditioner.save,
        next_steps=[("try it", f'accord generate {model_folder(recipe)} --prompt "..."  (asks for the best label)')],
    )


def check_values(recipe: CSFTRecipe) -> None:
    """Look at how good the rows are said to be, before any weight is loaded.

    Raises:
        DataError: the rows cannot be read, have no answer or no value, or their values do not fit the labels.
    """
    options = recipe.algorithm
    column = None if recipe.reward else options.column
    examples, values = as_examples(read_records(recipe.data), column)
    kept_back = held_out_rows(recipe, examples.origins)
    train, held_out = (
        [value for value, origin in zip(values, examples.origins, strict=True) if (origin in kept_back) is aside]
        for aside in (False, True)
    )
    if recipe.data.eval_path is not None:
        whole = recipe.data.model_copy(update={"limit": None})
        _, held_out = as_examples(read_records(whole, recipe.data.eval_path), column)
    if not recipe.reward:
        fit_conditioning(options.template, options.labels, train).check(held_out)


def encode_unscored(recipe: CSFTRecipe) -> Callable[[Loaded, Encoder, DataConfig], Encoded[TokenSequence]]:
    """How rows are encoded, without weights: each under its label; where rewards are to score them, without any."""
    if not recipe.reward:
        return _Conditioner(recipe, {}).encode
    return lambda loaded, encoder, config: encode_examples(as_examples(loaded, None)[0], encoder, config)


class _Conditioner:
    """Scores the rows if a reward is named, and puts labels into their prompts. The training rows come first, and those that are
    not held out say where one label ends and the next begins."""

    def __init__(self, recipe: CSFTRecipe, light: Mapping[str, RewardSource]) -> None:
        self.recipe, self.light = recipe, light
        self.roles: Roles | None = None
        self.rewards: MixedReward | None = None
        self.conditioning: Conditioning | None = None

    def add_roles(self, roles: Roles) -> None:
        self.roles = roles
        roles.add_policy()
        scorer = Scorer(roles, self.recipe.train.micro_batch_tokens)
        terms = self.recipe.reward
        add_rewards(terms, roles)
        self.rewards = mixed(terms, self.light, scorer, roles.device) if terms else None

    def encode(self, loaded: Loaded, encoder: Encoder, config: DataConfig) -> Encoded[TokenSequence]:
        """Rows that do not fit go before any is scored, and then those that a label makes too long."""
        options = self.recipe.algorithm
        examples, values = as_examples(loaded, None if self.rewards else options.column)

        def one(example: Example) -> tuple[Example, TokenSequence]:
            return example, fitted(encoder, example.prompt, example.completion, config)

        fitting = encode_records(examples, Example, one, config.on_bad_row)
        if self.rewards is not None:
            check_columns(self.recipe.reward, self.light, (example.columns for example, _ in fitting.items))
            values = self._scores(fitting.items, encoder, self.rewards)
        else:
            value_of = dict(zip(map(id, examples.records), values, strict=True))
            values = [value_of[id(example)] for example, _ in fitting.items]
        if self.conditioning is None:
            kept_back = held_out_rows(self.recipe, loaded.origins)
            train = [value for value, origin in zip(values, fitting.origins, strict=True) if origin not in kept_back]
            self.conditioning = fit_conditioning(options.template, options.labels, train)
        self.conditioning.check(values)
        labelled: list[Any] = []
        for (example, _), value in zip(fitting.items, values, strict=True):
            prompt = self.conditioning.apply(example.prompt, self.conditioning.label_of(value))
            labelled.append(replace(example, prompt=prompt))
        encoded = encode_examples(replace(examples, records=labelled, origins=fitting.origins), encoder, config)
        return replace(encoded, rejections=[*fitting.rejections, *encoded.rejections])

    def _scores(
        self, rows: Sequence[tuple[Example, TokenSequence]], encoder: Encoder, rewards: MixedReward
    ) -> list[Value]:
        """What the sources say of each row, without any label in its prompt."""
        assert self.roles is not None
        check_context(self.roles, max(len(row) for _, row in rows), "data.max_tokens")
        scored = rewards.score([_as_rollout(example, row, encoder) for example, row in rows])
        return [rollout.total_score for rollout in scored]

    def save(self, roles: Roles, folder: Path) -> None:
        save_policy(roles, folder)
        assert self.conditioning is not None
        self.conditioning.save(folder)


def _as_rollout(example: Example, row: TokenSequence, encoder: Encoder) -> Rollout:
    """A row as if it had been sampled; of one that truncation has cut, what is left to learn."""
    start = row.target_mask.index(True)
    response = row.input_ids[start:]
    whole = response[-1] in encoder.stop_ids
    text = example.completion if isinstance(example.completion, str) else example.completion[-1].content
    if not whole:
        text = str(encoder.tokenizer.decode(list(response), skip_special_tokens=True))
    return Rollout(
        prompt_ids=row.input_ids[:start],
        response_ids=response,
        sampler_logprobs=(0.0,) * len(response),
        finish_reason="stop" if whole else "length",
        prompt_text=encoder.prompt_text(example.prompt),
        response_text=text,
        columns=example.columns,
        version=-1,
    )
