"""Four roles on one base: who starts equal to whom, who learns, who stays untouched."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.config import CriticConfig, LoraConfig, ReferenceConfig
from accord.errors import ModelError
from accord.model.export import save_policy
from accord.model.forward import forward
from accord.model.roles import START, Roles
from accord.model.scorer import Scorer
from accord.ops import products
from accord.ops.logprobs import full_kl
from model.kinds import KINDS

LORA = LoraConfig(r=4, alpha=8)
ADAPTER_CRITIC = CriticConfig(source="adapter")


def run(roles: Roles, name: str, batch):
    with torch.no_grad(), roles.use(name) as role:
        return forward(role, batch)


def assert_kl_is_exactly_zero(roles: Roles, batch) -> None:
    streams = Scorer(roles, 20).score(batch, ["old_logprobs_T", "ref_logprobs_T", "full_kl_T"])
    assert torch.equal(streams["old_logprobs_T"], streams["ref_logprobs_T"])
    assert streams["old_logprobs_T"].abs().sum() > 0
    assert torch.equal(streams["full_kl_T"], torch.zeros(batch.tokens))


# --- policy and reference: invariant 2 -----------------------------------------------------------------------------------


@pytest.fixture(params=["llama", "llama_grouped", "qwen3", "mistral", "gpt2", "gpt_neox", "adapter"])
def start_folder(request, model_folder, policy_adapter: Path) -> Path:
    """What a run may start from: a base of each family, or an adapter."""
    return policy_adapter if request.param == "adapter" else model_folder(request.param)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_policy_equals_reference_bit_for_bit_at_the_start_and_the_reference_stays(
    adapter, start_folder: Path, make_roles, batch, shake
) -> None:
    roles = make_roles(start_folder, adapter)
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    roles.add_critic(CriticConfig(source="adapter" if adapter else "policy_trunk"))
    assert_kl_is_exactly_zero(roles, batch)
    start = run(roles, "reference", batch).logprobs_T
    shake(roles.trainable("policy").values(), 0.05)
    assert torch.equal(run(roles, "reference", batch).logprobs_T, start)
    assert not torch.allclose(run(roles, "policy", batch).logprobs_T, start, atol=1e-2)


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_a_run_from_an_adapter_refers_to_the_adapter_and_not_to_the_bare_base(
    adapter, make_roles, model_folder, policy_adapter: Path, batch
) -> None:
    roles = make_roles(policy_adapter, adapter)
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    bare = make_roles(model_folder("llama"))
    bare.add_policy()
    reference = run(roles, "reference", batch).logprobs_T
    assert not torch.allclose(reference, run(bare, "policy", batch).logprobs_T, atol=1e-2)

    import peft

    base = AutoModelForCausalLM.from_pretrained(model_folder("llama"), attn_implementation="accord_segments")
    plain = peft.PeftModel.from_pretrained(base, policy_adapter).eval()
    from accord.model.attention import packed_arguments

    with torch.no_grad():
        logprobs = plain(**packed_arguments(batch)).logits[0].log_softmax(-1)
    wanted = torch.cat([torch.zeros(1), logprobs[:-1].gather(-1, batch.input_ids_T[1:, None]).squeeze(-1)])
    torch.testing.assert_close(reference, wanted * batch.target_mask_T, atol=3e-5, rtol=1e-5)


def test_the_reference_can_be_another_model(make_roles, model_folder, policy_adapter: Path, batch) -> None:
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    roles.add_reference(ReferenceConfig(source="model", path=str(policy_adapter)))
    other = make_roles(policy_adapter)
    other.add_policy()
    got = run(roles, "reference", batch).logprobs_T
    torch.testing.assert_close(got, run(other, "policy", batch).logprobs_T, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in roles.roles["reference"].trunk.parameters())
    assert roles.trainable("reference") == {}


# --- one base ------------------------------------------------------------------------------------------------------------


def all_four(make_roles, folder: Path, reward: Path, critic: CriticConfig = ADAPTER_CRITIC) -> Roles:
    roles = make_roles(folder, LORA)
    roles.add_policy(critic)
    roles.add_reference(ReferenceConfig())
    roles.add_reward(str(reward))
    roles.add_critic(critic)
    return roles


def test_four_roles_hold_one_copy_of_the_base(
    make_roles, model_folder, reward_adapter: Path, policy_adapter: Path
) -> None:
    for folder in (model_folder("llama"), policy_adapter):
        roles = all_four(make_roles, folder, reward_adapter)
        assert set(roles.roles) == {"policy", "reference", "critic", "reward"}
        assert len({id(role.trunk) for role in roles.roles.values()}) == 1
        pointers = [
            {p.data_ptr() for name, p in role.trunk.named_parameters() if "lora_" not in name}
            for role in roles.roles.values()
        ]
        assert all(one == other for one, other in pairwise(pointers))
        base = sum(p.numel() for name, p in roles.model.named_parameters() if "lora_" not in name)
        assert base == AutoModelForCausalLM.from_pretrained(model_folder("llama")).num_parameters()


def test_use_switches_and_restores(make_roles, model_folder, reward_adapter: Path, batch, shake) -> None:
    roles = all_four(make_roles, model_folder("llama"), reward_adapter)
    for seed, name in enumerate(("policy", "critic")):
        shake(roles.trainable(name).values(), seed=seed)
    alone = {name: run(roles, name, batch) for name in roles.roles}
    for outer in roles.roles:
        with torch.no_grad(), roles.use(outer, train=True) as role:
            for inner in roles.roles:
                run(roles, inner, batch)
            again = forward(role, batch)
        for stream in ("logprobs_T", "values_T", "scores_N"):
            was, now = getattr(alone[outer], stream), getattr(again, stream)
            assert (was is None) == (now is None) and (was is None or torch.equal(was, now))


def test_each_role_s_backward_reaches_its_own_weights_only(
    make_roles, model_folder, reward_adapter: Path, batch, shake
) -> None:
    roles = all_four(make_roles, model_folder("llama"), reward_adapter)
    own = {name: roles.trainable(name) for name in roles.roles}
    assert own["reference"] == own["reward"] == {}
    for name in ("policy", "critic"):
        shake(own[name].values())
    everything = dict(roles.model.named_parameters()) | {
        f"head of {name}": head.weight
        for name, role in roles.roles.items()
        for head in (role.value_head, role.score_head)
        if head is not None
    }
    for name, stream in (("policy", "logprobs_T"), ("critic", "values_T")):
        with roles.use(name, train=True) as role:
            getattr(forward(role, batch), stream).sum().backward()
        reached = {id(p) for p in everything.values() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached == {id(p) for p in own[name].values()}, name
        for parameter in everything.values():
            parameter.grad = None
    with roles.use("policy", train=False) as role:
        assert not forward(role, batch).logprobs_T.requires_grad


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_what_learns_has_the_same_names_each_time(adapter, make_roles, model_folder, reward_adapter: Path) -> None:
    def names() -> list[list[str]]:
        roles = make_roles(model_folder("llama"), adapter)
        roles.add_policy(CriticConfig(source="policy_trunk"))
        roles.add_reference(ReferenceConfig())
        return [sorted(roles.trainable(name)) for name in roles.roles]

    first = names()
    assert first == names()
    policy = first[0]
    assert policy[-1] == "value_head.weight" and first[1] == []
    if adapter is None:
        count = len(list(AutoModelForCausalLM.from_pretrained(model_folder("llama")).named_parameters()))
        assert len(policy) == count + 1 and "output.weight" in policy and "trunk.embed_tokens.weight" in policy
    else:
        assert all(name.startswith("adapter.") and ".policy." in name for name in policy[:-1])


def test_tied_output_weights_are_learnt_once(make_roles, model_folder) -> None:
    roles = make_roles(model_folder("gpt2"))
    roles.add_policy()
    weights = roles.trainable("policy")
    assert len({id(weight) for weight in weights.values()}) == len(weights)
    assert "trunk.wte.weight" in weights and not any(name.startswith("output") for name in weights)


def test_train_mode_sets_dropout_in_what_learns(make_roles, model_folder, reward_model: Path) -> None:
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    roles.add_reward(str(reward_model))
    roles.train_mode(True)
    assert roles.roles["policy"].trunk.training and not roles.roles["reward"].trunk.training
    roles.train_mode(False)
    assert not any(module.training for module in roles.roles["policy"].trunk.modules())


# --- rewards -------------------------------------------------------------------------------------------------------------


def test_a_reward_on_the_shared_base_and_as_its_own_model_give_the_same_scores(
    make_roles, model_folder, reward_adapter: Path, tmp_path: Path, batch
) -> None:
    shared = make_roles(model_folder("llama"), LORA)
    full = make_roles(model_folder("llama"))
    elsewhere = make_roles(Path(shutil.copytree(model_folder("llama"), tmp_path / "other")), LORA)
    scores = []
    for roles in (shared, full, elsewhere):
        roles.add_policy()
        roles.add_reward(str(reward_adapter), "reward/helpful")
        assert roles.trainable("reward/helpful") == {}
        scores.append(run(roles, "reward/helpful", batch).scores_N)
    assert [r.roles["reward/helpful"].shared for r in (shared, full, elsewhere)] == [True, False, False]
    assert scores[0].std() > 0.02
    torch.testing.assert_close(scores[1], scores[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(scores[2], scores[0], atol=2e-5, rtol=1e-5)


def test_several_rewards_share_one_base(
    make_roles, model_folder, reward_adapter: Path, tmp_path: Path, batch, shake
) -> None:
    roles = all_four(make_roles, model_folder("llama"), reward_adapter)
    roles.add_reward(str(reward_adapter), "reward/second.one")
    assert torch.equal(run(roles, "reward", batch).scores_N, run(roles, "reward/second.one", batch).scores_N)
    assert roles.roles["reward/second.one"].trunk is roles.roles["policy"].trunk


def test_what_is_no_reward_model_is_refused(make_roles, model_folder, policy_adapter: Path, tmp_path: Path) -> None:
    for adapter in (LORA, None):
        roles = make_roles(model_folder("llama"), adapter)
        with pytest.raises(ModelError, match=r"is not a reward model: neither a sequence classifier nor an adapter"):
            roles.add_reward(str(model_folder("llama")))
        with pytest.raises(ModelError, match="not a reward model"):
            roles.add_reward(str(policy_adapter))


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_a_reward_model_that_goes_on_learning_starts_with_the_scores_it_gave(
    adapter, make_roles, model_folder, reward_adapter: Path, batch
) -> None:
    frozen = make_roles(model_folder("llama"), LORA)
    frozen.add_policy()
    frozen.add_reward(str(reward_adapter))
    on = make_roles(reward_adapter, adapter)
    on.add_scorer()
    wanted = run(frozen, "reward", batch).scores_N
    torch.testing.assert_close(run(on, "reward", batch).scores_N, wanted, atol=2e-5, rtol=1e-5)
    assert wanted.std() > 0.02


# --- critics -------------------------------------------------------------------------------------------------------------


def test_an_adapter_critic_starts_at_zero(make_roles, model_folder, reward_adapter: Path, batch) -> None:
    roles = all_four(make_roles, model_folder("llama"), reward_adapter)
    assert torch.equal(run(roles, "critic", batch).values_T, torch.zeros(batch.tokens))
    names = roles.trainable("critic")
    assert "value_head.weight" in names and all(".critic." in n for n in names if n != "value_head.weight")


def test_a_critic_on_the_policy_trunk_reads_the_policy_s_states(
    make_roles, model_folder, reward_adapter, batch, shake
) -> None:
    roles = all_four(make_roles, model_folder("llama"), reward_adapter, CriticConfig(source="policy_trunk"))
    assert "critic" not in roles.roles
    shake(roles.trainable("policy").values())
    values = Scorer(roles, 1000).score(batch, ["values_T"])["values_T"]
    assert torch.equal(values, run(roles, "policy", batch).values_T) and values.std() > 0.01


def test_a_critic_started_from_the_reward_values_the_last_state_at_its_score(
    make_roles, model_folder, reward_adapter: Path, ids, batch
) -> None:
    """The value of a state is the reward model's score of the text up to it: the same adapter, the same head."""
    from accord.batch import TokenBatch

    critic = CriticConfig(source="adapter", start="reward")
    roles = all_four(make_roles, model_folder("llama"), reward_adapter, critic)
    values = run(roles, "critic", batch).values_T
    for n, sequence in enumerate(ids):
        for t in range(1, len(sequence)):
            at = int(batch.cu_seqlens[n]) + t
            prefix = TokenBatch.from_sequences([sequence[:t]], [[False] * t])
            wanted = run(roles, "reward", prefix).scores_N[0] if batch.target_mask_T[at] else torch.zeros(())
            torch.testing.assert_close(values[at], wanted, atol=2e-5, rtol=1e-5)
    reward, critic_weights = roles.roles["reward"], roles.trainable("critic")
    assert torch.equal(reward.score_head.weight, critic_weights["value_head.weight"])
    assert reward.score_head.weight.data_ptr() != critic_weights["value_head.weight"].data_ptr()
    for key, weight in roles.adapters.parameters("reward").items():
        assert torch.equal(weight, critic_weights["adapter." + key.replace(".reward.", ".critic.")])


def test_a_critic_cannot_start_from_a_reward_of_another_base(make_roles, model_folder, reward_model: Path) -> None:
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    for add in (lambda: None, lambda: roles.add_reward(str(reward_model))):
        add()
        with pytest.raises(ModelError, match=r"use critic: \{source: model"):
            roles.add_critic(CriticConfig(source="adapter", start="reward"))


@pytest.mark.parametrize("kind", ["reward_model", "reward_adapter"])
def test_a_critic_of_its_own_starts_from_a_reward_model_s_head(kind, request, make_roles, model_folder, batch) -> None:
    path = request.getfixturevalue(kind)
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    roles.add_critic(CriticConfig(source="model", path=str(path)))
    roles.add_reward(str(path))
    critic = roles.roles["critic"]
    assert torch.equal(critic.value_head.weight, roles.roles["reward"].score_head.weight)
    assert critic.trunk is not roles.roles["policy"].trunk
    last = [int(end) - 1 for end in batch.cu_seqlens[1:]]
    with torch.no_grad():
        from accord.model.forward import hidden_states

        states = hidden_states(critic, batch)[last]
    torch.testing.assert_close(critic.value_head(states), run(roles, "reward", batch).scores_N, atol=2e-5, rtol=1e-5)
    with roles.use("critic", train=True) as role:
        forward(role, batch).values_T.sum().backward()
    assert all(weight.grad is not None for weight in roles.trainable("critic").values())
    assert all(parameter.grad is None for parameter in roles.model.parameters())


def test_a_critic_of_its_own_from_a_causal_model_starts_at_zero(make_roles, model_folder, batch) -> None:
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    roles.add_critic(CriticConfig(source="model", path=str(model_folder("qwen3"))))
    assert torch.equal(run(roles, "critic", batch).values_T, torch.zeros(batch.tokens))
    with pytest.raises(ModelError, match="not a reward model"):
        roles.add_critic(CriticConfig(source="model", path=str(model_folder("qwen3")), start="reward"))


# --- types of weights ----------------------------------------------------------------------------------------------------


def test_auto_dtype_is_the_checkpoint_s_for_frozen_weights_and_float32_for_weights_that_learn(
    make_roles, model_folder, tmp_path: Path, batch, monkeypatch
) -> None:
    monkeypatch.setattr(products, "fast_types", lambda: frozenset({"float32", "bfloat16"}))
    half = tmp_path / "half"
    shutil.copytree(model_folder("llama"), half)
    AutoModelForCausalLM.from_pretrained(half).to(torch.bfloat16).save_pretrained(half)
    for adapter, dtype in ((LORA, torch.bfloat16), (None, torch.float32)):
        roles = make_roles(half, adapter)
        roles.add_policy()
        roles.add_reference(ReferenceConfig(source="model", path=str(half)))
        roles.add_critic(CriticConfig(source="model", path=str(half)))
        assert next(roles.model.parameters()).dtype == roles.dtype == dtype
        assert {p.dtype for p in roles.roles["reference"].trunk.parameters()} == {torch.bfloat16}
        for name in ("policy", "critic"):
            assert {p.dtype for p in roles.trainable(name).values()} == {torch.float32}, name


def test_kl_is_exactly_zero_in_bfloat16_too(make_roles, model_folder, batch) -> None:
    roles = make_roles(model_folder("llama"), LORA, dtype="bfloat16")
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    assert_kl_is_exactly_zero(roles, batch)


@pytest.mark.parametrize("kind", ["lora", "ia3", "dora"])
def test_a_reference_of_its_own_says_what_the_run_starts_from_in_bfloat16_too(
    kind, make_roles, model_folder, shake, batch, tmp_path: Path
) -> None:
    """What a young adapter adds is less than half a step of bfloat16: folded in, most of it would be rounded away."""
    young = make_roles(model_folder("llama"), KINDS[kind], dtype="bfloat16")
    young.add_policy()
    shake(young.trainable("policy").values(), 1e-4)
    save_policy(young, tmp_path / "young")
    roles = make_roles(tmp_path / "young", KINDS[kind], dtype="bfloat16")
    roles.add_policy()
    roles.add_reference(ReferenceConfig(source="model", path=str(tmp_path / "young")))
    assert not roles.roles["reference"].shared
    assert_kl_is_exactly_zero(roles, batch)
    assert not any(p.requires_grad for p in roles.roles["reference"].trunk.parameters())


def test_a_reward_of_its_own_gives_the_same_scores_in_bfloat16(
    make_roles, model_folder, reward_adapter: Path, batch
) -> None:
    scores = []
    for adapter in (LORA, None):  # on the shared base, and on one of its own
        roles = make_roles(model_folder("llama"), adapter, dtype="bfloat16")
        roles.add_policy()
        roles.add_reward(str(reward_adapter))
        scores.append(run(roles, "reward", batch).scores_N)
    assert scores[0].std() > 0.02
    torch.testing.assert_close(scores[1], scores[0], atol=2e-3, rtol=4e-3)  # the head is rounded to bfloat16


def test_an_output_layer_that_is_adapted_is_refused(make_roles, model_folder) -> None:
    roles = make_roles(model_folder("llama"), LoraConfig(r=2, targets=("lm_head", "q_proj")))
    with pytest.raises(ModelError, match=r"must be a plain linear layer: leave it out of adapter.targets"):
        roles.add_policy()


def test_the_start_adapter_is_not_what_learns(make_roles, policy_adapter: Path) -> None:
    roles = make_roles(policy_adapter, LORA)
    roles.add_policy()
    weights = roles.trainable("policy")
    assert all(f".{START}." not in name for name in weights)
    saved = json.loads((policy_adapter / "adapter_config.json").read_text())
    ranks = {weight.shape[0] for name, weight in weights.items() if "lora_A" in name}
    assert ranks == {saved["r"]}


# --- weights that wait in main memory ------------------------------------------------------------------------------------


def test_what_is_offloaded_comes_before_use_and_goes_after(
    model_folder, reward_model: Path, make_roles, batch, monkeypatch
) -> None:
    """Where each role with `offload` is, told by the moves alone: this machine has one kind of memory."""
    roles = make_roles(model_folder("llama"), LORA)
    roles.add_policy()
    path = str(model_folder("llama"))
    roles.add_reference(ReferenceConfig(source="model", path=path, offload=True))
    roles.add_reward(str(reward_model), offload=True)
    owners = {id(role.trunk): name for name, role in roles.roles.items()}
    moves: list[str] = []

    @contextmanager
    def noted(modules, device):
        names = [owners[id(module)] for module in modules if id(module) in owners]
        assert device == roles.device
        moves.extend(f"{name} in" for name in names)
        yield
        moves.extend(f"{name} out" for name in names)

    monkeypatch.setattr("accord.model.roles.visiting", noted)
    scorer = Scorer(roles, 20)
    streams = scorer.score(batch, ["old_logprobs_T", "ref_logprobs_T"])
    assert torch.allclose(streams["old_logprobs_T"], streams["ref_logprobs_T"], atol=1e-5)
    assert moves == ["reference in", "reference out"], "once for all micro-batches, and not for the policy"
    moves.clear()
    scorer.sequence_scores("reward", batch)
    assert moves == ["reward in", "reward out"]
    moves.clear()
    seen: list[int] = []
    real = full_kl
    monkeypatch.setattr("accord.model.scorer.full_kl", lambda *a, **k: (seen.append(len(moves) % 2), real(*a, **k))[1])
    scorer.score(batch, ["full_kl_T"])
    assert seen and set(seen) == {1}, "its output layer is read while it is there"


def test_all_parts_of_a_role_go_together(model_folder, reward_model: Path, make_roles) -> None:
    roles = make_roles(model_folder("llama"))
    roles.add_policy()
    roles.add_reference(ReferenceConfig(offload=True))
    roles.add_reward(str(reward_model), offload=True)
    reference, reward = roles.roles["reference"], roles.roles["reward"]
    assert reference.offload and reference.parts == [reference.trunk, reference.output]
    assert reward.parts == [reward.trunk, reward.score_head]
