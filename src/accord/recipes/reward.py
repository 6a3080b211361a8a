"""`accord reward`: a reward model from pairs of answers, or from judged steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TypeVar

import torch

from accord.algorithms import ProcessRewardModelling, RewardModelling
from accord.config import RewardConfig, RewardRecipe
from accord.data import EncodedPair, encode_pairs, encode_steps
from accord.errors import TrainingError
from accord.model.export import save_scorer
from accord.model.loading import is_scorer, locate
from accord.model.roles import Roles
from accord.model.score_facts import ScoreFacts, write_facts
from accord.model.scorer import Scorer
from accord.ops.statistics import moments
from accord.recipes.build import model_folder
from accord.recipes.examples import build_examples, longest_of_pair
from accord.recipes.going_on import method_option
from accord.training.loop import Parts

T = TypeVar("T")

MEASURED = 2048
"""Pairs, evenly spaced, whose scores tell mean and standard deviation: an error of the mean of 1/64 standard deviation."""
SAME = 1e-6
"""A standard deviation below this is that of rounding, and dividing by it would make scores of noise."""


def build(recipe: RewardRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    if recipe.algorithm.level == "step":
        return _build_process(recipe)
    algorithm = RewardModelling(recipe.algorithm)
    return build_examples(
        recipe,
        algorithm,
        add_role=Roles.add_scorer,
        encode=encode_pairs,
        length=longest_of_pair,
        save=save_scorer,
        next_steps=[("next", _next_step(recipe))],
        finish=partial(_finish, recipe.algorithm, algorithm),
    )


def _build_process(recipe: RewardRecipe) -> Parts:
    step = recipe.algorithm.step
    return build_examples(
        recipe,
        ProcessRewardModelling(),
        add_role=partial(Roles.add_scorer, stepwise=True),
        encode=partial(encode_steps, separator=step),
        length=lambda item: len(item.sequence),
        save=save_scorer,
        next_steps=[("next", _next_step(recipe))],
        finish=lambda scorer, rows, folder: write_facts(folder, ScoreFacts("step", step=step)),
    )


def _finish(
    config: RewardConfig, algorithm: RewardModelling, scorer: Scorer, rows: Sequence[EncodedPair], folder: Path
) -> None:
    """Write what is known about the scores; measure them first if that is wanted."""
    if config.normalize == "none":
        write_facts(folder, ScoreFacts())
        return
    batch, _ = algorithm.prepare(spread(rows, MEASURED), scorer)
    scores_N = scorer.sequence_scores("reward", batch)
    measured_N = scores_N[0::2] if config.normalize == "chosen" else scores_N
    _, mean, variance = moments(measured_N, torch.ones_like(measured_N, dtype=torch.bool))
    if not variance.sqrt() > SAME:
        raise TrainingError(
            f"all {len(measured_N)} measured answers have one score (deviation {float(variance.sqrt()):.2g}), so it cannot be "
            f"normalised; the model is in {folder}. Nothing was learnt: raise train.learning_rate or train.steps, or set "
            "algorithm.normalize: none"
        )
    write_facts(folder, ScoreFacts(mean=float(mean), std=float(variance.sqrt())))


def spread(rows: Sequence[T], most: int) -> list[T]:
    """At most so many rows, evenly spaced from the first to the last part: files are often sorted."""
    count = min(most, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def _next_step(recipe: RewardRecipe) -> str:
    """PPO from what the reward model started from, if that writes."""
    start, reward = locate(recipe.model.source), model_folder(recipe)
    policy = quote(recipe.model.path) + (method_option(recipe.adapter) if start.adapter is not None else "")
    policy = "POLICY" if is_scorer(start, recipe.model.trust_remote_code) else policy
    term = "--reward" if recipe.algorithm.level == "response" else "--reward.0.process min --reward.0.model"
    return f"accord ppo --model.path {policy} {term} {reward} --data.path PROMPTS.jsonl --output runs/ppo"
