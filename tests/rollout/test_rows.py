"""Decoding of every family against `transformers.generate` and against the learner's own log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from accord.batch import TokenBatch
from accord.config import AdapterConfig, ModelConfig
from accord.model.reading import encoder_input
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Completion, Request, Sampling
from model.kinds import KINDS

NEW = 9
GREEDY = Sampling(NEW, temperature=0)
PAIRS = ("t5", "mt5", "umt5")
ROWS = ("bloom", "jamba", "mamba", "falcon_h1", *PAIRS)
PACKED = ("gemma3", "gemma3_images", "opt", "mixtral", "qwen3_moe", "cohere", "granite")


def roles_of(folder: Path, adapter: AdapterConfig | None = None) -> Roles:
    roles = Roles(ModelConfig(path=str(folder)), adapter, torch.device("cpu"))
    roles.add_policy()
    return roles


@pytest.fixture
def requests_() -> list[Request]:
    """Eight prompts, some of one length."""
    generator = torch.Generator().manual_seed(4)
    lengths = (5, 1, 12, 5, 8, 2, 5, 1)
    return [
        Request(tuple(torch.randint(8, 250, (length,), generator=generator).tolist()), seed=100 + n)
        for n, length in enumerate(lengths)
    ]


def generated_by_transformers(folder: Path, requests: Sequence[Request]) -> list[list[int]]:
    """Greedy continuations, one prompt at a time, without any stop token."""
    pairs = folder.name in PAIRS
    automatic = AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM
    model = automatic.from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    results = []
    for request in requests:
        ids = encoder_input(request.prompt_ids, model.config) if pairs else list(request.prompt_ids)
        prompt = torch.tensor([ids])
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            suppress_tokens=None,
        )
        results.append(tokens[0, 1 if pairs else prompt.shape[1] :].tolist())
    return results


def cut(tokens: list[int], stop_ids: frozenset[int]) -> tuple[tuple[int, ...], str]:
    for n, token in enumerate(tokens):
        if token in stop_ids:
            return tuple(tokens[: n + 1]), "stop"
    return tuple(tokens), "length"


@pytest.mark.parametrize("family", [*ROWS, *PACKED])
def test_greedy_equals_transformers_token_for_token(family: str, model_folder, requests_) -> None:
    wanted = generated_by_transformers(model_folder(family), requests_)
    stop_ids = frozenset({wanted[0][4], wanted[3][1], wanted[6][2]})
    for rows, stops in ((64, frozenset()), (2, stop_ids), (64, stop_ids)):
        engine = NativeEngine(roles_of(model_folder(family)), max_sequences=rows)
        done = engine.generate(requests_, replace(GREEDY, stop_ids=stops))
        assert [(c.token_ids, c.finish_reason) for c in done] == [cut(tokens, stops) for tokens in wanted]


def close(one: Sequence[Completion], other: Sequence[Completion]) -> bool:
    mine, yours = (torch.tensor([p for c in done for p in c.logprobs]) for done in (one, other))
    torch.testing.assert_close(mine, yours, atol=2e-5, rtol=1e-5)
    return [(c.token_ids, c.finish_reason) for c in one] == [(c.token_ids, c.finish_reason) for c in other]


@pytest.mark.parametrize("family", ROWS)
def test_a_seed_gives_one_response_whatever_else_is_in_the_batch(family: str, model_folder, requests_) -> None:
    roles = roles_of(model_folder(family))
    sampling = Sampling(NEW, temperature=1.3, stop_ids=frozenset(range(40, 80)))
    wanted = NativeEngine(roles, 64).generate(requests_, sampling)
    assert len({c.token_ids for c in wanted}) == len(wanted)
    assert {c.finish_reason for c in wanted} == {"stop", "length"}
    for rows in (1, 2):
        assert close(NativeEngine(roles, rows).generate(requests_, sampling), wanted)
    assert close(NativeEngine(roles, 8).generate(requests_[::-1], sampling)[::-1], wanted)
    assert close([NativeEngine(roles, 8).generate([request], sampling)[0] for request in requests_], wanted)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, "lora") for family in (*ROWS, *PACKED)]
    + [(f, k) for f in PAIRS for k in ("prompt", "ptuning", "prefix")],
)
def test_the_learner_s_log_probabilities_are_the_sampler_s(
    family: str, kind: str, model_folder, requests_, shake
) -> None:
    """With an adapter that is not at its start, and a temperature."""
    roles = roles_of(model_folder(family), KINDS[kind])
    shake(roles.trainable("policy").values())
    done = NativeEngine(roles, 3).generate(requests_, Sampling(NEW, temperature=0.8, stop_ids=frozenset(range(40, 80))))
    batch = TokenBatch.from_sequences(
        [r.prompt_ids + c.token_ids for r, c in zip(requests_, done, strict=True)],
        [[False] * len(r.prompt_ids) + [True] * len(c.token_ids) for r, c in zip(requests_, done, strict=True)],
    )
    for micro in (16, 4096):
        scored = Scorer(roles, micro, temperature=0.8).score(batch, ["old_logprobs_T"])["old_logprobs_T"]
        sampled = torch.tensor([p for c in done for p in c.logprobs])
        torch.testing.assert_close(scored[batch.target_mask_T], sampled, atol=2e-5, rtol=1e-5)


def test_progress_adds_up_and_nothing_is_computed_for_rows_that_ended(model_folder, requests_) -> None:
    roles = roles_of(model_folder("bloom"))
    told: list[tuple[int, int]] = []
    computed: list[int] = []
    roles.model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sampling = Sampling(NEW, stop_ids=frozenset(range(40, 80)))
    done = NativeEngine(roles, 3).generate(requests_, sampling, lambda *counts: told.append(counts))
    sampled = sum(len(c.token_ids) for c in done)
    assert [sum(column) for column in zip(*told, strict=True)] == [len(requests_), sampled]
    assert sum(computed) == sum(len(r.prompt_ids) for r in requests_) + sampled - len(requests_)


def test_no_requests_are_none(model_folder) -> None:
    assert NativeEngine(roles_of(model_folder("bloom")), 4).generate([], GREEDY) == []
