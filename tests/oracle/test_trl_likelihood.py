"""The losses of pairs without a reference against TRL: from logits, with prompts, masks and means as TRL makes them.

Where a likelihood term is in the loss, TRL takes its mean over all tokens of a micro-batch: long answers count for more, and
the gradient depends on how the step is cut. Ours is a mean over pairs of means over tokens (see `nll_per_token`), which is TRL's
for micro-batches of one pair; so that is what is compared.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.losses import cpo, orpo, simpo
from oracle.padded import Padded, trainer

pytest.importorskip("trl")

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PAIRS = 4
VOCABULARY = 12
SEEDS = range(4)
BETA = 0.4


class Drawn:
    """Prompts with a chosen and a rejected answer each, and the logits of a model: float64 [2 PAIRS, L, V], chosen first.

    Args:
        seed: of everything here.
        prompt: length of all prompts; `None` for random ones.
        sharpness: scale of the logits.
    """

    def __init__(self, seed: int, prompt: int | None = None, sharpness: float = 1.5) -> None:
        ragged = Padded(seed, 2 * PAIRS, VOCABULARY)
        prompts = [(p * 5)[:prompt] if prompt else p for p in ragged.prompts[:PAIRS]]
        self.rows = list(zip(prompts * 2, ragged.responses, strict=True))
        self.longest = max(len(p) + len(r) for p, r in self.rows)
        shape = (2 * PAIRS, self.longest, VOCABULARY)
        self.logits = sharpness * torch.randn(shape, generator=ragged.generator, dtype=torch.float64)

    def answers(self, logits: Tensor) -> dict[str, Tensor]:
        """What our losses take."""
        sums, lengths = [], []
        for of_row, (prompt, response) in zip(logits, self.rows, strict=True):
            ids = torch.tensor(prompt + response)
            logprobs = of_row[: len(ids) - 1].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
            sums.append(logprobs[len(prompt) - 1 :].sum())
            lengths.append(float(len(response)))
        return {
            "chosen_P": torch.stack(sums[:PAIRS]),
            "rejected_P": torch.stack(sums[PAIRS:]),
            "chosen_lengths_P": torch.tensor(lengths[:PAIRS], dtype=torch.float64),
            "rejected_lengths_P": torch.tensor(lengths[PAIRS:], dtype=torch.float64),
        }

    def inputs(self, pairs: range) -> dict[str, Tensor]:
        """What TRL's collator gives, padded on the right."""
        result = {}
        for name, start in (("chosen", 0), ("rejected", PAIRS)):
            rows = [self.rows[start + pair] for pair in pairs]
            fill = [self.longest - len(p) - len(r) for p, r in rows]
            columns = {
                "input_ids": [p + r + [0] * n for (p, r), n in zip(rows, fill, strict=True)],
                "attention_mask": [[1] * (self.longest - n) + [0] * n for n in fill],
                "labels": [[-100] * len(p) + r + [-100] * n for (p, r), n in zip(rows, fill, strict=True)],
            }
            result |= {f"{name}_{column}": torch.tensor(values) for column, values in columns.items()}
        return result


def ours(of: Any, drawn: Drawn, **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    logits = drawn.logits.clone().requires_grad_()
    value, metrics = of(**drawn.answers(logits), pairs=torch.tensor(float(PAIRS)), **{"beta": BETA} | options)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad, metrics


def theirs(
    kind: Any, drawn: Drawn, one_by_one: bool = False, **settings: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss, gradient of the logits and metrics of TRL: of the whole step at once, or the mean over pairs one by one."""
    logits = drawn.logits.clone().requires_grad_()
    options = {"beta": BETA, "label_smoothing": 0.0, "alpha": 0.0, "simpo_gamma": 0.0, "cpo_alpha": 0.0}
    stand_in = trainer(**options | {"is_encoder_decoder": False, "padding_value": 0, "pad_token_id": 0} | settings)
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(kind, name):
            setattr(stand_in, name, getattr(kind, name).__get__(stand_in))
    stand_in.concatenated_inputs, stand_in.get_batch_logps = kind.concatenated_inputs, kind.get_batch_logps
    values, metrics = [], {}
    for pairs in [range(p, p + 1) for p in range(PAIRS)] if one_by_one else [range(PAIRS)]:
        rows = [*pairs, *(PAIRS + p for p in pairs)]
        model = lambda *_, rows=rows, **__: SimpleNamespace(logits=logits[rows])  # noqa: E731
        value, metrics = kind.get_batch_loss_metrics(stand_in, model, drawn.inputs(pairs))
        values.append(value)
    total = torch.stack(values).mean()
    total.backward()
    assert logits.grad is not None
    return total.detach(), logits.grad, metrics


def assert_same(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    assert found[0].item() == pytest.approx(expected[0].item(), rel=rtol)
    assert torch.allclose(found[1], expected[1], rtol=10 * rtol, atol=rtol)


# TRL's IPO is of log-probabilities per token, its sigmoid and hinge of whole answers; ours are what `length_normalize` says.
@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cpo_without_its_likelihood(kind, smoothing):
    for seed in SEEDS:
        drawn = Drawn(seed)
        options = {"loss": kind, "label_smoothing": smoothing, "length_normalize": kind == "ipo", "sft_coef": 0.0}
        found = ours(cpo, drawn, **options)
        expected = theirs(CPOTrainer, drawn, loss_type=kind, label_smoothing=smoothing)
        assert_same(found, expected)
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert float(found[2][name]) == pytest.approx(expected[2][name], rel=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_cpo_with_its_likelihood_is_trl_s_of_one_pair_at_a_time(kind):
    for seed in SEEDS:
        drawn = Drawn(seed)
        found = ours(cpo, drawn, loss=kind, length_normalize=kind == "ipo", sft_coef=0.6)
        assert_same(found, theirs(CPOTrainer, drawn, one_by_one=True, loss_type=kind, cpo_alpha=0.6))


def test_the_likelihood_of_a_micro_batch_counts_tokens_at_trl_and_pairs_here():
    """On purpose, and exactly by the lengths: sum |c| nll / sum |c| there, sum nll / P here."""
    drawn = Drawn(1)
    said = drawn.answers(drawn.logits)
    each, lengths = -said["chosen_P"] / said["chosen_lengths_P"], said["chosen_lengths_P"]
    _, _, metrics = ours(cpo, drawn, sft_coef=1.0)
    _, _, trl = theirs(CPOTrainer, drawn, loss_type="sigmoid", cpo_alpha=1.0)
    assert float(metrics["cpo/nll"]) == pytest.approx(float(each.mean()), rel=1e-12)
    assert trl["nll_loss"] == pytest.approx(float((each * lengths).sum() / lengths.sum()), rel=1e-9)
    assert abs(float(metrics["cpo/nll"]) - trl["nll_loss"]) > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.25, -0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("sft", [0.0, 0.6])
def test_simpo_and_alphapo(alpha, smoothing, sft):
    """TRL's gamma is ours times beta: it has the paper's gamma, we its ratio to beta."""
    for seed in SEEDS:
        drawn = Drawn(seed)
        options = {"alpha": alpha, "label_smoothing": smoothing}
        found = ours(simpo, drawn, gamma_beta_ratio=1.25, sft_coef=sft, **options)
        settings = {"loss_type": "simpo", "simpo_gamma": 1.25 * BETA, "cpo_alpha": sft}
        assert_same(found, theirs(CPOTrainer, drawn, one_by_one=True, **settings, **options))


def test_alphapo_goes_on_along_its_tangent_where_trl_s_leaves_float32():
    """On purpose: beyond an exponent of 15 the reward is (1 - e^15 (1 + x - 15)) / alpha, and its slope stays."""
    drawn, alpha = Drawn(0, sharpness=9.0), 3.0
    said = drawn.answers(drawn.logits)
    exponents = -alpha * said["rejected_P"] / said["rejected_lengths_P"]
    assert int((exponents > 15).sum()) >= 2
    wanted = torch.where(
        exponents > 15, 1 - torch.tensor(15.0).double().exp() * (1 + exponents - 15), 1 - exponents.exp()
    )
    _, gradient, metrics = ours(simpo, drawn, gamma_beta_ratio=0.0, alpha=alpha)
    _, _, trl = theirs(CPOTrainer, drawn, loss_type="simpo", alpha=alpha)
    assert float(metrics["rewards/rejected"]) == pytest.approx(float(BETA / alpha * wanted.mean()), rel=1e-9)
    assert trl["rewards/rejected"] == pytest.approx(float(BETA / alpha * (1 - exponents.exp()).mean()), rel=1e-9)
    assert bool(gradient.isfinite().all())


def test_orpo():
    """Behind prompts of one token, of which TRL's likelihood, too, is of the answer alone. TRL takes the odds in float32."""
    for seed in SEEDS:
        drawn = Drawn(seed, prompt=1)
        found = ours(orpo, drawn)
        expected = theirs(ORPOTrainer, drawn, one_by_one=True)
        assert_same(found, expected, rtol=1e-6)
        whole = theirs(ORPOTrainer, drawn)[2]
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert float(found[2][name]) == pytest.approx(whole[name], rel=1e-5)
        assert float(found[2]["orpo/log_odds"]) == pytest.approx(whole["log_odds_chosen"], rel=1e-5)


def test_orpo_s_likelihood_is_of_the_answer_here_and_of_the_prompt_too_at_trl():
    """On purpose (the paper's equation 2 is of y given x). The odds are the same, and the likelihood is TRL's without the
    prompt's part."""
    for seed in SEEDS:
        drawn = Drawn(seed, prompt=5)
        found, expected = ours(orpo, drawn), theirs(ORPOTrainer, drawn, one_by_one=True)
        of_prompts = torch.zeros(PAIRS, dtype=torch.float64)
        for pair, (prompt, _) in enumerate(drawn.rows[:PAIRS]):
            logprobs = drawn.logits[pair, : len(prompt) - 1].log_softmax(-1)
            of_prompts[pair] = -logprobs[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])].sum()
        said = drawn.answers(drawn.logits)
        lengths = said["chosen_lengths_P"]
        theirs_nll = ((of_prompts - said["chosen_P"]) / (lengths + 4)).mean()
        ours_nll = (-said["chosen_P"] / lengths).mean()
        assert float(expected[0] - theirs_nll) == pytest.approx(float(found[0] - ours_nll), rel=1e-5)
        assert abs(float(expected[0] - found[0])) > 1e-3


def test_odds_of_a_certain_answer_are_bounded_here_and_infinite_at_trl():
    """On purpose: a policy that is sure of a short answer must not end a run."""
    drawn = Drawn(2, prompt=1)
    for row, (prompt, response) in enumerate(drawn.rows[:PAIRS]):
        ids = torch.tensor(prompt + response)
        drawn.logits[row, torch.arange(len(ids) - 1), ids[1:]] += 1000.0
    found, expected = ours(orpo, drawn), theirs(ORPOTrainer, drawn)
    assert bool(found[0].isfinite()) and bool(found[1].isfinite().all())
    assert not bool(expected[1].isfinite().all())
