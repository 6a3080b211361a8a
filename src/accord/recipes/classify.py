"""`accord classify`: a classifier of texts, or of words; with prefixes in every layer, p-tuning v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from accord.algorithms import Classify
from accord.config import ClassifyRecipe
from accord.data import EncodedClasses, Loaded, check_labels, encode_classes, find_labels, read_records
from accord.errors import ModelError
from accord.model.classifiers import ClassFacts, read_labels
from accord.model.export import save_classifier
from accord.model.loading import locate
from accord.model.roles import Roles
from accord.recipes.build import model_folder
from accord.recipes.examples import build_examples
from accord.training.loop import Parts


def build(recipe: ClassifyRecipe) -> Parts:
    """Everything that the loop needs; see `build_examples`."""
    refuse_whole(recipe)
    facts = ClassFacts(recipe.algorithm.level, choose_labels(recipe))
    steps = [("load it", f"see {recipe.output}/model/README.md")]
    if recipe.adapter is not None and type(recipe.adapter).mergeable:
        steps.append(("as a whole", f"accord merge {model_folder(recipe)} {model_folder(recipe, 'merged')}"))
    return build_examples(
        recipe,
        Classify(recipe.algorithm),
        add_role=partial(Roles.add_classifier, facts=facts),
        encode=partial(encode_classes, labels=facts.labels),
        length=len,
        save=partial(save_classifier, facts=facts),
        next_steps=steps,
        begin=lambda *_: {"classes": _described(recipe, facts)},
        look=partial(never_seen, facts.labels),
    )


def refuse_whole(recipe: ClassifyRecipe) -> None:
    """Refuse to start from a whole classifier: its head would be lost without a word.

    Raises:
        ModelError: `model.path` is one.
    """
    location = locate(recipe.model.source)
    if location.adapter is None and read_labels(location, recipe.model.trust_remote_code) is not None:
        raise ModelError(
            f"model.path {recipe.model.source} is a whole classifier, and training starts from a language model: take the one "
            "that it was trained from, or a classifier's adapter, which can go on"
        )


def choose_labels(recipe: ClassifyRecipe) -> tuple[str, ...]:
    """The classes to learn: those of the recipe, or else of the rows to learn from; before any weight is loaded.

    Raises:
        DataError: the rows cannot be read or have one label alone; or some have another than these, and bad rows stop the run.
    """
    train = read_records(recipe.data, want=recipe.rows_become)
    labels = recipe.algorithm.labels or find_labels(train)
    loaded: list[Loaded] = [train]
    if recipe.data.eval_path is not None:
        whole = recipe.data.model_copy(update={"limit": None})
        loaded.append(read_records(whole, recipe.data.eval_path, recipe.rows_become))
    if recipe.data.on_bad_row == "stop":
        for one in loaded:
            check_labels(one, labels)
    return labels


def never_seen(labels: Sequence[str], rows: Sequence[EncodedClasses]) -> list[str]:
    """A note on classes that no row to learn from has."""
    seen = {number for row in rows for number in row.classes}
    unseen = [label for number, label in enumerate(labels) if number not in seen]
    return [f"no row to learn from has the label {', '.join(unseen)}, so it is never learnt"] if unseen else []


def _described(recipe: ClassifyRecipe, facts: ClassFacts) -> str:
    location = locate(recipe.model.source)
    goes_on = location.adapter is not None and read_labels(location) == facts
    head = "the head goes on from the adapter's" if goes_on else "the head starts at random"
    shown = ", ".join(facts.labels[:12]) + (", ..." if len(facts.labels) > 12 else "")
    return f"{len(facts.labels)} ({shown}); {head}"
