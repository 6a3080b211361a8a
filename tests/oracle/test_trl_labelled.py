"""KTO and BCO against TRL, in float64 where TRL and the loss take it, with every mixture of labels."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from accord.algorithms.base import Denominators
from accord.algorithms.bco import BCO
from accord.algorithms.kto import KTO
from accord.config import BCOConfig, KTOConfig
from accord.data import EncodedLabelled, TokenSequence
from accord.losses import bco, kto
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from oracle.padded import Padded, trainer
from oracle.test_trl_pairs import PAIRS
from oracle.test_trl_pairs import drawn as drawn_pairs
from oracle.test_trl_pairs import theirs as dpo_of_trl
from oracle.test_trl_pairs import whole as whole_pairs

pytest.importorskip("trl")

from trl import KTOTrainer

ROWS = 8
SEEDS = range(6)
BETA = 0.3
LABELS = {"mixed": [True, False, False, True, True, False, True, True], "up": [True] * ROWS, "down": [False] * ROWS}


class Drawn:
    """Answers with their log-probabilities, and the answers of other rows, likelier (`shift` > 0) or not than under the
    reference."""

    def __init__(self, seed: int, shift: float = 0.1) -> None:
        self.rows, self.others = Padded(seed, ROWS), Padded(seed + 100, ROWS)
        self.logprobs_T = -self.rows.stream().abs() - 0.05 * self.rows.batch.target_mask_T
        self.reference_T = self.logprobs_T + self.rows.stream(0.8)
        self.others_T = -self.others.stream().abs()
        self.others_reference_T = self.others_T - self.others.stream(0.3, shift)

    @property
    def kl(self) -> Tensor:
        """What the KL term is made of, before it is cut at 0."""
        return (whole(self.others_T, self.others) - whole(self.others_reference_T, self.others)).mean()


def whole(stream_T: Tensor, ragged: Padded) -> Tensor:
    return torch.zeros(ROWS, dtype=stream_T.dtype).index_add(0, ragged.batch.sequence_T, stream_T)


def given(ragged: Padded, prefix: str = "") -> dict[str, Tensor]:
    """Sequences as TRL's collator makes them, behind prompts of one token."""
    prompt = torch.zeros(ROWS, 1, dtype=torch.long)
    return {
        f"{prefix}input_ids": torch.cat([prompt, ragged.inputs()["completion_ids"]], dim=1),
        f"{prefix}attention_mask": torch.cat([prompt + 1, ragged.mask.long()], dim=1),
        f"{prefix}completion_mask": torch.cat([prompt, ragged.mask.long()], dim=1),
    }


def theirs(drawn: Drawn, labels: list[bool], loss_type: str, **settings: Any) -> tuple[Tensor, Tensor, float]:
    """Loss, gradient and KL term of TRL."""
    padded = drawn.rows.pad(drawn.logprobs_T, 0.0).requires_grad_()
    others = drawn.others.pad(drawn.others_T, 0.0)
    inputs = given(drawn.rows) | given(drawn.others, "KL_")
    inputs["label"] = torch.tensor(labels)
    inputs["ref_logps"] = whole(drawn.reference_T, drawn.rows)
    inputs["ref_KL_logps"] = whole(drawn.others_reference_T, drawn.others)

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logprobs = others if input_ids is inputs["KL_input_ids"] else padded * drawn.rows.mask
        return SimpleNamespace(
            log_probs=logprobs, entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs)
        )

    options = {"beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.0, "precompute_ref_logps": True}
    stand_in = trainer(**options | {"loss_type": loss_type, "calculate_KL": loss_type == "kto"} | settings)
    stand_in._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, stand_in)
    loss = KTOTrainer._compute_loss(stand_in, model, inputs, False)
    loss.backward()
    assert padded.grad is not None
    return loss.detach(), padded.grad[drawn.rows.mask], stand_in._metrics["train"]["kl"][0]


def ours(drawn: Drawn, labels: list[bool], kl: float, **weights: float) -> tuple[Tensor, Tensor]:
    new = drawn.logprobs_T.clone().requires_grad_()
    loss, _ = kto(
        logprobs_N=whole(new, drawn.rows),
        ref_logprobs_N=whole(drawn.reference_T, drawn.rows),
        labels_N=torch.tensor(labels),
        baselines_N=torch.full((ROWS,), BETA * kl, dtype=torch.float64),
        beta=BETA,
        sequences=torch.tensor(float(ROWS)),
        desirable=torch.tensor(float(sum(labels))),
        **weights,
    )
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad[drawn.rows.batch.target_mask_T]


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": 1.3, "undesirable_weight": 0.7}])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_kto_and_unpaired_apo_zero(kind, labels, weights):
    for seed in SEEDS:
        drawn = Drawn(seed)
        kl = max(0.0, float(drawn.kl)) if kind == "kto" else 0.0
        loss, gradient = ours(drawn, LABELS[labels], kl, **weights)
        expected, expected_gradient, expected_kl = theirs(drawn, LABELS[labels], kind, **weights)
        assert kl == pytest.approx(expected_kl, rel=1e-9)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # our weights are float32
        assert torch.allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-10)


class Says:
    """A scorer of which the log-probabilities are known: of the rows, and of the other rows' answers behind their prompts."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn

    def score(self, batch: Any, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        drawn = self.drawn
        of_others = torch.equal(batch.input_ids_T, drawn.others.batch.input_ids_T)
        new, old = (drawn.others_T, drawn.others_reference_T) if of_others else (drawn.logprobs_T, drawn.reference_T)
        return {k: v.float() for k, v in (("old_logprobs_T", new), ("ref_logprobs_T", old)) if k in wanted}


def encoded(drawn: Drawn, labels: list[bool]) -> list[EncodedLabelled]:
    def sequences(ragged: Padded) -> list[TokenSequence]:
        return [
            TokenSequence((*p, *r), (False,) * len(p) + (True,) * len(r))
            for p, r in zip(ragged.prompts, ragged.responses, strict=True)
        ]

    return [
        EncodedLabelled(row, label, other)
        for row, label, other in zip(sequences(drawn.rows), labels, sequences(drawn.others), strict=True)
    ]


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_the_algorithm_s_kl_term(shift):
    """Through `prepare`: a mean of whole answers (not of tokens), cut at 0, times beta, without gradient."""
    for seed in SEEDS:
        drawn, labels = Drawn(seed, shift), LABELS["mixed"]
        assert bool(drawn.kl > 0) == (shift > 0)
        algorithm = KTO(KTOConfig(beta=BETA))
        batch, metrics = algorithm.prepare(encoded(drawn, labels), cast(Scorer, Says(drawn)))
        new = drawn.logprobs_T.float().requires_grad_()
        counts = torch.tensor([batch.targets, ROWS, sum(labels)], dtype=torch.float32)
        loss, _ = algorithm.loss("policy", Outputs(logprobs_T=new), batch, Denominators(*counts.unbind()))
        loss.backward()
        expected, gradient, kl = theirs(drawn, labels, "kto")
        assert metrics["objective/kl"] == pytest.approx(kl, rel=1e-5, abs=1e-7)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert new.grad is not None
        assert torch.allclose(new.grad[batch.target_mask_T].double(), gradient, rtol=1e-4, atol=1e-7)


def of_bco(seed: int, baseline: float, reference_N: Tensor) -> tuple[Tensor, Tensor]:
    ragged, logprobs_T, _ = drawn_pairs(seed)
    new = logprobs_T.clone().requires_grad_()
    loss, _ = bco(
        logprobs_N=whole_pairs(new, ragged),
        ref_logprobs_N=reference_N,
        labels_N=torch.arange(2 * PAIRS) < PAIRS,
        baselines_N=torch.full((2 * PAIRS,), baseline, dtype=torch.float64),
        beta=BETA,
        sequences=torch.tensor(2.0 * PAIRS),
        desirable=torch.tensor(float(PAIRS)),
    )
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad[ragged.batch.target_mask_T]


@pytest.mark.parametrize("shift", [0.0, 0.4, -0.25])
def test_bco_is_half_of_trl_s_of_pairs_with_a_shifted_reference(shift):
    """TRL 1.16 has BCO as a loss of pairs without a shift, and no BCO trainer. A shift of delta is a reference that finds each
    answer likelier by delta / beta; and of 2 P answers ours is the mean, of P pairs theirs is: a factor of 2."""
    for seed in SEEDS:
        ragged, logprobs_T, reference_N = drawn_pairs(seed)
        loss, gradient = of_bco(seed, shift, reference_N)
        shifted = (ragged, logprobs_T, reference_N + shift / BETA)
        expected, expected_gradient = dpo_of_trl(*shifted, loss="bco_pair", beta=BETA)
        assert loss.item() == pytest.approx(expected.item() / 2, rel=1e-7)
        assert torch.allclose(gradient, expected_gradient / 2, rtol=1e-6, atol=1e-10)


def test_the_shift_of_bco_is_the_middle_of_the_classes_and_not_of_the_rows():
    """On purpose: delta = (E r | up + E r | down) / 2 (arXiv:2404.04656), whatever the share of either; a mean over all rows
    would lie near the class of which there are more."""
    drawn, labels = Drawn(0), LABELS["mixed"]
    algorithm = BCO(BCOConfig(beta=BETA))
    prepared, _ = algorithm.prepare(encoded(drawn, labels), cast(Scorer, Says(drawn)))
    (batch,) = algorithm.minibatches(prepared, torch.Generator())
    rewards = BETA * (whole(drawn.logprobs_T, drawn.rows) - whole(drawn.reference_T, drawn.rows))
    up = torch.tensor(labels)
    middle = (rewards[up].mean() + rewards[~up].mean()) / 2
    assert batch.baselines_N is not None
    assert batch.baselines_N.tolist() == pytest.approx([float(middle)] * ROWS, rel=1e-5)
    assert abs(float(middle - rewards.mean())) > 1e-3
