"""`accord sft`: packed causal language modelling on text, prompt and completion, or messages."""

from __future__ import annotations

from functools import partial

from accord.algorithms import SFT, Metrics
from accord.config import DataConfig, SFTRecipe
from accord.data import Encoded, Loaded, TokenSequence, encode_examples
from accord.model.export import save_policy
from accord.model.scorer import Scorer
from accord.recipes.build import example_stream, load_split, model_facts, start
from accord.training.evaluate import evaluate
from accord.training.learner import Learner
from accord.training.loop import Parts
from accord.training.sources import Examples
from accord.types import Example


def build(recipe: SFTRecipe) -> Parts:
    """Everything that the loop needs."""
    roles, encoder, ranks = start(recipe)
    roles.add_policy()

    def encode(loaded: Loaded, config: DataConfig) -> Encoded[TokenSequence]:
        return encode_examples(loaded, encoder, config)

    split = load_split(recipe, Example, encode)
    stream, steps = example_stream(split.train, recipe, recipe.train, ranks)
    algorithm = SFT()
    scorer = Scorer(roles, recipe.train.micro_batch_tokens)
    learner = Learner(roles, algorithm, recipe.train, steps, ranks)
    held_out: partial[Metrics] | None = None
    if split.held_out:
        held_out = partial(evaluate, split.held_out, algorithm, roles, scorer, recipe.train.micro_batch_tokens)
    return Parts(
        kind="sft",
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Examples(stream, ranks),
        iterations=steps,
        steps_per_iteration=1,
        save=partial(save_policy, roles),
        evaluate=held_out,
        facts=model_facts(recipe, roles, learner.weights) | split.facts,
        next_steps=_next_steps(recipe),
    )


def _next_steps(recipe: SFTRecipe) -> list[tuple[str, str]]:
    model = f"{recipe.output}/model"
    steps = [("try it", f'accord generate {model} --prompt "..."')]
    if recipe.adapter is not None:
        steps.append(("as a base", f"accord merge {model} {recipe.output}/merged"))
    return [*steps, ("next", f"accord reward --model.path {model} --data.path PAIRS.jsonl --output runs/reward")]
