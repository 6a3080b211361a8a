"""The native engine with each kind of adapter, against plain peft's `generate` and the learner's log-probabilities."""

from __future__ import annotations

import pytest
import torch

from accord.batch import TokenBatch
from accord.config import ModelConfig
from accord.model.export import save_policy
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.recipes.generate import GenerateOptions, generate
from accord.rollout.native import NativeEngine
from accord.rollout.protocol import Request, Sampling
from model.kinds import KINDS, ONE_EACH, plain_policy

NEW = 12


@pytest.fixture
def requests_() -> list[Request]:
    """Prompts of ragged lengths, one of a single token."""
    generator = torch.Generator().manual_seed(4)
    lengths = (5, 1, 12, 3, 8, 2)
    return [
        Request(tuple(torch.randint(3, 250, (length,), generator=generator).tolist()), seed=100 + n)
        for n, length in enumerate(lengths)
    ]


def trained(folder, kind: str, shake) -> Roles:
    torch.manual_seed(2)
    roles = Roles(ModelConfig(path=str(folder)), KINDS[kind], torch.device("cpu"))
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    return roles


@pytest.mark.parametrize("of", ["llama_grouped", "mistral", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ONE_EACH)
def test_greedy_equals_plain_peft_token_for_token(kind, of, model_folder, requests_, shake, tmp_path) -> None:
    folder = model_folder(of)
    roles = trained(folder, kind, shake)
    save_policy(roles, tmp_path)
    plain = plain_policy(tmp_path, folder)
    plain.get_base_model().generation_config.eos_token_id = None
    plain.generation_config.eos_token_id = None
    wanted = []
    for request in requests_:
        prompt = torch.tensor([request.prompt_ids])
        mask = torch.ones_like(prompt)
        tokens = plain.generate(
            input_ids=prompt, attention_mask=mask, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW
        )
        wanted.append(tuple(tokens[0, prompt.shape[1] :].tolist()))
    for rows, prefill in ((1, 4096), (3, 12), (64, 4096)):
        done = NativeEngine(roles, rows, prefill).generate(requests_, Sampling(NEW, temperature=0))
        assert [completion.token_ids for completion in done] == wanted


@pytest.mark.parametrize(
    ("kind", "of"), [(kind, "llama_grouped") for kind in KINDS] + [(kind, "mistral") for kind in ("prompt", "prefix")]
)
def test_sampler_logprobs_are_the_learner_s(kind, of, model_folder, requests_, shake) -> None:
    roles = trained(model_folder(of), kind, shake)
    sampling = Sampling(NEW, stop_ids=frozenset(range(40, 60)))
    done = NativeEngine(roles, 4).generate(requests_, sampling)
    prompts = [request.prompt_ids for request in requests_]
    batch = TokenBatch.from_sequences(
        [p + c.token_ids for p, c in zip(prompts, done, strict=True)],
        [[False] * len(p) + [True] * len(c.token_ids) for p, c in zip(prompts, done, strict=True)],
    )
    learner = Scorer(roles, 64).score(batch, ["old_logprobs_T"])["old_logprobs_T"]
    sampler = torch.tensor([p for c in done for p in c.logprobs])
    torch.testing.assert_close(sampler, learner[batch.target_mask_T], atol=1e-4, rtol=0)
    assert sampler.std() > 0.3


@pytest.mark.parametrize("kind", ONE_EACH)
def test_generate_samples_from_a_saved_adapter(kind, model_folder, shake, tmp_path) -> None:
    roles = trained(model_folder("llama"), kind, shake)
    save_policy(roles, tmp_path)
    (rollout,) = generate(
        ModelConfig(path=str(tmp_path)), ["the film was"], GenerateOptions(max_new_tokens=6, temperature=0)
    )
    own = NativeEngine(roles, 1).generate([Request(rollout.prompt_ids, 0)], Sampling(6, temperature=0))
    length = len(rollout.response_ids)
    assert own[0].token_ids[:length] == rollout.response_ids and length > 0
