"""Drawing tokens: the distribution drawn from is the one whose log-probabilities are given."""

from __future__ import annotations

import pytest
import torch

from accord.rollout.protocol import Sampling
from accord.rollout.sampling import sample_tokens

LOGITS = torch.tensor([1.3, -0.4, 2.1, 0.0, -torch.inf, 0.7, -2.5, 1.9])
BEFORE_ONE = 1 - 2**-24
"""The largest float32 below 1: the largest number that `torch.rand` gives."""


def wanted_probabilities(sampling: Sampling) -> torch.Tensor:
    """The distribution, written out: temperature, then the k likeliest, then the nucleus."""
    logits = LOGITS.double() / sampling.temperature
    order = logits.argsort(descending=True).tolist()
    kept = order[: sampling.top_k or None]
    p = torch.zeros(len(LOGITS), dtype=torch.double)
    p[kept] = logits[kept].softmax(-1)
    total, nucleus = 0.0, []
    for token in kept:
        if total < sampling.top_p:
            nucleus.append(token)
        total += float(p[token])
    result = torch.zeros_like(p)
    result[nucleus] = p[nucleus] / p[nucleus].sum()
    return result


CASES = [
    Sampling(1),
    Sampling(1, temperature=0.7),
    Sampling(1, temperature=2.5),
    Sampling(1, top_k=3),
    Sampling(1, top_k=100),
    Sampling(1, top_p=0.6),
    Sampling(1, top_p=0.05),
    Sampling(1, temperature=1.5, top_k=5, top_p=0.8),
]


@pytest.mark.parametrize("sampling", CASES, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}")
def test_frequencies_and_logprobs_are_those_of_the_distribution(sampling: Sampling) -> None:
    draws = 200_000
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample_tokens(LOGITS.expand(draws, -1), uniforms, sampling)
    p = wanted_probabilities(sampling)
    counts = torch.bincount(tokens, minlength=len(LOGITS)).double()
    assert counts[p == 0].sum() == 0, "a token of probability 0 was drawn"
    spread = (draws * p * (1 - p)).sqrt()
    assert ((counts - draws * p).abs() <= 4 * spread + 1e-9).all()
    torch.testing.assert_close(logprobs, p.log()[tokens].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sampling", CASES, ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_ends_of_the_unit_interval_give_the_first_and_last_possible_token(sampling: Sampling, scale: float) -> None:
    logits = torch.stack([LOGITS * scale, torch.cat([torch.tensor([-torch.inf]), LOGITS[1:4], LOGITS[4:6].clone()[[0, 0]],
                                                     torch.tensor([-torch.inf] * 2)])])  # fmt: skip
    for row in logits:
        ends, logprobs = sample_tokens(row.expand(2, -1), torch.tensor([0.0, BEFORE_ONE]), sampling)
        assert torch.isfinite(logprobs).all() and torch.isfinite(row[ends]).all()
        middle, _ = sample_tokens(row.expand(999, -1), torch.linspace(0.001, 0.999, 999), sampling)
        assert ends[0] <= middle.min() and ends[1] >= middle.max()


def test_the_last_number_stays_in_the_vocabulary_when_rounding_ends_below_one() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, 5000, generator=generator)
    logits[:, -7:] = -torch.inf
    for uniform in (0.0, BEFORE_ONE):
        tokens, logprobs = sample_tokens(logits, torch.full((400,), uniform), Sampling(1))
        assert (tokens < 4993).all() and torch.isfinite(logprobs).all()


def test_rows_are_drawn_independently() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, uniforms = torch.randn(20, 50, generator=generator), torch.rand(20, generator=generator)
    sampling = Sampling(1, temperature=0.8, top_k=20, top_p=0.9)
    together, logprobs = sample_tokens(logits, uniforms, sampling)
    for row in range(20):
        alone, logprob = sample_tokens(logits[[row]], uniforms[[row]], sampling)
        assert torch.equal(alone, together[[row]]) and torch.equal(logprob, logprobs[[row]])


def test_temperature_zero_takes_the_likeliest_and_says_its_whole_probability() -> None:
    tokens, logprobs = sample_tokens(LOGITS[None], torch.tensor([0.99]), Sampling(1, temperature=0, top_k=2))
    assert tokens.tolist() == [2]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[[2]])


def test_bfloat16_logits_are_drawn_from_in_float32() -> None:
    _, logprobs = sample_tokens(LOGITS[None].bfloat16(), torch.tensor([0.5]), Sampling(1))
    assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_no_more_than_k_tokens_stay_where_logits_are_equal(top_p: float) -> None:
    """Neighbouring numbers are one number in bfloat16, as many logits of a real model are."""
    logits = torch.linspace(2.0, 2.1, 50).bfloat16()
    assert len(logits.unique()) < 10
    uniforms = torch.rand(5000, generator=torch.Generator().manual_seed(4))
    tokens, logprobs = sample_tokens(logits.expand(5000, -1), uniforms, Sampling(1, top_k=5, top_p=top_p))
    drawn = tokens.unique()
    assert len(drawn) == 5 and (logits[drawn] == logits.max()).all()
    torch.testing.assert_close(logprobs, torch.full((5000,), 5.0).log().neg(), atol=1e-6, rtol=1e-6)
    alone, _ = sample_tokens(logits[None], uniforms[:1], Sampling(1, top_k=5, top_p=top_p))
    assert torch.equal(alone, tokens[:1]), "the same ones in any batch"


def test_logits_are_left_as_they_were() -> None:
    logits = LOGITS[None].clone()
    sample_tokens(logits, torch.tensor([0.5]), Sampling(1, temperature=0.5, top_k=2, top_p=0.5))
    assert torch.equal(logits, LOGITS[None])


@pytest.mark.parametrize("vocabulary", [8, 255, 256, 257, 1000])
def test_the_draw_is_where_the_plain_cumulative_sum_passes_the_number(vocabulary: int, monkeypatch) -> None:
    """Any size of the vocabulary beside the size of a block, and rows in tiles."""
    monkeypatch.setattr("accord.rollout.sampling.TILE", 3 * vocabulary)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, vocabulary, generator=generator) * 3
    uniforms = torch.rand(500, generator=generator)
    tokens, logprobs = sample_tokens(logits, uniforms, Sampling(1))
    ends = logits.double().softmax(-1).cumsum(-1)
    before = ends.gather(-1, (tokens[:, None] - 1).clamp(min=0)).squeeze(-1) * (tokens > 0)
    after = ends.gather(-1, tokens[:, None]).squeeze(-1)
    assert (before - 1e-6 <= uniforms).all() and (uniforms <= after + 1e-6).all()
    torch.testing.assert_close(
        logprobs, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1), atol=1e-5, rtol=0
    )
