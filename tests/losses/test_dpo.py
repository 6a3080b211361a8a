"""Each loss of the family: by hand, at the reference, against plain loops, its sign, at extremes; AOT against sorting."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from accord.config import DPOConfig
from accord.losses import aot_values, dpo, matched

LOSSES = get_args(DPOConfig.model_fields["loss"].annotation)
DIVERGENCES = get_args(DPOConfig.model_fields["f_divergence"].annotation)
SORTED = ("aot", "aot_unpaired")
OF_DIFFERENCE = ("sigmoid", "hinge", "ipo", "robust", "exo", "discopop")
DEFINED = [(loss, kind) for loss in LOSSES for kind in DIVERGENCES if kind == "reverse_kl" or loss in OF_DIFFERENCE]
SMOOTHING = {"robust": 0.1, "exo": 0.1}


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def with_matches(streams: dict[str, Tensor], loss: str) -> dict[str, Tensor]:
    """For the sorting losses, what the algorithm hands over: the matches of the whole step."""
    if loss not in SORTED:
        return {}
    names = ("chosen_P", "rejected_P", "ref_chosen_P", "ref_rejected_P")
    values, others = aot_values(**{name: streams[name].detach() for name in names}, loss=loss)
    return {
        "chosen_match_P": matched(values_P=values, others_P=others),
        "rejected_match_P": matched(values_P=others, others_P=values),
    }


def call(streams: dict[str, Tensor], loss: str, **other: Any) -> tuple[Tensor, dict[str, float]]:
    count = len(streams["chosen_P"])
    lengths = {name: torch.ones(count, dtype=torch.float64) for name in ("chosen_lengths_P", "rejected_lengths_P")}
    other = {"label_smoothing": SMOOTHING.get(loss, 0.0)} | other
    arguments = lengths | streams | with_matches(streams, loss)
    total, metrics = dpo(**arguments, pairs=torch.tensor(float(count)), loss=loss, **other)
    return total, {name: value.item() for name, value in metrics.items()}


# With beta 1/2: a = ln 3, b = -ln 2, z = ln 6; sigmoid(a) = 3/4, sigmoid(b) = 1/3, sigmoid(z) = 6/7; ratios of 9 and 1/4.
HAND = {
    "chosen_P": d(-1.0),
    "ref_chosen_P": d(-1.0 - 2 * math.log(3)),
    "rejected_P": d(-7.0),
    "ref_rejected_P": d(-7.0 + 2 * math.log(2)),
}
LITERALS: dict[str, tuple[str, dict[str, Any], float]] = {
    "sigmoid": ("sigmoid", {}, math.log(7 / 6)),
    "cdpo": ("sigmoid", {"label_smoothing": 0.1}, 0.9 * math.log(7 / 6) + 0.1 * math.log(7)),
    "robust": ("robust", {}, (0.9 * math.log(7 / 6) - 0.1 * math.log(7)) / 0.8),
    "hinge": ("hinge", {"beta": 0.25}, 1 - math.log(6) / 2),
    "hinge won": ("hinge", {}, 0.0),
    "ipo": ("ipo", {}, (2 * math.log(6) - 1) ** 2),
    "exo": ("exo", {}, 6 / 7 * math.log(6 / 7 / 0.9) + 1 / 7 * math.log(1 / 7 / 0.1)),
    "discopop": ("discopop", {"discopop_tau": 0.5}, math.log(7 / 6) / 37 + 36 / 37 / 6),
    "nca": ("nca", {}, math.log(4 / 3) + math.log(4) / 2 + math.log(3 / 2) / 2),
    "sppo": ("sppo", {}, (2 * math.log(3) - 1) ** 2 + (1 - 2 * math.log(2)) ** 2),
    "apo_zero": ("apo_zero", {}, 7 / 12),
    "apo_down": ("apo_down", {}, 25 / 28),
    "aot": ("aot", {}, math.log(7 / 6)),  # a single pair has nothing to be sorted with
    "aot_unpaired": ("aot_unpaired", {}, math.log(7 / 6)),
    "forward_kl": ("sigmoid", {"f_divergence": "forward_kl"}, math.log(1 + math.exp(-35 / 18))),
    "js": ("sigmoid", {"f_divergence": "js"}, math.log(1 + 4.5**-0.5)),
    "alpha": ("sigmoid", {"f_divergence": "alpha", "f_alpha": 0.5}, math.log(1 + math.exp(-5 / 3))),
    "lengths": (
        "sigmoid",
        {"length_normalize": True, "chosen_lengths_P": d(2.0), "rejected_lengths_P": d(4.0)},
        math.log(1 + 3**-0.5 * 2**-0.25),
    ),
    "ipo lengths": (
        "ipo",
        {"length_normalize": True, "chosen_lengths_P": d(2.0), "rejected_lengths_P": d(4.0)},
        (math.log(3) + math.log(2) / 2 - 1) ** 2,
    ),
    "margin": ("sigmoid", {"margins_P": d(2.0), "margin_coef": math.log(6) / 2}, math.log(2)),
    "margin not asked for": ("sigmoid", {"margins_P": d(2.0)}, math.log(7 / 6)),
    "rpo": ("sigmoid", {"sft_coef": 2.0, "chosen_lengths_P": d(4.0)}, math.log(7 / 6) + 2 * 1 / 4),
}


@pytest.mark.parametrize("case", LITERALS)
def test_by_hand(case):
    loss, other, expected = LITERALS[case]
    streams = HAND | {name: other[name] for name in other if name.endswith("lengths_P")}
    options = {"beta": 0.5} | {name: value for name, value in other.items() if not name.endswith("lengths_P")}
    total, metrics = call(streams, loss, **options)
    assert total.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert metrics["dpo/loss"] == pytest.approx(expected - (0.5 if case == "rpo" else 0.0), rel=1e-12, abs=1e-15)
    assert ("dpo/nll" in metrics) == (case == "rpo")


def test_metrics_by_hand():
    metrics = call(HAND, "sigmoid", beta=0.5)[1]
    assert metrics["rewards/chosen"] == pytest.approx(math.log(3))
    assert metrics["rewards/rejected"] == pytest.approx(-math.log(2))
    assert metrics["rewards/margins"] == pytest.approx(math.log(6))
    assert (metrics["rewards/accuracies"], metrics["logps/chosen"], metrics["logps/rejected"]) == (1.0, -1.0, -7.0)
    assert call(HAND, "sigmoid", beta=0.5, sft_coef=1.0)[1]["dpo/nll"] == 1.0


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / 0.4) ** 2,
    "robust": math.log(2),
    "exo": math.log(0.5) - (math.log(0.9) + math.log(0.1)) / 2,
    "nca": 2 * math.log(2),
    "sppo": 2 * (0.5 / 0.2) ** 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_where_policy_and_reference_agree(loss):
    streams = {"chosen_P": d(-3.0, -8.0), "rejected_P": d(-1.0, -30.0)}
    streams |= {f"ref_{name}": value for name, value in streams.items()}
    total, metrics = call(streams, loss, beta=0.2)
    assert total.item() == pytest.approx(AT_REFERENCE[loss], rel=1e-12)
    assert metrics["rewards/accuracies"] == 0.5 and metrics["rewards/margins"] == 0.0


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_every_divergence_starts_at_log_2(kind):
    streams = {name: d(-3.0) for name in HAND}
    assert call(streams, "sigmoid", f_divergence=kind)[0].item() == pytest.approx(math.log(2), rel=1e-12)


def draw(seed: int, count: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    streams = {name: -10 + 3 * torch.randn(count, generator=generator, dtype=torch.float64) for name in HAND}
    for name in ("chosen_lengths_P", "rejected_lengths_P"):
        streams[name] = torch.randint(1, 20, (count,), generator=generator).double()
    return streams


def plain(loss: str, sc: float, sr: float, beta: float, eps: float, tau: float) -> float:
    """The table of the docstring, as a person would type it."""

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    a, b, z = beta * sc, beta * sr, beta * (sc - sr)
    return {
        "sigmoid": lambda: -(1 - eps) * math.log(s(z)) - eps * math.log(s(-z)),
        "robust": lambda: ((1 - eps) * -math.log(s(z)) - eps * -math.log(s(-z))) / (1 - 2 * eps),
        "hinge": lambda: max(0.0, 1 - z),
        "ipo": lambda: (sc - sr - 1 / (2 * beta)) ** 2,
        "exo": lambda: s(z) * math.log(s(z) / (1 - eps)) + s(-z) * math.log(s(-z) / eps),
        "discopop": lambda: (1 - s(z / tau)) * -math.log(s(z)) + s(z / tau) * math.exp(-z),
        "nca": lambda: -math.log(s(a)) - 0.5 * math.log(s(-a)) - 0.5 * math.log(s(-b)),
        "sppo": lambda: (sc - 0.5 / beta) ** 2 + (sr + 0.5 / beta) ** 2,
        "apo_zero": lambda: (1 - s(a)) + s(b),
        "apo_down": lambda: s(a) + (1 - s(z)),
    }[loss]()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("loss", "kind"), [case for case in DEFINED if case[0] not in SORTED])
def test_equals_plain_loops(loss, kind, normalize):
    streams, total = draw(3), 0.0
    for who in ("chosen", "rejected"):  # near the reference: the plain formulas overflow far from it
        streams[f"{who}_P"] = streams[f"ref_{who}_P"] + 0.1 * (streams[f"{who}_P"] + 10)
    for p in range(8):
        scores = []
        for who in ("chosen", "rejected"):
            ratio = math.exp(streams[f"{who}_P"][p].item() - streams[f"ref_{who}_P"][p].item())
            score = {
                "reverse_kl": math.log(ratio),
                "forward_kl": 1 - 1 / ratio,
                "js": math.log(2 * ratio / (1 + ratio)),
                "alpha": (1 - ratio**-0.3) / 0.3,
            }[kind]
            scores.append(score / streams[f"{who}_lengths_P"][p].item() if normalize else score)
        total += plain(loss, *scores, beta=0.2, eps=SMOOTHING.get(loss, 0.0), tau=0.05) / 8
    options = {"beta": 0.2, "f_divergence": kind, "f_alpha": 0.3, "length_normalize": normalize}
    assert call(streams, loss, **options)[0].item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("kind", ["alpha 0", "alpha 1"])
def test_alpha_tends_to_the_reverse_and_the_forward_kl(kind):
    f_alpha, other = {"alpha 0": (1e-8, "reverse_kl"), "alpha 1": (1 - 1e-8, "forward_kl")}[kind]
    one = call(draw(1), "sigmoid", f_divergence="alpha", f_alpha=f_alpha)[0]
    assert one.item() == pytest.approx(call(draw(1), "sigmoid", f_divergence=other)[0].item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_normalised_by_equal_lengths_is_another_beta(loss):
    """(log-ratio / 5) at beta = 5 x (log-ratio) at beta 1; of squared distances the scale is left, so that they differ by 25."""
    lengths = {name: torch.full((8,), 5.0, dtype=torch.float64) for name in ("chosen_lengths_P", "rejected_lengths_P")}
    streams = draw(2) | lengths
    if loss in SORTED:
        normal = {name: value / 5 for name, value in streams.items() if "lengths" not in name}
        other = with_matches(normal, loss)
        total = dpo(**streams, **other, pairs=torch.tensor(8.0), loss=loss, beta=0.5, length_normalize=True)[0]
    else:
        total = call(streams, loss, beta=0.5, length_normalize=True)[0]
    scale = 25 if loss in ("ipo", "sppo") else 1
    assert scale * total.item() == pytest.approx(call(streams, loss, beta=0.1)[0].item(), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_sign_at_the_reference(loss):
    """A step down raises the chosen answer and lowers the rejected one; APO-down holds the chosen one, to begin with."""
    streams = {name: d(-3.0, -8.0) for name in HAND}
    chosen, rejected = d(-3.0, -8.0).requires_grad_(), d(-3.0, -8.0).requires_grad_()
    call(streams | {"chosen_P": chosen, "rejected_P": rejected}, loss, beta=0.2)[0].backward()
    if loss == "apo_down":
        assert chosen.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    elif loss != "discopop":
        assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all() == (loss != "discopop")


def test_discopop_starts_against_the_preference_and_has_a_hump():
    """As its authors say of it: the gradient at z = 0 has the wrong sign. d/dz = -1/4 - 1/2 + (1 - log 2) / (4
    tau); it falls on both sides of the hump."""

    def slope(z: float) -> float:
        chosen = d(z).requires_grad_()
        streams = {name: d(0.0) for name in HAND} | {"chosen_P": chosen}
        call(streams, "discopop", beta=1.0, discopop_tau=0.05)[0].backward()
        return chosen.grad.item()

    assert slope(0.0) == pytest.approx(-3 / 4 + (1 - math.log(2)) / 0.2, rel=1e-12)
    assert slope(-1.0) < 0 and slope(1.0) < 0


def test_apo_down_lowers_a_chosen_answer_that_is_ahead():
    chosen = HAND["chosen_P"].clone().requires_grad_()
    call(HAND | {"chosen_P": chosen}, "apo_down", beta=0.5)[0].backward()
    # beta [sigmoid'(ln 3) - sigmoid'(ln 6)] = 1/2 (3/16 - 6/49)
    assert chosen.grad.item() == pytest.approx((3 / 16 - 6 / 49) / 2, rel=1e-12)


def test_gradient_of_dpo_is_the_papers():
    # equation in section 4: -beta sigmoid(r_rejected - r_chosen) [grad log p(chosen) - grad log p(rejected)]
    chosen, rejected = HAND["chosen_P"].clone().requires_grad_(), HAND["rejected_P"].clone().requires_grad_()
    call(HAND | {"chosen_P": chosen, "rejected_P": rejected}, "sigmoid", beta=0.5)[0].backward()
    assert chosen.grad.item() == pytest.approx(-0.5 / 7, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(0.5 / 7, rel=1e-12)


@pytest.mark.parametrize(("loss", "kind"), DEFINED)
def test_hopeless_and_certain_pairs_stay_finite(loss, kind):
    for size in (200.0, 1e4):
        leaves = {"chosen_P": torch.tensor([-size, 0.0]), "rejected_P": torch.tensor([0.0, -size])}
        streams = {name: value.requires_grad_() for name, value in leaves.items()}
        streams |= {f"ref_{name}": value.detach().flip(0) for name, value in leaves.items()}
        lengths = {name: torch.ones(2) for name in ("chosen_lengths_P", "rejected_lengths_P")}
        options = {"label_smoothing": SMOOTHING.get(loss, 0.0), "f_divergence": kind, "beta": 0.1}
        total, _ = dpo(
            **streams, **lengths, **with_matches(streams, loss), pairs=torch.tensor(2.0), loss=loss, **options
        )
        total.backward()
        assert torch.isfinite(total)
        for leaf in leaves.values():
            assert torch.isfinite(leaf.grad).all() and torch.isfinite(leaf.grad.square()).all()


def test_a_pair_feels_no_other():
    def gradient(other: float) -> float:
        chosen = d(-1.0, other).requires_grad_()
        streams = {name: value.expand(2) for name, value in HAND.items()} | {"chosen_P": chosen}
        call(streams, "sigmoid", beta=0.5)[0].backward()
        return chosen.grad[0].item()

    assert gradient(-1.0) == gradient(-500.0)


def test_masks_are_not_its_business():
    """It takes sums over target tokens; `algorithms.pairs.answers` makes them, and its test masks."""
    assert not [name for name in inspect.signature(dpo).parameters if "mask" in name]


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="unknown loss 'dpop'"):
        call(HAND, "dpop")
    with pytest.raises(ValueError, match="unknown f_divergence 'tv'"):
        call(HAND, "sigmoid", f_divergence="tv")


# --- AOT ---------------------------------------------------------------------------------------------------------------


def test_matched_by_hand():
    assert matched(values_P=d(3.0, 1.0, 2.0), others_P=d(20.0, 30.0, 10.0)).tolist() == [30.0, 10.0, 20.0]
    assert matched(values_P=d(1.0, 1.0), others_P=d(5.0, 4.0)).tolist() == [4.0, 5.0], "ties in their order"


def sort_whole_step(streams: dict[str, Tensor], loss: str, smoothing: float) -> Tensor:
    """The definition, with autograd through torch.sort."""
    if loss == "aot":
        left = streams["chosen_P"] - streams["rejected_P"]
        right = streams["ref_chosen_P"] - streams["ref_rejected_P"]
    else:
        left, right = (streams[f"{who}_P"] - streams[f"ref_{who}_P"] for who in ("chosen", "rejected"))
    z = 0.1 * (left.sort().values - right.sort().values)
    return ((1 - smoothing) * torch.log1p(torch.exp(-z)) + smoothing * torch.log1p(torch.exp(z))).sum() / len(z)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", SORTED)
@pytest.mark.parametrize("seed", range(3))
def test_aot_is_sorting_in_value_and_gradient(seed, loss, smoothing):
    streams = draw(seed)
    leaves, plain_leaves = (
        {name: streams[name].clone().requires_grad_() for name in ("chosen_P", "rejected_P")} for _ in range(2)
    )
    total, metrics = call(streams | leaves, loss, label_smoothing=smoothing)
    expected = sort_whole_step(streams | plain_leaves, loss, smoothing)
    total.backward(), expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12) == metrics["dpo/loss"]
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, plain_leaves[name].grad, rtol=1e-10, atol=0)
