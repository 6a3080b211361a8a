"""Saving what a run learnt, so that plain transformers and peft load it with the same results."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from accord.model.adapters import SCORE
from accord.model.loading import distinct_padding, quiet_progress
from accord.model.roles import Roles


def save_policy(roles: Roles, folder: Path) -> None:
    """Write the policy: a PEFT adapter, or a whole causal language model; with its tokenizer."""
    role = roles.roles["policy"]
    if role.adapter is not None:
        roles.adapters.save(role.adapter, folder)
    else:
        _save_model(roles.model, folder)
    roles.tokenizer.save_pretrained(folder)


def save_scorer(roles: Roles, folder: Path) -> None:
    """Write the reward model: a PEFT adapter over, or a whole, `AutoModelForSequenceClassification` with one label."""
    role = roles.roles["reward"]
    assert role.score_head is not None
    tokenizer = copy.deepcopy(roles.tokenizer)
    padding = distinct_padding(tokenizer)
    if role.adapter is not None:
        roles.adapters.save(role.adapter, folder, "SEQ_CLS", {SCORE: role.score_head.weight})
    else:
        _save_model(as_classifier(roles.model, role.score_head.weight, padding), folder)
    tokenizer.save_pretrained(folder)


def as_classifier(model: PreTrainedModel, score: torch.Tensor, padding: int | None) -> PreTrainedModel:
    """The classifier with a causal model's trunk and a score head; weights are shared, not copied."""
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, padding
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    prefix = classifier.base_model_prefix
    tensors = {f"{prefix}.{key}": tensor for key, tensor in model.base_model.state_dict().items()}
    tensors["score.weight"] = score.detach().to(model.dtype)
    classifier.load_state_dict(tensors, strict=True, assign=True)
    return classifier


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_progress():
        model.save_pretrained(folder)
