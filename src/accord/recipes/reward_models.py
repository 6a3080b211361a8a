"""From a recipe's reward term to the source that reads reward models: one or several, of answers or of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from accord.config import ClassifierConfig, RewardTerm
from accord.errors import ModelError
from accord.model.classifiers import refuse_classes
from accord.model.loading import Location, is_scorer, locate
from accord.model.score_facts import FILE, ScoreFacts, read_facts
from accord.model.scorer import Scorer
from accord.rewards import ClassifierReward, EnsembleReward, ModelReward, ProcessReward, RewardSource


def score_facts(term: RewardTerm) -> list[ScoreFacts]:
    """How each of the term's models is to be read; needs no weights.

    Raises:
        ModelError: what the term wants and what is stored with a model do not fit.
    """
    for path in term.paths:
        location = locate(path)
        refuse_classes(path, location, "a reward model")
        check_scorer(path, location, f"reward {term.label}")
    return [_fitting(term, path, read_facts(locate(path))) for path in term.paths]


def check_scorer(path: str, location: Location, where: str) -> None:
    """Refuse what gives no score; needs no weights.

    Args:
        path: as it was given.
        location: what it points to.
        where: it was given, for the message.

    Raises:
        ModelError: it is a language model, or an adapter of one.
    """
    if not is_scorer(location):
        kind = "an adapter of a language model" if location.adapter is not None else "a language model"
        raise ModelError(
            f"{where}: {path} is not a reward model, but {kind}; a reward model is a sequence classifier with one label, or an "
            "adapter that is one (`accord reward` makes one)"
        )


def _fitting(term: RewardTerm, path: str, stored: ScoreFacts | None) -> ScoreFacts:
    facts = stored or ScoreFacts(level="response" if term.process is None else "step")
    if facts.level == "step" and term.process is None:
        raise ModelError(
            f"{path} scores steps, so say how their probabilities make a response's score: "
            "reward: {model: ..., process: min | prod | last | mean | sum | tokens}"
        )
    if facts.level == "response" and term.process is not None:
        raise ModelError(f"{path} scores whole answers ({FILE}), so `process` does not apply to it: leave it out")
    if term.process is not None and (term.step or facts.step) is None:
        raise ModelError(f"{path} does not say what stands between two steps (there is no {FILE}): give `step`")
    if term.normalized and facts.mean is None:
        raise ModelError(
            f"{path} has no mean and standard deviation of its scores to normalise by: train it with algorithm.normalize, "
            "or leave out `normalized`"
        )
    facts = facts if term.normalized is not False else replace(facts, mean=None, std=None)
    return replace(facts, step=term.step or facts.step)


def model_source(term: RewardTerm, facts: Sequence[ScoreFacts], scorer: Scorer) -> RewardSource:
    """The term's source, over token ids of the policy; its roles are there already, one for each of its models."""

    def one(number: int, label: str) -> RewardSource:
        role, fact = term.roles[number], facts[number]
        if term.process is None:
            return ModelReward(scorer, role, label, fact)
        assert fact.step is not None
        return ProcessReward(scorer, role, label, scorer.roles.tokenizer, fact.step, term.process)

    return _as_one(term, one)


def text_source(term: RewardTerm, facts: Sequence[ScoreFacts], device: torch.device) -> RewardSource:
    """The term's source, over texts from anywhere: each of its models, of answers, reads them with its own tokenizer."""

    def one(number: int, label: str) -> RewardSource:
        return ClassifierReward(as_classifier(term.paths[number]), label, device, add_eos=True, facts=facts[number])

    return _as_one(term, one)


def as_classifier(model: str) -> ClassifierConfig:
    """How a reward model is read as a text classifier."""
    return ClassifierConfig(model=model, of="prompt_response", value="logit", too_long="error")


def _as_one(term: RewardTerm, one: Callable[[int, str], RewardSource]) -> RewardSource:
    """The term's only model, or the ensemble of all. `one` takes a model's number and the label it goes by."""
    if term.model is not None:
        return one(0, term.label)
    members = [one(number, f"{term.label}/{number + 1}") for number, _ in enumerate(term.models)]
    return EnsembleReward(members, term.label, term.combine, term.coef)
