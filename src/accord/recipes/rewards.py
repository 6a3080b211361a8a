"""From the `reward` section to sources: what needs no weights is made, and tried, before any are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from accord.config import RewardTerm
from accord.errors import ConfigError
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.build import check_tokenizer
from accord.recipes.reward_models import as_classifier, model_source, score_facts, text_source
from accord.rewards import (
    ClassifierReward,
    CodeReward,
    FormatReward,
    FunctionReward,
    JudgeReward,
    LengthReward,
    LexiconReward,
    MathReward,
    MixedReward,
    RegexReward,
    RepetitionReward,
    RewardSource,
    UrlReward,
)
from accord.rewards.classifier import check_classifier
from accord.rewards.function import load_function

LIGHT: dict[str, Callable[[Any, str], RewardSource]] = {
    "lexicon": LexiconReward,
    "verifier": MathReward,
    "regex": RegexReward,
    "format": FormatReward,
    "length": LengthReward,
    "repetition": RepetitionReward,
    "code": CodeReward,
    "url": UrlReward,
    "judge": JudgeReward,
}
"""Kinds that are made from their options alone."""


def open_light(terms: Sequence[RewardTerm]) -> dict[str, RewardSource]:
    """Make each source that needs no weights, by label, and check of the others what can be known without.

    Functions are imported, lists of words read, the sandbox for code tried, reward servers asked for their health.

    Raises:
        ConfigError, ModelError, RewardError: a source cannot be used.
    """
    sources: dict[str, RewardSource] = {}
    for term in terms:
        if term.paths:
            score_facts(term)
        elif term.classifier is not None:
            check_classifier(term.classifier)
        elif term.function is not None:
            sources[term.label] = FunctionReward(load_function(term.function), term.label, term.timeout)
        else:
            sources[term.label] = LIGHT[term.kind](getattr(term, term.kind), term.label)
    return sources


def check_columns(
    terms: Sequence[RewardTerm], light: Mapping[str, RewardSource], rows: Iterable[Mapping[str, Any]]
) -> None:
    """A source whose column no row of the data has would say nothing, ever; a function could not be called with a column that is
    called like its own arguments.

    Args:
        terms: the section `reward`.
        light: the sources that `open_light` made of it.
        rows: columns beside the prompt, of each row.

    Raises:
        ConfigError: names the source, the column, and the columns that there are.
    """
    needed = {column: term.label for term in terms for column in term.columns}
    functions = [source for source in light.values() if isinstance(source, FunctionReward)]
    if not needed and not functions:
        return
    rows = list(rows)
    for function in functions:
        function.check_columns({name for row in rows for name in row})
    found = {name for row in rows for name, value in row.items() if value is not None}
    for column, label in needed.items():
        if column not in found:
            raise ConfigError(
                f"reward {label} reads the column {column!r}, which no row of the data has; columns beside the prompt: "
                f"{', '.join(sorted(found)) or 'none'}"
            )


def add_rewards(terms: Sequence[RewardTerm], roles: Roles) -> None:
    """The reward models among the terms as roles; an adapter on the roles' base shares it."""
    for term in terms:
        for path, role in zip(term.paths, term.roles, strict=True):
            check_tokenizer(path, roles)
            roles.add_reward(path, role, stepwise=term.process is not None, offload=term.offload)


def mixed(
    terms: Sequence[RewardTerm], light: Mapping[str, RewardSource], scorer: Scorer, device: torch.device
) -> MixedReward:
    """All sources with their weights. Reward models are roles of the scorer, which must have them already."""

    def source(term: RewardTerm) -> RewardSource:
        if term.paths:
            return model_source(term, score_facts(term), scorer)
        if term.classifier is not None:
            return ClassifierReward(term.classifier, term.label, device)
        return light[term.label]

    return MixedReward([(source(term), term.weight) for term in terms])


def mixed_of_texts(terms: Sequence[RewardTerm], device: torch.device) -> MixedReward:
    """All sources with their weights, for texts from anywhere: reward models read them with their own tokenizers.

    Raises:
        ConfigError, ModelError, RewardError: a source cannot be used.
    """
    light = open_light(terms)
    for label, scorer in light.items():
        if isinstance(scorer, FunctionReward) and scorer.reads_tokens:
            raise ConfigError(
                f"reward {label} reads `response_ids`, the policy's tokens, and here are texts alone: give it to the recipe "
                "itself, or leave `response_ids` out of its parameters"
            )
    for path in (path for term in terms for path in term.paths):
        check_classifier(as_classifier(path))

    def source(term: RewardTerm) -> RewardSource:
        if term.paths:
            return text_source(term, score_facts(term), device)
        if term.classifier is not None:
            return ClassifierReward(term.classifier, term.label, device)
        return light[term.label]

    return MixedReward([(source(term), term.weight) for term in terms])
