"""From pairs to the loss: streams, options, and AOT's matches for any micro-batches and any number of ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms import DPO, Denominators
from accord.batch import TokenBatch
from accord.config import DPOConfig
from accord.data import EncodedPair, TokenSequence
from accord.model.forward import Outputs
from accord.ops.masking import sum_per_sequence
from algorithms.test_reward import PAIRS


def of_ids(ids: Tensor) -> Tensor:
    """Log-probabilities that stand for a model: a fixed function of the token."""
    return -(ids.float() * 0.37).sin().abs() - 0.1


class Scorer:
    """Gives the log-probabilities of `of_ids`."""

    def sequence_logprobs(self, name: str, batch: TokenBatch) -> Tensor:
        assert name == "policy"
        return sum_per_sequence(of_ids(batch.input_ids_T), batch)


def made(pairs: list[EncodedPair] = PAIRS, **options: Any) -> DPO:
    algorithm = DPO(DPOConfig(**options))
    sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
    far = [0.0] * 4 + [math.sin(n) for n in range(4, len(sequences))]  # no two pairs alike
    algorithm.reference = {sequence: far[n] - 0.5 - 0.1 * n for n, sequence in enumerate(sequences)}
    return algorithm


def many(count: int) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(0)

    def one() -> TokenSequence:
        length = int(torch.randint(2, 7, (1,), generator=generator))
        ids = tuple(torch.randint(1, 1000, (length,), generator=generator).tolist())
        return TokenSequence(ids, (False,) + (True,) * (length - 1))

    return [EncodedPair(one(), one(), margin=float(n)) for n in range(count)]


def test_prepare_hands_over_the_reference():
    batch, metrics = made().prepare(PAIRS, scorer=None)
    assert batch.ref_logprobs_N.tolist() == pytest.approx([-0.5, -0.6, -0.7, -0.8])
    assert batch.match_N is None and metrics == {} and batch.pair_N.tolist() == [0, 0, 1, 1]
    free = DPO(DPOConfig())
    assert free.prepare(PAIRS, scorer=None)[0].ref_logprobs_N.tolist() == [0.0] * 4


def test_loss_by_hand():
    algorithm = made(beta=0.5, sft_coef=1.0, margin_coef=0.25)
    batch, _ = algorithm.prepare(PAIRS, scorer=None)
    outputs = Outputs(logprobs_T=torch.tensor([0.0, -1.0, -2.0, 0.0, -4.0, 0.0, -8.0, 0.0, -1.0, -2.0, -4.0]))
    loss, metrics = algorithm.loss("policy", outputs, batch, Denominators.of(batch, lambda counts: counts))
    # log-ratios -2.5 and -3.4, then -7.3 and -6.2; margins 0 and 2
    z = (0.5 * 0.9, 0.5 * -1.1 - 0.5)
    assert metrics["dpo/loss"].item() == pytest.approx(sum(math.log(1 + math.exp(-x)) for x in z) / 2, rel=1e-5)
    assert metrics["dpo/nll"].item() == pytest.approx((3 / 2 + 8) / 2)
    assert loss.item() == pytest.approx(metrics["dpo/loss"].item() + metrics["dpo/nll"].item())
    assert metrics["rewards/accuracies"].item() == 0.5


OPTIONS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.2},
    "length_normalize": {"length_normalize": True},
    "f_divergence": {"f_divergence": "js"},
    "f_alpha": {"f_divergence": "alpha", "f_alpha": 0.9},
    "loss": {"loss": "hinge"},
    "discopop_tau": {"loss": "discopop", "discopop_tau": 0.5},
    "sft_coef": {"sft_coef": 1.0},
    "margin_coef": {"margin_coef": 1.0},
    "beta": {"beta": 0.7},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_reaches_the_loss(option):
    def value(**options: Any) -> float:
        algorithm = made(**options)
        batch, _ = algorithm.prepare(PAIRS, scorer=None)
        outputs = Outputs(logprobs_T=of_ids(batch.input_ids_T))
        return algorithm.loss("policy", outputs, batch, Denominators.of(batch, lambda counts: counts))[0].item()

    given = OPTIONS[option]
    assert value(**given) != pytest.approx(value(**{k: v for k, v in given.items() if k != option}), rel=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("limit", [1, 12, 10_000])
def test_aot_is_the_same_for_any_micro_batches(limit, loss, normalize):
    """Against the definition: both sets sorted over the whole step, with autograd through the sorting."""
    pairs = many(9)
    algorithm = made(pairs, loss=loss, length_normalize=normalize)
    batch, _ = algorithm.prepare(pairs, Scorer())
    denominators = Denominators.of(batch, lambda counts: counts)
    leaf = of_ids(batch.input_ids_T).requires_grad_()
    total = reported = 0.0
    for members in batch.bins(limit):
        outputs = Outputs(logprobs_T=leaf[batch.token_index(members)])
        value, metrics = algorithm.loss("policy", outputs, batch.select(members), denominators)
        value.backward()
        total, reported = total + value.item(), reported + metrics["dpo/loss"].item()

    plain = of_ids(batch.input_ids_T).requires_grad_()
    scale = 1 / sum_per_sequence(torch.ones(batch.tokens), batch) if normalize else torch.ones(batch.sequences)
    policy, ref = sum_per_sequence(plain, batch) * scale, batch.ref_logprobs_N * scale
    if loss == "aot":
        left, right = policy[0::2] - policy[1::2], ref[0::2] - ref[1::2]
    else:
        left, right = (policy - ref)[0::2], (policy - ref)[1::2]
    expected = torch.log1p(torch.exp(-0.1 * (left.sort().values - right.sort().values))).sum() / 9
    expected.backward()
    assert total == pytest.approx(expected.item(), rel=1e-5) == reported
    torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_aot_is_the_same_for_two_ranks(loss):
    """Each rank prepares its share, knowing the values of the other; together they have the matches of one process."""
    pairs = many(8)
    whole, _ = made(pairs, loss=loss).prepare(pairs, Scorer())
    reference = made(pairs).reference
    shares = [pairs[0::2], pairs[1::2]]
    values: list[list[Tensor]] = [[], []]
    for round_ in ("collect", "use"):
        for rank, share in enumerate(shares):
            algorithm, calls = DPO(DPOConfig(loss=loss)), iter((0, 1))
            algorithm.reference = reference

            def join(own: Tensor, rank: int = rank, round_: str = round_, calls=calls) -> tuple[Tensor, slice]:
                call = next(calls)
                if round_ == "collect":
                    values[rank].append(own)
                    return own, slice(0, len(own))
                return torch.cat([values[0][call], values[1][call]]), slice(4 * rank, 4 * rank + 4)

            algorithm.join_ranks = join
            batch, _ = algorithm.prepare(share, Scorer())
            if round_ == "use":
                assert torch.equal(batch.match_N.view(-1, 2), whole.match_N.view(-1, 2)[rank::2])


def test_roles_and_steps():
    algorithm = made()
    batch, _ = algorithm.prepare(PAIRS, scorer=None)
    assert [role.role for role in algorithm.roles()] == ["policy"]
    assert list(algorithm.minibatches(batch, torch.Generator())) == [batch]
