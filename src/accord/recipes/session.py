"""The classic session: one's own loop around `generate` and `step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.algorithms import Metrics
from accord.config import PPORecipe, build, load
from accord.data import EncodedPrompt
from accord.errors import ConfigError, DataError, RewardError
from accord.model.device import choose_device
from accord.model.export import save_policy
from accord.recipes.build import check_context, check_start, open_model
from accord.recipes.ppo import make_algorithm
from accord.recipes.rollouts import add_roles, make_sampling
from accord.rewards.protocol import checked_scores, describe
from accord.rollout.collect import Collector
from accord.rollout.native import NativeEngine
from accord.training.learner import Learner
from accord.training.loop import learn, seed_everything
from accord.types import Rollout, Text

UNREAD = {"data": {"path": "(session)"}, "output": "(session)"}
"""Sections that a recipe must have and a session does not read."""


class PPO:
    """Proximal policy optimisation with one's own loop:

        session = accord.PPO({"model": {"path": "runs/sft/model"}})
        rollouts = session.generate(["Review of ..."])
        stats = session.step(rollouts, scores=[1.0])
        session.save("runs/mine/model")

    The roles, the engine and the algorithm are those of `accord ppo`; where prompts and scores come from is the caller's.

    Args:
        config: a `PPORecipe`, the same as nested dicts, or the path of a YAML file. `data`, `output` and `reward` are not
            needed; `train.iterations` is the number of `step`s that the learning rate's schedule spans.

    Raises:
        ConfigError, ModelError: see there.
    """

    def __init__(self, config: PPORecipe | Mapping[str, Any] | str | Path) -> None:
        if isinstance(config, (str, Path)):
            config = load(config)
        self.recipe = config if isinstance(config, PPORecipe) else build(PPORecipe, UNREAD, config)
        recipe = self.recipe
        if recipe.placement.type != "local":
            raise ConfigError(
                "a session runs in one process (placement.type: local); `accord ppo` and accord.train run under torchrun"
            )
        check_start(recipe)
        device = choose_device(recipe.placement)
        self.roles, self.encoder = open_model(recipe.model, recipe.adapter, device, recipe.seed)
        self.scorer = add_roles(recipe, self.roles)
        self.engine = NativeEngine(self.roles, recipe.rollout.max_sequences, recipe.train.micro_batch_tokens)
        self.algorithm = make_algorithm(recipe)
        steps = recipe.train.iterations * recipe.algorithm.epochs * recipe.algorithm.minibatches
        self.learner = Learner(self.roles, self.algorithm, recipe.train, steps)
        sampling = make_sampling(recipe, self.encoder.stop_ids)
        seed, samples = recipe.seed, recipe.rollout.samples
        self._collector = Collector(self.engine, None, self.roles.tokenizer, sampling, samples, seed)
        self._calls = 0
        self.iteration = 0
        """Steps taken with `step`."""

    def generate(self, prompts: Sequence[Text], columns: Sequence[Mapping[str, Any]] | None = None) -> list[Rollout]:
        """`rollout.samples` responses to each prompt, in the order of the prompts.

        Args:
            prompts: plain texts, or conversations (tuples of `Message`).
            columns: anything to carry along with each prompt, in `Rollout.columns`.

        Raises:
            DataError: no prompts, or one that is longer than the recipe allows.
        """
        if not prompts:
            raise DataError("generate needs at least one prompt, and got none")
        if columns is not None and len(columns) != len(prompts):
            raise DataError(f"{len(columns)} columns were given for {len(prompts)} prompts; one mapping each is needed")
        encoded = []
        for index, text in enumerate(prompts):
            ids = self.encoder.encode_prompt(text)
            if not ids or len(ids) > self.recipe.prompt_limit:
                raise DataError(
                    f"prompt {index} has {len(ids)} tokens; between 1 and {self.recipe.prompt_limit} fit "
                    "(data.max_prompt_tokens, or data.max_tokens - rollout.max_new_tokens)"
                )
            encoded.append(EncodedPrompt(ids, self.encoder.prompt_text(text), columns[index] if columns else {}))
        longest = max(len(prompt.ids) for prompt in encoded) + self.recipe.rollout.max_new_tokens
        check_context(self.roles, longest, "rollout.max_new_tokens, or shorten the prompts")
        self._calls += 1
        return self._collector.collect(encoded, self._calls - 1).rollouts

    def step(self, rollouts: Sequence[Rollout], scores: Sequence[float]) -> Metrics:
        """Learn from scored rollouts: one iteration of PPO, `epochs * minibatches` optimiser steps.

        Args:
            rollouts: as `generate` gave them; any number that makes `minibatches` minibatches.
            scores: one finite number for each.

        Returns:
            The metrics of learning that `accord ppo` logs: `ppo/*`, `objective/*`, `env/*`, `optim/*`, `sampling/*` of the batch.

        Raises:
            RewardError: too few scores, or one that is no finite number.
            DataError: fewer rollouts than minibatches.
        """
        if len(rollouts) < self.recipe.algorithm.minibatches:
            raise DataError(
                f"{len(rollouts)} rollouts cannot be cut into {self.recipe.algorithm.minibatches} minibatches "
                "(algorithm.minibatches)"
            )
        values = checked_scores("scores", list(scores), rollouts)
        for index, value in enumerate(values):
            if value is None:
                raise RewardError(
                    f"scores gave None for {describe(index, rollouts[index])}; step needs a number for each"
                )
        scored = [replace(r, score=value, scores={"score": value}) for r, value in zip(rollouts, values, strict=True)]
        seed_everything(self.recipe.seed, self.iteration)
        _, metrics = learn(scored, self.algorithm, self.learner, self.scorer, self.recipe.seed, self.iteration)
        self.iteration += 1
        self.engine.load(None, self.iteration)
        return metrics

    def save(self, folder: str | Path) -> Path:
        """Write the policy as a PEFT adapter or a Hugging Face model, with its tokenizer; returns the folder."""
        save_policy(self.roles, Path(folder))
        return Path(folder)
