"""The losses of pairs against those of TRL, in float64, with lengths and log-probabilities of random ragged answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.losses import aot_values, dpo, matched
from accord.ops.masking import targets_per_sequence
from oracle.padded import Padded, trainer

pytest.importorskip("trl")

from trl import DPOTrainer

PAIRS = 5
SEEDS = range(6)
SMOOTHING = 0.1

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("sigmoid", {}),
    "hinge": ("hinge", {}),
    # TRL takes IPO's scores per token, as the paper's authors told them; ours does so when asked.
    "ipo": ("ipo", {"length_normalize": True}),
    "robust": ("robust", {"label_smoothing": SMOOTHING}),
    "exo_pair": ("exo", {"label_smoothing": SMOOTHING}),
    "discopop": ("discopop", {}),
    "nca_pair": ("nca", {}),
    "sppo_hard": ("sppo", {}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "sigmoid_norm": ("sigmoid", {"length_normalize": True}),
}
"""TRL's name -> ours, and the options that make them the same."""
DIVERGENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reverse_kl": ({}, {}),
    "forward_kl": ({"f_divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "js": ({"f_divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    # TRL's coefficient is that of Amari's divergence, which is 1 - ours.
    "alpha": (
        {"f_divergence": "alpha", "f_alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
}


def drawn(seed: int) -> tuple[Padded, Tensor, Tensor]:
    """Answers (chosen first, then rejected), log-probabilities of their tokens, and of whole answers under the reference."""
    ragged = Padded(seed, sequences=2 * PAIRS)
    logprobs_T = -ragged.stream().abs() - 0.05 * ragged.batch.target_mask_T
    reference_T = logprobs_T + ragged.stream(0.4)
    return ragged, logprobs_T, whole(reference_T, ragged)


def whole(stream_T: Tensor, ragged: Padded) -> Tensor:
    return torch.zeros(2 * PAIRS, dtype=stream_T.dtype).index_add(0, ragged.batch.sequence_T, stream_T)


def ours(ragged: Padded, logprobs_T: Tensor, reference_N: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    new = logprobs_T.clone().requires_grad_()
    sums_N, lengths_N = whole(new, ragged), targets_per_sequence(ragged.batch).to(new.dtype)
    loss, _ = dpo(
        chosen_P=sums_N[:PAIRS],
        rejected_P=sums_N[PAIRS:],
        ref_chosen_P=reference_N[:PAIRS],
        ref_rejected_P=reference_N[PAIRS:],
        chosen_lengths_P=lengths_N[:PAIRS],
        rejected_lengths_P=lengths_N[PAIRS:],
        pairs=torch.tensor(float(PAIRS)),
        **{"beta": 0.3} | options,
    )
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad[ragged.batch.target_mask_T]


def theirs(
    ragged: Padded, logprobs_T: Tensor, reference_N: Tensor, loss: str, **settings: Any
) -> tuple[Tensor, Tensor]:
    padded = ragged.pad(logprobs_T, 0.0).requires_grad_()
    said = SimpleNamespace(
        log_probs=padded * ragged.mask,
        entropy=torch.zeros_like(padded),
        mean_logits=torch.zeros_like(padded),
        is_top1=ragged.mask,
    )
    stand_in = trainer(
        args={"discopop_tau": 0.05},
        **{
            "ld_alpha": None,
            "precompute_ref_logps": True,
            "f_divergence_type": "reverse_kl",
            "loss_types": [loss],
            "loss_weights": [1.0],
            "beta": 0.3,
            "label_smoothing": SMOOTHING,
            "use_weighting": False,
        }
        | settings,
    )
    prompt = torch.zeros(2 * PAIRS, 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.cat([prompt, ragged.inputs()["completion_ids"]], dim=1),
        "attention_mask": torch.cat([prompt + 1, ragged.mask.long()], dim=1),
        "completion_mask": torch.cat([prompt, ragged.mask.long()], dim=1),
        "ref_chosen_logps": reference_N[:PAIRS],
        "ref_rejected_logps": reference_N[PAIRS:],
    }
    result = DPOTrainer._compute_loss(stand_in, lambda **_: said, inputs, False)
    result.backward()
    assert padded.grad is not None
    return result.detach(), padded.grad[ragged.mask]


@pytest.mark.parametrize("name", LOSSES)
def test_dpo_and_its_family(name):
    kind, options = LOSSES[name]
    for seed in SEEDS:
        drawn_now = drawn(seed)
        loss, gradient = ours(*drawn_now, loss=kind, **options)
        expected, expected_gradient = theirs(*drawn_now, loss=name)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_divergences(name, loss):
    options, settings = DIVERGENCES[name]
    for seed in SEEDS:
        ragged, *streams = drawn(seed)
        drawn_now = (ragged, *(stream.float() for stream in streams))  # TRL's alpha-divergence takes no float64
        found, gradient = ours(*drawn_now, loss=loss, **options)
        expected, expected_gradient = theirs(*drawn_now, loss=loss, **settings)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_nca_sppo_and_apo_see_the_scores_under_a_divergence_and_trl_s_do_not():
    """On purpose: f-DPO replaces the log-ratio wherever it stands (arXiv:2309.16240); TRL keeps it there whatever
    `f_divergence_type` says."""
    drawn_now = drawn(0)
    for theirs_name, name in (("nca_pair", "nca"), ("sppo_hard", "sppo"), ("apo_zero", "apo_zero")):
        plain, _ = ours(*drawn_now, loss=name)
        with_js, _ = ours(*drawn_now, loss=name, f_divergence="js")
        expected, _ = theirs(*drawn_now, loss=theirs_name, f_divergence_type="js_divergence")
        assert plain.item() == pytest.approx(expected.item(), rel=1e-9)
        assert abs(with_js.item() - expected.item()) > 1e-4


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_aot_in_micro_batches_is_trl_s_sort_of_the_whole_step(name, smoothing):
    """TRL sorts what a micro-batch has; ours knows each value's match in the step beforehand, so cutting changes nothing."""
    for seed in SEEDS:
        ragged, logprobs_T, reference_N = drawn(seed)
        policy_N, lengths_N = whole(logprobs_T, ragged), targets_per_sequence(ragged.batch)
        streams = dict(zip(("chosen_P", "rejected_P"), policy_N.split(PAIRS), strict=True))
        streams |= zip(("ref_chosen_P", "ref_rejected_P"), reference_N.split(PAIRS), strict=True)
        values_P, others_P = aot_values(**streams, loss=name)
        streams["chosen_match_P"] = matched(values_P=values_P, others_P=others_P)
        streams["rejected_match_P"] = matched(values_P=others_P, others_P=values_P)
        streams |= zip(("chosen_lengths_P", "rejected_lengths_P"), lengths_N.split(PAIRS), strict=True)
        new = logprobs_T.clone().requires_grad_()
        total = torch.tensor(0.0, dtype=torch.float64)
        for part in ([0, 3], [1, 2, 4]):
            new_N = whole(new, ragged)
            streams |= {"chosen_P": new_N[:PAIRS], "rejected_P": new_N[PAIRS:]}
            loss, _ = dpo(
                **{stream: values[part] for stream, values in streams.items()},
                pairs=torch.tensor(float(PAIRS)),
                loss=name,
                beta=0.3,
                label_smoothing=smoothing,
            )
            loss.backward()
            total += loss.detach()
        expected, gradient = theirs(ragged, logprobs_T, reference_N, name, label_smoothing=smoothing)
        assert total.item() == pytest.approx(expected.item(), rel=1e-9)
        assert new.grad is not None
        assert torch.allclose(new.grad[ragged.batch.target_mask_T], gradient, rtol=1e-7, atol=1e-10)
