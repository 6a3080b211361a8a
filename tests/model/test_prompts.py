"""Each kind of adapter, packed, against plain peft on one sequence at a time: values and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

from accord.batch import TokenBatch
from accord.config import CriticConfig, ModelConfig, ReferenceConfig
from accord.errors import ModelError
from accord.model.export import save_policy, save_scorer
from accord.model.forward import forward
from accord.model.methods import peft_config
from accord.model.prompts import Places
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from model.kinds import KINDS, ONE_EACH, VIRTUAL, plain_logprobs, plain_policy, plain_scorer


def trained(make_roles, folder: Path, kind: str, shake) -> Roles:
    """A policy of a kind whose adapter is no longer as it began."""
    roles = make_roles(folder, KINDS[kind])
    roles.add_policy()
    shake(roles.trainable("policy").values(), 0.2)
    return roles


def policy_logprobs(roles: Roles, batch: TokenBatch, name: str = "policy") -> torch.Tensor:
    with torch.no_grad(), roles.use(name) as role:
        got = forward(role, batch).logprobs_T
    assert got is not None
    return got


@pytest.fixture
def everything(ids) -> TokenBatch:
    """Every token but each first is a target."""
    return TokenBatch.from_sequences(ids, [[t > 0 for t in range(len(sequence))] for sequence in ids])


def test_places_by_hand() -> None:
    batch = TokenBatch.from_sequences([[5, 6, 7], [8]], [[False] * 3, [False]])
    places = Places.of(batch, 2)
    assert places.own_T.tolist() == [2, 3, 4, 7]
    assert places.virtual_W.tolist() == [0, 1, 5, 6]
    assert places.bounds.tolist() == [0, 5, 8]
    joined = places.join(batch.input_ids_T, torch.tensor([-1, -2]), 0)
    assert joined.tolist() == [-1, -2, 5, 6, 7, -1, -2, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_plain_peft_one_by_one(kind, family, model_folder, make_roles, everything, ids, shake, tmp_path):
    """Saved, loaded by plain peft, and run one sequence at a time: invariants 1 and 10."""
    folder = model_folder(family)
    roles = trained(make_roles, folder, kind, shake)
    save_policy(roles, tmp_path)
    with torch.no_grad():
        wanted = plain_logprobs(plain_policy(tmp_path, folder), ids)
        bare = plain_logprobs(plain_policy(tmp_path, folder).get_base_model(), ids) if kind in VIRTUAL else None
    got = policy_logprobs(roles, everything)
    torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-5)
    if bare is not None:
        assert (bare - wanted).abs().max() > 1e-2, "the virtual tokens are seen"
    for tokens in (1, 12):
        parts = Scorer(roles, tokens).score(everything, ["old_logprobs_T"])["old_logprobs_T"]
        torch.testing.assert_close(parts, wanted, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "of"),
    [(kind, "llama_grouped") for kind in KINDS] + [(kind, of) for kind in ONE_EACH for of in ("gpt2", "mistral")],
)
def test_gradients_equal_plain_peft_one_by_one(kind, of, model_folder, make_roles, everything, ids, shake, plain):
    folder = model_folder(of)
    roles = trained(make_roles, folder, kind, shake)
    weights = torch.linspace(-1, 1, everything.tokens)
    with roles.use("policy", train=True) as role:
        (forward(role, everything).logprobs_T * weights).sum().backward()
    ours = {key.split("policy")[0]: p.grad for key, p in roles.adapters.parameters("policy").items()}

    torch.manual_seed(2)
    model = peft.get_peft_model(plain(folder), peft_config(KINDS[kind], str(folder)), adapter_name="policy").eval()
    theirs = {k: p for k, p in model.named_parameters() if p.requires_grad and "ranknum" not in k}
    for parameter, own in zip(theirs.values(), roles.adapters.parameters("policy").values(), strict=True):
        parameter.data.copy_(own.data)
    (plain_logprobs(model, ids) * weights).sum().backward()
    assert len(ours) == len(theirs) or kind in VIRTUAL
    for (name, parameter), own in zip(theirs.items(), roles.adapters.parameters("policy").values(), strict=True):
        assert own.grad is not None and parameter.grad is not None, name
        torch.testing.assert_close(own.grad, parameter.grad, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert not any(p.grad is not None for key, p in roles.model.named_parameters() if ".policy" not in key)


@pytest.mark.parametrize(
    ("kind", "of"),
    [(kind, "llama_grouped") for kind in KINDS]
    + [(kind, of) for kind in ("prompt", "prefix") for of in ("gpt2", "gpt_neox")],
)
def test_a_reward_model_of_each_kind_scores_as_plain_peft_does(
    kind, of, model_folder, make_roles, ids, shake, tmp_path
):
    folder = model_folder(of)
    roles = make_roles(folder, KINDS[kind])
    roles.add_scorer()
    shake(roles.trainable("reward").values(), 0.2)
    save_scorer(roles, tmp_path)
    batch = TokenBatch.from_sequences(ids, [[False] * len(sequence) for sequence in ids])
    got = Scorer(roles, 20).sequence_scores("reward", batch)
    plain = plain_scorer(tmp_path, folder)
    with torch.no_grad():
        wanted = torch.cat([plain(input_ids=torch.tensor([sequence])).logits[0] for sequence in ids])
    torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-5)
    assert got.std() > 1e-2

    # The same folder beside a policy of LoRA and of its own kind, on one base or on one of its own.
    for other in ("lora", kind):
        beside = make_roles(folder, KINDS[other])
        beside.add_policy()
        beside.add_reference(ReferenceConfig())
        shake(beside.trainable("policy").values(), 0.2, 5)
        beside.add_reward(str(tmp_path), "reward/x")
        beside.add_critic(CriticConfig(source="adapter"))
        again = Scorer(beside, 20).sequence_scores("reward/x", batch)
        torch.testing.assert_close(again, wanted, atol=3e-5, rtol=1e-5)
        same = kind in VIRTUAL or KINDS[other].method == KINDS[kind].method
        assert beside.roles["reward/x"].shared == same


@pytest.mark.parametrize("kind", KINDS)
def test_policy_equals_reference_bit_for_bit_at_the_start(kind, model_folder, make_roles, batch, shake):
    """Invariant 2, for fresh adapters and for a run that goes on; the reference then stays."""
    roles = make_roles(model_folder("llama_grouped"), KINDS[kind])
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    roles.add_critic(CriticConfig(source="adapter"))
    start = policy_logprobs(roles, batch, "reference")
    assert torch.equal(policy_logprobs(roles, batch), start) and start.abs().sum() > 0
    streams = Scorer(roles, 20).score(batch, ["full_kl_T"])
    assert torch.equal(streams["full_kl_T"], torch.zeros(batch.tokens))
    shake(roles.trainable("policy").values(), 0.2)
    shake(roles.trainable("critic").values(), 0.2, 4)
    assert torch.equal(policy_logprobs(roles, batch, "reference"), start)
    assert not torch.allclose(policy_logprobs(roles, batch), start, atol=1e-2)
    assert not set(roles.trainable("policy")) & set(roles.trainable("critic"))
    assert roles.trainable("reference") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_saved_adapter(kind, model_folder, make_roles, batch, ids, shake, tmp_path):
    folder = model_folder("llama_grouped")
    first = trained(make_roles, folder, kind, shake)
    save_policy(first, tmp_path / "first")
    second = make_roles(tmp_path / "first", KINDS[kind])
    second.add_policy()
    second.add_reference(ReferenceConfig())
    before = policy_logprobs(first, batch)
    torch.testing.assert_close(policy_logprobs(second, batch), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(policy_logprobs(second, batch), policy_logprobs(second, batch, "reference"))
    with second.use("policy", train=True) as role:
        forward(role, batch).logprobs_T.sum().backward()
    grads = [parameter.grad for parameter in second.trainable("policy").values()]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    shake(second.trainable("policy").values(), 0.1, 8)
    save_policy(second, tmp_path / "second")
    with torch.no_grad():
        wanted = plain_logprobs(plain_policy(tmp_path / "second", folder), ids) * batch.target_mask_T
    torch.testing.assert_close(policy_logprobs(second, batch), wanted, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ONE_EACH)
def test_only_the_active_adapter_that_trains_takes_gradients(kind, model_folder, make_roles, batch):
    roles = make_roles(model_folder("llama"), KINDS[kind])
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    roles.add_critic(CriticConfig(source="adapter"))
    with roles.use("policy", train=True) as role:
        forward(role, batch).logprobs_T.sum().backward()
        assert all(p.requires_grad for p in roles.adapters.parameters("policy").values())
        for other in ("critic", "start"):
            assert not any(p.requires_grad or p.grad is not None for p in roles.adapters.parameters(other).values())
    with roles.use("critic", train=True):
        assert not any(p.requires_grad for p in roles.adapters.parameters("policy").values())
    with roles.use("policy"):
        assert not any(p.requires_grad for p in roles.adapters.parameters("policy").values())
    assert not any(p.requires_grad for p in roles.model.parameters())


@pytest.mark.parametrize("kind", ONE_EACH)
def test_the_seed_decides_how_an_adapter_starts(kind, model_folder):
    def start(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        fresh = Roles(ModelConfig(path=str(model_folder("llama"))), KINDS[kind], torch.device("cpu"))
        fresh.add_policy()
        return [p.detach().clone() for p in fresh.trainable("policy").values()]

    one, again, other = start(1), start(1), start(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    differs = any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert differs == (kind != "ia3"), "IA3 starts at 1"


def test_a_text_is_where_virtual_tokens_start(model_folder, make_roles, tokenizer):
    roles = make_roles(model_folder("llama"), KINDS["prompt_text"])
    roles.add_policy()
    (start,) = roles.trainable("policy").values()
    ids = tokenizer("the film was good")["input_ids"]
    wanted = roles.model.get_input_embeddings().weight[(ids * 7)[:7]]
    assert torch.equal(start, wanted)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_dropout_of_an_encoder_is_off_unless_asked_for(kind, model_folder, make_roles, batch):
    config = KINDS[kind]
    if getattr(config, "encoder", None) == "lstm":
        config = config.model_copy(update={"dropout": 0.5})
    roles = make_roles(model_folder("llama"), config)
    roles.add_policy()
    still = policy_logprobs(roles, batch)
    assert torch.equal(policy_logprobs(roles, batch), still)
    roles.train_mode(True)
    moved = policy_logprobs(roles, batch)
    assert torch.equal(moved, still) == (kind != "ptuning_lstm")
    roles.train_mode(False)
    assert torch.equal(policy_logprobs(roles, batch), still)


@pytest.mark.parametrize("kind", ["prompt", "prefix", "ptuning"])
def test_virtual_tokens_on_a_base_of_their_own(
    kind, model_folder, make_roles, ids, batch, shake, tmp_path, monkeypatch
):
    """As another reference, and as the reward model of a policy whose weights all learn; not as a critic of that kind."""
    folder = model_folder("llama_grouped")
    save_policy(trained(make_roles, folder, kind, shake), tmp_path / "policy")
    scorer = make_roles(folder, KINDS[kind])
    scorer.add_scorer()
    shake(scorer.trainable("reward").values(), 0.2)
    save_scorer(scorer, tmp_path / "reward")

    roles = make_roles(folder, None)
    roles.add_policy()
    roles.add_reference(ReferenceConfig(source="model", path=str(tmp_path / "policy")))
    roles.add_reward(str(tmp_path / "reward"))
    with torch.no_grad():
        wanted = plain_logprobs(plain_policy(tmp_path / "policy", folder), ids) * batch.target_mask_T
        plain = plain_scorer(tmp_path / "reward", folder)
        scores = torch.cat([plain(input_ids=torch.tensor([sequence])).logits[0] for sequence in ids])
    torch.testing.assert_close(policy_logprobs(roles, batch, "reference"), wanted, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(Scorer(roles, 20).sequence_scores("reward", batch), scores, atol=3e-5, rtol=1e-5)
    assert roles.trainable("reference") == {} == roles.trainable("reward")

    monkeypatch.setattr("accord.model.roles.load_weights", None)  # refused before anything is loaded
    with pytest.raises(ModelError, match=r"cannot be folded into them; a critic whose .* critic.source: adapter"):
        roles.add_critic(CriticConfig(source="model", path=str(tmp_path / "reward")))


def test_an_encoder_that_does_not_fit_is_refused(model_folder, make_roles, shake, tmp_path):
    save_policy(trained(make_roles, model_folder("llama"), "prefix", shake), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 5}))
    with pytest.raises(ModelError, match="does not fit its base"):
        make_roles(tmp_path, KINDS["prefix"])
