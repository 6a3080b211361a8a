"""Ten steps of gradient descent on fixed inputs, as they were when the losses were proved.

A change here is a change of what runs learn. If it is meant: `python tests/golden/test_losses.py` writes the file anew,
and the reason goes into docs/LOG.md. Inputs come from sines, not from a random generator: they are the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.losses import (
    bco,
    bradley_terry,
    classify,
    cpo,
    dpo,
    kl_penalty,
    kto,
    orpo,
    ppo_policy,
    ppo_value,
    process_reward,
    sft,
    simpo,
)
from accord.ops.logprobs import token_logprobs

FILE = Path(__file__).parent / "losses.json"
T, H, V = 9, 4, 7
MASK_T = torch.tensor([False, True, True, False, True, True, True, False, True])
TOKENS = MASK_T.sum().float()
TARGETS_T = torch.arange(T) * 3 % V


def wave(*shape: int, pitch: float, height: float = 1.0) -> Tensor:
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return (height * torch.sin(pitch * count)).float().reshape(shape)


HIDDEN_TH, WEIGHT_VH = wave(T, H, pitch=0.7), wave(V, H, pitch=1.3)
ADVANTAGES_T = wave(T, pitch=2.1) + 0.5


def logprobs(weight_VH: Tensor) -> tuple[Tensor, Tensor]:
    return token_logprobs(HIDDEN_TH, weight_VH, None, TARGETS_T, temperature=0.9, with_entropy=True)


OLD_T = logprobs(WEIGHT_VH)[0]
REF_T = OLD_T + wave(T, pitch=1.9, height=2.0)


def policy(weight_VH: Tensor) -> Tensor:
    logprobs_T, entropies_T = logprobs(weight_VH)
    return ppo_policy(
        logprobs_T=logprobs_T,
        old_logprobs_T=OLD_T,
        advantages_T=ADVANTAGES_T,
        mask_T=MASK_T,
        tokens=TOKENS,
        clip=0.2,
        entropies_T=entropies_T,
        entropy_coef=0.01,
    )[0]


def value(weight_T: Tensor) -> Tensor:
    return ppo_value(
        values_T=weight_T,
        old_values_T=wave(T, pitch=0.9),
        returns_T=wave(T, pitch=1.1, height=2.0),
        mask_T=MASK_T,
        tokens=TOKENS,
        value_clip=0.5,
    )[0]


def kl(estimator: str) -> Callable[[Tensor], Tensor]:
    def loss(weight_VH: Tensor) -> Tensor:
        return kl_penalty(
            logprobs_T=logprobs(weight_VH)[0],
            ref_logprobs_T=REF_T,
            mask_T=MASK_T,
            tokens=TOKENS,
            estimator=estimator,
            coef=0.5,
        )[0]

    return loss


def reward(scores_2P: Tensor) -> Tensor:
    return bradley_terry(
        chosen_P=scores_2P[0],
        rejected_P=scores_2P[1],
        pairs=torch.tensor(5.0),
        margins_P=wave(5, pitch=0.4, height=0.5),
        centre_coef=0.01,
    )[0]


def classes(logits_KC: Tensor) -> Tensor:
    right_K = torch.arange(5) * 2 % 3
    return classify(logits_KC=logits_KC, classes_K=right_K, tokens=torch.tensor(5.0), label_smoothing=0.1)[0]


LENGTHS = {"chosen_lengths_P": wave(5, pitch=0.3) + 4, "rejected_lengths_P": wave(5, pitch=0.8) + 5}
REFERENCE = {"ref_chosen_P": wave(5, pitch=0.6, height=2.0) - 8, "ref_rejected_P": wave(5, pitch=1.1, height=2.0) - 8}


def answers(loss_of: Callable[..., tuple[Tensor, dict[str, Tensor]]], **options: Any) -> Callable[[Tensor], Tensor]:
    def loss(logprobs_2P: Tensor) -> Tensor:
        pair = {"chosen_P": logprobs_2P[0], "rejected_P": logprobs_2P[1]}
        return loss_of(**pair, **LENGTHS, pairs=torch.tensor(5.0), **options)[0]

    return loss


def process(scores_T: Tensor) -> Tensor:
    labels_T = (wave(T, pitch=1.6) + 1) / 2
    return process_reward(scores_T=scores_T, labels_T=labels_T, mask_T=MASK_T, tokens=TOKENS)[0]


def labelled(loss_of: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> Callable[[Tensor], Tensor]:
    def loss(logprobs_N: Tensor) -> Tensor:
        return loss_of(
            logprobs_N=logprobs_N,
            ref_logprobs_N=wave(6, pitch=0.8, height=3.0),
            labels_N=torch.tensor([True, False, True, True, False, False]),
            baselines_N=torch.full((6,), 0.2),
            beta=0.5,
            sequences=torch.tensor(6.0),
            desirable=torch.tensor(3.0),
            desirable_weight=1.5,
            undesirable_weight=0.75,
        )[0]

    return loss


DPO: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo_cdpo": {"label_smoothing": 0.1},
    "dpo_robust": {"loss": "robust", "label_smoothing": 0.1},
    "dpo_exo": {"loss": "exo", "label_smoothing": 0.01},
    "dpo_ipo": {"loss": "ipo", "length_normalize": True},
    "dpo_js_rpo": {"f_divergence": "js", "sft_coef": 0.5},
    "dpo_alpha": {"f_divergence": "alpha"},
    "dpo_aot": {"loss": "aot", "chosen_match_P": wave(5, pitch=0.5), "rejected_match_P": wave(5, pitch=0.7)},
    **{f"dpo_{name}": {"loss": name} for name in ("hinge", "nca", "sppo", "apo_zero", "apo_down", "discopop")},
}
LOGPROBS_2P = wave(2, 5, pitch=1.7, height=2.0) - 9

RUNS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, float]] = {
    "sft": (lambda w: sft(logprobs_T=logprobs(w)[0], mask_T=MASK_T, tokens=TOKENS)[0], WEIGHT_VH, 0.5),
    "ppo_policy": (policy, WEIGHT_VH, 0.2),
    "ppo_value": (value, wave(T, pitch=0.9) + 0.1, 1.0),
    "kl_k2": (kl("k2"), WEIGHT_VH, 0.05),
    "kl_k3": (kl("k3"), WEIGHT_VH, 0.05),
    "bradley_terry": (reward, wave(2, 5, pitch=1.7), 1.0),
    **{name: (answers(dpo, **REFERENCE, **options), LOGPROBS_2P, 0.5) for name, options in DPO.items()},
    "orpo": (answers(orpo, beta=0.5), LOGPROBS_2P, 0.5),
    "simpo": (answers(simpo, beta=2.0, gamma_beta_ratio=0.5, alpha=0.1), LOGPROBS_2P, 0.5),
    "cpo": (answers(cpo, beta=0.1), LOGPROBS_2P, 0.5),
    "classify": (classes, wave(5, 3, pitch=1.4, height=2.0), 2.0),
    "process_reward": (process, wave(T, pitch=0.9, height=2.0), 5.0),
    "kto": (labelled(kto), wave(6, pitch=1.2, height=3.0), 5.0),
    "bco": (labelled(bco), wave(6, pitch=1.2, height=3.0), 5.0),
}
"""Name -> loss of the parameters, their start, the learning rate."""


def descend(name: str) -> list[float]:
    loss_of, start, rate = RUNS[name]
    weight, losses = start.clone().requires_grad_(), []
    for _ in range(10):
        loss = loss_of(weight)
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(loss.item())
        weight = (weight - rate * gradient).detach().requires_grad_()
    return losses


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_are_as_they_were(name):
    assert descend(name) == pytest.approx(json.loads(FILE.read_text())[name], rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_go_down(name):
    losses = descend(name)
    assert losses[-1] < losses[0]


def test_the_file_holds_these_runs_and_no_other():
    assert json.loads(FILE.read_text()).keys() == RUNS.keys()


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: descend(name) for name in RUNS}, indent=1) + "\n")
