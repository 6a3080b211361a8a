"""Frozen passes in micro-batches."""

from __future__ import annotations

import pytest
import torch

from accord.config import CriticConfig, LoraConfig, ReferenceConfig
from accord.model.forward import forward
from accord.model.roles import Roles
from accord.model.scorer import Scorer

STREAMS = ("old_logprobs_T", "ref_logprobs_T", "values_T", "full_kl_T")


@pytest.fixture
def roles(make_roles, model_folder, reward_adapter, shake) -> Roles:
    """Four roles that all differ."""
    roles = make_roles(model_folder("llama"), LoraConfig(r=4))
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    roles.add_reward(str(reward_adapter))
    roles.add_critic(CriticConfig(source="adapter"))
    for seed, name in enumerate(("policy", "critic")):
        shake(roles.trainable(name).values(), seed=seed)
    return roles


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_streams_are_those_of_the_forward_pass(roles: Roles, batch, temperature: float) -> None:
    streams = Scorer(roles, 1000, temperature).score(batch, STREAMS)
    assert set(streams) == set(STREAMS)
    named = {"old_logprobs_T": ("policy", "logprobs_T"), "ref_logprobs_T": ("reference", "logprobs_T")}
    named["values_T"] = ("critic", "values_T")
    for stream, (name, output) in named.items():
        with torch.no_grad(), roles.use(name) as role:
            assert torch.equal(streams[stream], getattr(forward(role, batch, temperature=temperature), output)), stream
    for stream in streams.values():
        assert stream.dtype == torch.float32 and not stream.requires_grad
        assert torch.equal(stream != 0, batch.target_mask_T)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_full_kl_is_the_sum_over_the_vocabulary(roles: Roles, batch, temperature: float) -> None:
    log_p, log_q = [], []
    for name, into in (("policy", log_p), ("reference", log_q)):
        with torch.no_grad(), roles.use(name):
            for n in range(batch.sequences):
                tokens = batch.select([n]).input_ids_T[None]
                states = roles.model(input_ids=tokens, use_cache=False).logits[0] / temperature
                into.append(states.log_softmax(-1))
    kl = [torch.cat([torch.zeros(1), (p.exp() * (p - q)).sum(-1)[:-1]]) for p, q in zip(log_p, log_q, strict=True)]
    got = Scorer(roles, 20, temperature).score(batch, ["full_kl_T"])["full_kl_T"]
    torch.testing.assert_close(got, torch.cat(kl) * batch.target_mask_T, atol=1e-5, rtol=1e-4)
    assert (got[batch.target_mask_T] > 0).all()


@pytest.mark.parametrize("micro", [1, 13, 20, 48])
def test_the_size_of_micro_batches_changes_nothing(roles: Roles, batch, micro: int) -> None:
    whole, cut = Scorer(roles, 1000), Scorer(roles, micro)
    assert len(batch.bins(micro)) > 1 or micro == 48
    wanted, got = whole.score(batch, STREAMS), cut.score(batch, STREAMS)
    for stream in STREAMS:
        torch.testing.assert_close(got[stream], wanted[stream], atol=1e-5, rtol=1e-5)
    scores = whole.sequence_scores("reward", batch)
    torch.testing.assert_close(cut.sequence_scores("reward", batch), scores, atol=1e-5, rtol=1e-5)
    assert scores.shape == (batch.sequences,) and len(set(scores.tolist())) == batch.sequences


def test_only_what_is_wanted_is_computed(roles: Roles, batch, monkeypatch) -> None:
    used = []
    real = roles.use
    monkeypatch.setattr(roles, "use", lambda name, train=False: used.append(name) or real(name, train))
    scorer = Scorer(roles, 1000)
    assert set(scorer.score(batch, ["ref_logprobs_T"])) == {"ref_logprobs_T"}
    assert used == ["reference"]
    assert scorer.score(batch, []) == {}


def test_values_of_a_head_on_the_policy_trunk(make_roles, model_folder, batch, shake) -> None:
    roles = make_roles(model_folder("llama"), LoraConfig(r=4))
    roles.add_policy(CriticConfig(source="policy_trunk"))
    shake(roles.trainable("policy").values())
    streams = Scorer(roles, 20).score(batch, ["values_T"])
    assert set(streams) == {"values_T"}
    with torch.no_grad(), roles.use("policy") as role:
        torch.testing.assert_close(streams["values_T"], forward(role, batch).values_T, atol=1e-5, rtol=1e-5)
