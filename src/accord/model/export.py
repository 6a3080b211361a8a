"""Saving what a run learnt, so that plain transformers and peft load it with the same results."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from accord.model import classifiers
from accord.model.adapters import SCORE
from accord.model.classifiers import ClassFacts, head_shape, named_head, write_labels
from accord.model.critic import CRITIC, VALUE_HEAD, WEIGHT
from accord.model.loading import distinct_padding
from accord.model.roles import Roles
from accord.model.saving import save_model


def save_policy(roles: Roles, folder: Path) -> None:
    """Write the policy: a PEFT adapter, or a whole causal language model; with its tokenizer."""
    role = roles.roles["policy"]
    if role.adapter is not None:
        roles.adapters.save(role.adapter, folder)
    else:
        save_model(roles.model, folder)
    roles.tokenizer.save_pretrained(folder)


def save_policy_and_critic(roles: Roles, folder: Path) -> None:
    """Write the policy as `save_policy` does, and beside it what it takes to go on with its critic, if it has one (see
    `model.critic`); who loads the policy alone is not troubled by it."""
    save_policy(roles, folder)
    head = roles.roles["policy"].value_head
    if head is not None:
        save_file({WEIGHT: head.weight.detach().cpu().contiguous()}, folder / VALUE_HEAD)
    if "critic" in roles.roles:
        save_scorer(roles, folder / CRITIC, "critic")


def save_scorer(roles: Roles, folder: Path, name: str = "reward") -> None:
    """Write the reward model, or a critic with weights of its own: a PEFT adapter over, or a whole,
    `AutoModelForSequenceClassification` with one label."""
    role = roles.roles[name]
    head = role.score_head or role.value_head
    assert head is not None
    tokenizer = copy.deepcopy(roles.tokenizer)
    padding = distinct_padding(tokenizer)
    if role.adapter is not None:
        roles.adapters.save(role.adapter, folder, "SEQ_CLS", {SCORE: head.weight})
    else:
        save_model(as_classifier(role.trunk, head.weight, padding), folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def save_classifier(roles: Roles, folder: Path, facts: ClassFacts) -> None:
    """Write the classifier: a PEFT adapter over, or a whole, `AutoModelForSequenceClassification` or
    `AutoModelForTokenClassification`, with the names of its labels."""
    role = roles.roles["classifier"]
    assert role.class_head is not None
    tokenizer = copy.deepcopy(roles.tokenizer)
    shape = head_shape(roles.location.base, roles.model.config, facts.level)
    head = named_head(role.class_head, shape.name)
    if role.adapter is not None:
        distinct_padding(tokenizer)
        roles.adapters.save(role.adapter, folder, classifiers.TASKS[facts.level], head)
        write_labels(folder, facts)
    else:
        save_model(classifiers.as_classifier(role.trunk, facts, head, tokenizer), folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def as_classifier(model: PreTrainedModel, score: torch.Tensor, padding: int | None) -> PreTrainedModel:
    """The classifier with a causal model's trunk (or this itself) and a score head; weights are shared, not copied."""
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, padding
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    prefix = classifier.base_model_prefix
    tensors = {f"{prefix}.{key}": tensor for key, tensor in model.base_model.state_dict().items()}
    tensors["score.weight"] = score.detach().to(model.dtype)
    classifier.load_state_dict(tensors, strict=True, assign=True)
    return classifier
