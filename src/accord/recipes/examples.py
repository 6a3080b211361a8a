"""What the recipes share that learn from examples: data, learner, evaluation of held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from accord.algorithms import Algorithm, Metrics
from accord.config import DataConfig, ExampleRecipe
from accord.data import Encoded, EncodedPair, Encoder, Loaded
from accord.errors import ConfigError
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import SumOverRanks
from accord.recipes.build import Split, check_context, example_stream, load_split, model_facts, model_folder, start
from accord.recipes.going_on import ignored_options
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
    algorithm: Algorithm | Callable[[SumOverRanks], Algorithm],
    *,
    add_role: Callable[[Roles], None],
    encode: Callable[[Loaded, Encoder, DataConfig], Encoded[T]],
    length: Callable[[T], int],
    save: Callable[[Roles, Path], None],
    next_steps: Sequence[tuple[str, str]],
    begin: Begin[T] | None = None,
    arrange: Callable[[Sequence[T]], list[T]] = list,
    least: int = 1,
    look: Callable[[Sequence[T]], Sequence[str]] = lambda rows: (),
    finish: Callable[[Scorer, Sequence[T], Path], None] = lambda scorer, rows, folder: None,
) -> Parts:
    """Everything that the loop needs.

    Args:
        recipe: of any algorithm on examples.
        algorithm: takes what `encode` gives; or, given the sum over ranks, makes it.
        add_role: adds the role that learns to the base.
        encode: records to token ids.
        length: tokens of an encoded record (of its longest sequence).
        save: writes what was learnt to a folder.
        next_steps: title and command of what a person may do with it.
        begin: what has to be computed with the starting weights, before the first step; gives facts for the header.
        arrange: done to the rows of a whole step, and to all that are held out, before ranks share them.
        least: rows that a step must have.
        look: notes for the person, from the rows to learn from.
        finish: called after `save` with the held-out rows (those to learn from if there are none) and the model's folder.

    Raises:
        ConfigError: a step, or the held-out rows, would have fewer than `least` rows, or more tokens than the model reads.
    """
    roles, encoder, ranks = start(recipe)
    algorithm = algorithm(ranks.sum) if callable(algorithm) else algorithm
    add_role(roles)
    split = load_split(recipe, lambda loaded, config: encode(loaded, encoder, config))
    longest = max(length(item) for item in (*split.train, *split.held_out))
    check_context(roles, longest, "data.max_tokens")
    stream, steps = example_stream(split.train, recipe, recipe.train, ranks)
    _check_least(recipe, least, len(stream.batch(steps - 1)), len(split.held_out))
    scorer = Scorer(roles, recipe.train.micro_batch_tokens)
    learner = Learner(roles, algorithm, recipe.train, steps, ranks)
    held_out: Callable[[], Metrics] | None = None
    if split.held_out:
        held_out = partial(evaluate, arrange(split.held_out), algorithm, roles, scorer, recipe.train.micro_batch_tokens)

    def save_all(folder: Path) -> None:
        save(roles, folder)
        finish(scorer, split.held_out or split.train, folder)

    return Parts(
        kind=recipe.algorithm.type,
        recipe=recipe,
        algorithm=algorithm,
        learner=learner,
        scorer=scorer,
        source=Examples(stream, ranks, arrange),
        iterations=steps,
        steps_per_iteration=1,
        save=save_all,
        evaluate=held_out,
        begin=None if begin is None else partial(begin, scorer, split, ranks),
        facts=model_facts(recipe, roles, learner.weights) | split.facts,
        next_steps=next_steps,
        notes=[*ignored_options(recipe, roles), *look(split.train)],
        longest=longest,
    )


def longest_of_pair(pair: EncodedPair) -> int:
    """Tokens of the longer one of a pair's two sequences."""
    return max(len(pair.chosen), len(pair.rejected))


def policy_steps(recipe: ExampleRecipe) -> list[tuple[str, str]]:
    """What a person may do with a policy that was learnt from examples."""
    model = model_folder(recipe)
    steps = [("try it", f'accord generate {model} --prompt "..."')]
    if recipe.adapter is not None and type(recipe.adapter).mergeable:
        steps.append(("as a base", f"accord merge {model} {model_folder(recipe, 'merged')}"))
    return steps


def _check_least(recipe: ExampleRecipe, least: int, last: int, held_out: int) -> None:
    """Refuse before the run what would stop it at its end; only the last step can be shorter than the others."""
    kind = recipe.algorithm.type
    if last < least:
        raise ConfigError(
            f"{kind} compares the rows of a step, so each needs {least} or more, and the last one would have {last}: set "
            "train.steps, or a train.batch_size that leaves no such rest"
        )
    if 0 < held_out < least:
        raise ConfigError(
            f"{kind} needs {least} or more held-out rows, and there is {held_out}: raise data.eval_fraction"
        )
