"""Held-out numbers equal the naive computation with plain transformers, for any micro-batch, and change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.algorithms import DPO, SFT, RewardModelling
from accord.config import DPOConfig, LoraConfig, ModelConfig, RewardConfig
from accord.data import EncodedPair, TokenSequence
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.training.evaluate import evaluate, with_perplexity


def sequences(count: int = 6) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(3, 250, (3 + 2 * n,), generator=generator).tolist()) for n in range(count)]
    return [TokenSequence(s, (False,) + (True,) * (len(s) - 1)) for s in ids]


def make(base: Path, scorer: bool = False, dropout: float = 0.0) -> Roles:
    roles = Roles(ModelConfig(path=str(base)), LoraConfig(r=4, alpha=8, dropout=dropout), torch.device("cpu"))
    if scorer:
        roles.add_scorer()
    else:
        roles.add_policy()
    return roles


@pytest.mark.parametrize("micro", [1, 20, 4096])
def test_loss_is_the_mean_over_all_target_tokens(micro, base):
    roles, items = make(base, dropout=0.5), sequences()
    metrics = evaluate(items, SFT(), roles, Scorer(roles, micro), micro)
    model, total, count = AutoModelForCausalLM.from_pretrained(base).eval(), 0.0, 0
    for item in items:
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (len(item) - 1)
        count += len(item) - 1
    assert metrics.keys() == {"eval/loss", "eval/perplexity"}
    assert metrics["eval/loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["eval/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert all(weight.grad is None for weight in roles.model.parameters())


@pytest.mark.parametrize("micro", [1, 4096])
def test_accuracy_is_the_share_of_pairs_in_the_right_order(micro, base):
    roles = make(base, scorer=True)
    with torch.no_grad():
        roles.roles["reward"].score_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    items = [EncodedPair(a, b) for a, b in zip(sequences()[::2], sequences()[1::2], strict=True)]
    metrics = evaluate(items, RewardModelling(RewardConfig(centre_coef=0)), roles, Scorer(roles, micro), micro)
    trunk = AutoModelForCausalLM.from_pretrained(base).eval().model
    weight = roles.roles["reward"].score_head.weight.detach()[0]

    def score(item: TokenSequence) -> float:
        with torch.no_grad():
            return float(trunk(torch.tensor([item.input_ids])).last_hidden_state[0, -1] @ weight)

    margins = [score(pair.chosen) - score(pair.rejected) for pair in items]
    assert metrics["eval/accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 3)
    assert metrics["eval/margin"] == pytest.approx(sum(margins) / 3, rel=1e-4)
    assert metrics["eval/loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, rel=1e-4)
    assert "eval/perplexity" not in metrics


@pytest.mark.parametrize("loss", ["sigmoid", "aot"])
@pytest.mark.parametrize("micro", [1, 4096])
def test_families_keep_their_names(micro, loss, base):
    """`logps/chosen` and `rewards/chosen` must not fall on one name."""
    roles = make(base)
    items = [EncodedPair(a, b) for a, b in zip(sequences()[::2], sequences()[1::2], strict=True)]
    metrics = evaluate(items, DPO(DPOConfig(loss=loss)), roles, Scorer(roles, micro), micro)
    both = {f"{family}/{which}" for family in ("rewards", "logps") for which in ("chosen", "rejected")}
    assert metrics.keys() == {"eval/loss", "eval/rewards/accuracies", "eval/rewards/margins"} | {
        f"eval/{n}" for n in both
    }
    model, total = AutoModelForCausalLM.from_pretrained(base).eval(), 0.0
    for pair in items:
        with torch.no_grad():
            total -= float(
                model(torch.tensor([pair.chosen.input_ids]), labels=torch.tensor([pair.chosen.input_ids])).loss
            ) * (len(pair.chosen) - 1)
    assert metrics["eval/logps/chosen"] == pytest.approx(total / 3, rel=1e-5)
    assert metrics["eval/rewards/chosen"] == pytest.approx(0.1 * total / 3, rel=1e-5)


def test_perplexity_of_an_absurd_loss_is_finite():
    assert with_perplexity({"sft/loss": 1e9}, "sft")["sft/perplexity"] == math.exp(50)
    assert with_perplexity({"ppo/x": 1.0}, "ppo") == {"ppo/x": 1.0}
