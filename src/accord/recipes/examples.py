"""What the recipes share that learn from examples: data, learner, evaluation of held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from accord.algorithms import Algorithm, Metrics
from accord.config import DataConfig, ExampleRecipe
from accord.data import Encoded, EncodedPair, Encoder, Loaded
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.build import Split, check_context, example_stream, load_split, model_facts, start
from accord.training.console import Console
from accord.training.evaluate import evaluate
from accord.training.learner import Learner
from accord.training.loop import Parts
from accord.training.parallel import Ranks
from accord.training.sources import Examples

T = TypeVar("T")
Begin: TypeAlias = Callable[[Scorer, Split[T], Ranks, Console], Mapping[str, str]]


def build_examples(
    recipe: ExampleRecipe,
    algorithm: Algorithm,
    *,
    add_role: Callable[[Roles], None],
    encode: Callable[[Loaded, Encoder, DataConfig], Encoded[T]],
    length: Callable[[T], int],
    save: Callable[[Roles, Path], None],
    next_steps: Sequence[tuple[str, str]],
    begin: Begin[T] | None = None,
) -> Parts:
    """Everything that the loop needs.

    Args:
        recipe: of any algorithm on examples.
        algorithm: takes what `encode` gives.
        add_role: adds the role that learns to the base.
        encode: records to token ids.
        length: tokens of an encoded record (of its longest sequence).
        save: writes what was learnt to a folder.
        next_steps: title and command of what a person may do with it.
        begin: what has to be computed with the starting weights, before the first step; gives facts for the header.
    """
    roles, encoder, ranks = start(recipe)
    add_role(roles)
    split = load_split(recipe, lambda loaded, config: encode(loaded, encoder, config))
    longest = max(length(item) for item in (*split.train, *split.held_out))
    check_context(roles, longest, "data.max_tokens")
    stream, steps = example_stream(split.train, recipe, recipe.train, ranks)
    scorer = Scorer(roles, recipe.train.micro_batch_tokens)
    learner = Learner(roles, algorithm, recipe.train, steps, ranks)
    held_out: Callable[[], Metrics] | None = None
    if split.held_out:
        held_out = partial(evaluate, split.held_out, algorithm, roles, scorer, recipe.train.micro_batch_tokens)
    return Parts(
        kind=recipe.algorithm.type,
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Examples(stream, ranks),
        iterations=steps,
        steps_per_iteration=1,
        save=partial(save, roles),
        evaluate=held_out,
        begin=None if begin is None else partial(begin, scorer, split, ranks),
        facts=model_facts(recipe, roles, learner.weights) | split.facts,
        next_steps=next_steps,
    )


def longest_of_pair(pair: EncodedPair) -> int:
    """Tokens of the longer one of a pair's two sequences."""
    return max(len(pair.chosen), len(pair.rejected))


def policy_steps(recipe: ExampleRecipe) -> list[tuple[str, str]]:
    """What a person may do with a policy that was learnt from examples."""
    model = f"{recipe.output}/model"
    steps = [("try it", f'accord generate {model} --prompt "..."')]
    if recipe.adapter is not None:
        steps.append(("as a base", f"accord merge {model} {recipe.output}/merged"))
    return steps
