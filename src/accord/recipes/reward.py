"""`accord reward`: a reward model from pairs of answers."""

from __future__ import annotations

from functools import partial

from accord.algorithms import Metrics, RewardModelling
from accord.config import DataConfig, RewardRecipe
from accord.data import Encoded, EncodedPair, Loaded, encode_pairs
from accord.model.export import save_scorer
from accord.model.scorer import Scorer
from accord.recipes.build import example_stream, load_split, model_facts, start
from accord.training.evaluate import evaluate
from accord.training.learner import Learner
from accord.training.loop import Parts
from accord.training.sources import Examples
from accord.types import PreferencePair


def build(recipe: RewardRecipe) -> Parts:
    """Everything that the loop needs."""
    roles, encoder, ranks = start(recipe)
    roles.add_scorer()

    def encode(loaded: Loaded, config: DataConfig) -> Encoded[EncodedPair]:
        return encode_pairs(loaded, encoder, config)

    split = load_split(recipe, PreferencePair, encode)
    stream, steps = example_stream(split.train, recipe, recipe.train, ranks)
    algorithm = RewardModelling(recipe.algorithm)
    scorer = Scorer(roles, recipe.train.micro_batch_tokens)
    learner = Learner(roles, algorithm, recipe.train, steps, ranks)
    held_out: partial[Metrics] | None = None
    if split.held_out:
        held_out = partial(evaluate, split.held_out, algorithm, roles, scorer, recipe.train.micro_batch_tokens)
    model = f"{recipe.output}/model"
    return Parts(
        kind="reward",
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Examples(stream, ranks),
        iterations=steps,
        steps_per_iteration=1,
        save=partial(save_scorer, roles),
        evaluate=held_out,
        facts=model_facts(recipe, roles, learner.weights) | split.facts,
        next_steps=[
            (
                "next",
                f"accord ppo --model.path {recipe.model.path} --reward {model} --data.path PROMPTS.jsonl --output runs/ppo",
            )
        ],
    )
