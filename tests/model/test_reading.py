"""Prefixes in common computed once: values and gradients are those of separate sequences, for every family that is packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from accord import packing
from accord.batch import TokenBatch
from accord.config import CriticConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.model.forward import Role, forward, teach, trunk_states
from accord.model.heads import ClassHead, ScalarHead
from accord.model.loading import head_size, trunk_of
from accord.model.reading import read
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops import attention as kernel
from accord.rollout.cache import RowCache
from model.kinds import KINDS, VIRTUAL

FAMILIES = (
    "llama",
    "llama_grouped",
    "qwen3",
    "mistral",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "opt",
    "mixtral",
    "qwen3_moe",
    "cohere",
    "granite",
)
"""Windows of 5 tokens in Mistral, and in one of two layers of Gemma 3; every prompt below is longer."""
CPU = torch.device("cpu")


def ids_of(*parts: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 250, parts, generator=generator).tolist()


def sequences(kind: str) -> list[list[int]]:
    """What a batch may hold, by name."""
    system, one, two = ids_of(18, seed=1), ids_of(21, seed=2), ids_of(17, seed=3)
    answers = [ids_of(length, seed=10 + length) for length in (5, 1, 9, 3, 7, 8)]
    alone = ids_of(11, seed=4)
    return {
        "group": [one + answer for answer in answers],
        "pairs": [one + answers[0], one + answers[2], two + answers[3], two + answers[4]],
        "tree": [system + prompt + answer for prompt in (one, two) for answer in answers[:3]] + [system + alone],
        "equal": [one + answers[0], one + answers[0], two, two, two + answers[3]],
        "prefix_of_another": [one + answers[0], one, one[:16], one + answers[0] + answers[2], one[:18] + answers[3]],
        "single_tokens": [one + answers[0], [one[0]], [9], one + answers[3], [9]],
        "nothing_in_common": [alone, one, two, [5]],
        "mixed": [
            alone,
            one + answers[0],
            system + alone,
            [5],
            one + answers[2],
            system + two,
            alone,
            one + answers[0],
        ],
        "long_answers": [one + ids_of(70, seed=5), one + ids_of(66, seed=6), one + ids_of(3, seed=7)],
    }[kind]


SHAPES = (
    "group",
    "pairs",
    "tree",
    "equal",
    "prefix_of_another",
    "single_tokens",
    "nothing_in_common",
    "mixed",
    "long_answers",
)


def batch_of(ids: list[list[int]]) -> TokenBatch:
    """Every token but each first and fourth is a target."""
    return TokenBatch.from_sequences(ids, [[t not in (0, 3) for t in range(len(sequence))] for sequence in ids])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch) -> None:
    """So that answers take several, whole and partial ones."""
    monkeypatch.setattr(kernel, "BLOCK", 4)


def policy(make_roles: Callable[..., Roles], folder: Path, dtype: str = "auto") -> tuple[Roles, Role]:
    roles = make_roles(folder, dtype=dtype)
    roles.add_policy()
    size = head_size(roles.model)
    head = ScalarHead(size, torch.randn(1, size, generator=torch.Generator().manual_seed(5)))
    return roles, replace(roles.roles["policy"], value_head=head, score_head=head)


def run(role: Role, roles: Roles, batch: TokenBatch, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """What the role says, and the gradients of a sum in which every number has another weight."""
    roles.model.zero_grad(set_to_none=True)
    outputs = forward(role, batch, temperature=0.7, entropy=True)
    values = {name: value for name, value in vars(outputs).items() if value is not None}
    torch.stack([(value * weights[name]).sum() for name, value in values.items()]).sum().backward()
    grads = {name: p.grad.clone() for name, p in roles.model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in values.items()}, grads


def drawn(batch: TokenBatch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    sizes = dict.fromkeys(("logprobs_T", "entropies_T", "values_T"), batch.tokens) | {"scores_N": batch.sequences}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def one_by_one(
    role: Role, roles: Roles, batch: TokenBatch, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], ...]:
    """The same, each sequence by itself."""
    values: dict[str, list[Tensor]] = {}
    total: dict[str, Tensor] = {}
    for n in range(batch.sequences):
        part = {k: w[batch.token_index([n])] if k.endswith("_T") else w[n : n + 1] for k, w in weights.items()}
        got, grads = run(role, roles, batch.select([n]), part)
        for name, value in got.items():
            values.setdefault(name, []).append(value)
        for name, grad in grads.items():
            total[name] = total.get(name, torch.zeros_like(grad)) + grad
    return {name: torch.cat(parts) for name, parts in values.items()}, total


def assert_alike(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    """Within `bound` of the largest number of each kind."""
    assert got.keys() == want.keys()
    largest = max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        scale = float(value.abs().max()) + 0.05 * largest  # some are 0 but for rounding, such as a key's bias
        torch.testing.assert_close(
            got[name] / scale, value / scale, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("of", FAMILIES)
def test_values_and_gradients_are_those_of_separate_sequences(of: str, kind: str, model_folder, make_roles) -> None:
    roles, role = policy(make_roles, model_folder(of))
    batch = batch_of(sequences(kind))
    assert role.shares and batch.layout.shares == (kind != "nothing_in_common")
    weights = drawn(batch)
    got, grads = run(role, roles, batch, weights)
    for want, want_grads in (
        one_by_one(role, roles, batch, weights),
        run(replace(role, shares=False), roles, batch, weights),
    ):
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert_alike(grads, want_grads, 1e-5)
    assert got["logprobs_T"][batch.target_mask_T].std() > 0.3


@pytest.mark.parametrize("of", ["llama_grouped", "mistral", "gemma3"])
def test_log_probabilities_are_those_of_plain_transformers(of: str, model_folder, make_roles) -> None:
    """Not only of our own attention without sharing: transformers' plain one, a sequence at a time."""
    _, role = policy(make_roles, model_folder(of))
    model = AutoModelForCausalLM.from_pretrained(model_folder(of), attn_implementation="eager").eval()
    ids = sequences("tree")
    with torch.no_grad():
        got = forward(role, TokenBatch.from_sequences(ids, [[t > 0 for t in range(len(s))] for s in ids])).logprobs_T
        for sequence, logprobs in zip(ids, got.split([len(s) for s in ids]), strict=True):
            row = torch.tensor([sequence])
            want = model(input_ids=row, use_cache=False).logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None])
            torch.testing.assert_close(logprobs[1:], want[:, 0], atol=2e-5, rtol=1e-5)


BFLOAT16 = 0.05
"""Of the largest: bfloat16 has 8 bits, and these models have two layers."""


@pytest.mark.parametrize("of", ["llama_grouped", "mistral", "gemma3", "qwen3_moe"])
def test_bfloat16_is_as_close_to_float32_shared_as_separate(of: str, model_folder, make_roles) -> None:
    batch = batch_of(sequences("tree"))
    weights = drawn(batch)
    roles, role = policy(make_roles, model_folder(of))
    exact, exact_grads = run(role, roles, batch, weights)
    roles, role = policy(make_roles, model_folder(of), "bfloat16")
    shared, shared_grads = run(role, roles, batch, weights)
    whole, whole_grads = run(replace(role, shares=False), roles, batch, weights)

    def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
        errors = [
            float((got[name].float() - value).norm() / value.norm())
            for name, value in want.items()
            if value.norm() > 1e-3
        ]
        return sum(errors) / len(errors)

    assert error(shared, exact) < max(1.5 * error(whole, exact), 1e-3)
    assert error(shared_grads, exact_grads) < max(1.5 * error(whole_grads, exact_grads), 1e-3)
    if of != "qwen3_moe":  # rounding sends a token to another expert, shared or not
        assert error(shared, whole) < BFLOAT16


def test_a_shared_token_s_gradient_is_the_sum_over_its_sequences(model_folder, make_roles) -> None:
    """The embedding of a token that stands in the prompt alone, moved by the answers one at a time and together."""
    roles, role = policy(make_roles, model_folder("llama"))
    prompt = [*ids_of(20, seed=2), 251]
    ids = [[*prompt, *ids_of(n, seed=30 + n)] for n in (4, 6)]
    masks = [[t >= len(prompt) for t in range(len(s))] for s in ids]

    def gradient(chosen: tuple[int, ...]) -> Tensor:
        roles.model.zero_grad(set_to_none=True)
        batch = TokenBatch.from_sequences([ids[n] for n in chosen], [masks[n] for n in chosen])
        assert batch.layout.shares == (len(chosen) > 1)
        forward(role, batch).logprobs_T.sum().backward()
        return roles.model.get_input_embeddings().weight.grad[251].clone()

    first, second = gradient((0,)), gradient((1,))
    assert (first - second).abs().max() > 1e-2
    torch.testing.assert_close(gradient((0, 1)), first + second, atol=1e-4, rtol=1e-5)


def test_a_teacher_s_and_a_classifier_s_states_are_read_at_their_places(model_folder, make_roles, shake) -> None:
    """Whatever is read elsewhere than before the targets, and heads without the trunk."""
    _, role = policy(make_roles, model_folder("mistral"))
    batch = batch_of(sequences("tree"))
    other = policy(make_roles, model_folder("mistral"))[0]
    shake(other.model.parameters(), 0.02)
    teacher = replace(role, trunk=trunk_of(other.model))
    found = []
    for shares in (True, False):
        seen = replace(role, shares=shares, stepwise=True, class_head=ClassHead(32, 3, 0.02, False))
        torch.nn.init.constant_(seen.class_head.weight, 0.1)
        with torch.no_grad():
            outputs = forward(
                seen, batch, teacher=teach(replace(teacher, shares=shares), batch, 0.5), detach_trunk=True
            )
        found.append(outputs)
    assert found[0].divergences_T.abs().max() > 0.1
    for name in ("divergences_T", "scores_T", "class_logits_KC", "values_T"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), atol=5e-5, rtol=1e-4)


def test_fewer_tokens_go_through_the_model(model_folder, make_roles) -> None:
    roles, role = policy(make_roles, model_folder("llama"))
    batch = batch_of(sequences("group"))
    seen = []
    roles.model.get_input_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
    forward(role, batch)
    forward(replace(role, shares=False), batch)
    answers = batch.tokens - 6 * 21
    assert seen == [21 + answers, batch.tokens] == [batch.computed(True), batch.computed(False)]


@pytest.mark.parametrize("of", ["llama_grouped", "gpt2", "mistral"])
def test_a_store_gets_the_keys_of_every_token(of: str, model_folder, make_roles) -> None:
    """The engine's cache after a prefill of prompts in common equals that of separate prompts."""
    _, role = policy(make_roles, model_folder(of))
    one, two = ids_of(20, seed=2), ids_of(22, seed=3)
    batch = batch_of([one, two, one, [*one, 7, 8], two[:19]])
    caches, states = [], []
    for shares in (True, False):
        cache = RowCache(8, 30)
        cache.begin_prefill(batch.lengths_N.tolist())
        with torch.no_grad():
            states.append(trunk_states(replace(role, shares=shares), batch, cache))
        caches.append(cache)
    assert batch.layout.tokens == 44
    torch.testing.assert_close(states[0], states[1], atol=2e-5, rtol=1e-5)
    for name in ("_keys", "_values"):
        for layer, want in getattr(caches[1], name).items():
            assert want.abs().max() > 0.1
            torch.testing.assert_close(getattr(caches[0], name)[layer], want, atol=2e-5, rtol=1e-5)
    assert caches[0].get_seq_length() == 22


def test_one_role_s_states_are_read_anywhere(model_folder, make_roles) -> None:
    _, role = policy(make_roles, model_folder("llama"))
    batch = batch_of(sequences("mixed"))
    with torch.no_grad():
        shared, whole = read(role.trunk, batch, shares=True), read(role.trunk, batch)
    assert len(shared.computed_UH) == batch.layout.tokens < batch.tokens == len(whole.all())
    torch.testing.assert_close(shared.all(), whole.all(), atol=2e-5, rtol=1e-5)
    some = torch.tensor([3, 40, 41, batch.tokens - 1])
    assert torch.equal(shared.at(some), shared.all()[some]) and torch.equal(whole.at(some), whole.all()[some])


# --- who shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["bloom", "jamba", "mamba", "t5"])
def test_other_ways_of_reading_have_each_sequence_whole(of: str, model_folder, make_roles) -> None:
    _, role = policy(make_roles, model_folder(of))
    assert not role.shares
    batch = TokenBatch.from_sequences(
        sequences("group"), [[t >= 21 for t in range(len(s))] for s in sequences("group")]
    )
    with torch.no_grad():
        got = forward(role, batch).logprobs_T
        alone = torch.cat([forward(role, batch.select([n])).logprobs_T for n in range(batch.sequences)])
    torch.testing.assert_close(got, alone, atol=2e-5, rtol=1e-5)
    assert batch.computed(role.shares) == batch.tokens > batch.layout.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_roles_with_virtual_tokens_have_each_sequence_whole(kind: str, model_folder, make_roles, shake) -> None:
    roles = make_roles(model_folder("llama_grouped"), KINDS[kind])
    roles.add_policy()
    shake(roles.trainable("policy").values())
    assert roles.roles["policy"].shares == (kind not in VIRTUAL)
    batch = batch_of(sequences("pairs"))
    with torch.no_grad(), roles.use("policy") as role:
        whole = forward(replace(role, shares=False), batch).logprobs_T
        torch.testing.assert_close(forward(role, batch).logprobs_T, whole, atol=2e-5, rtol=1e-5)


def test_sharing_can_be_switched_off(model_folder) -> None:
    for on in (True, False):
        roles = Roles(ModelConfig(path=str(model_folder("llama")), share_prefixes=on), LoraConfig(r=2), CPU)
        roles.add_policy()
        roles.add_reference(ReferenceConfig())
        roles.add_critic(CriticConfig(source="adapter"))
        assert [role.shares for role in roles.roles.values()] == [on] * 3


@pytest.mark.parametrize("micro", [1, 30, 60, 90, 1000])
def test_all_roles_score_the_same_in_any_micro_batches_shared_or_not(micro: int, model_folder, shake) -> None:
    streams = ("old_logprobs_T", "ref_logprobs_T", "values_T", "full_kl_T")
    batch = batch_of(sequences("tree"))
    results = []
    for on, tokens in ((False, 1000), (True, micro)):
        torch.manual_seed(2)
        roles = Roles(ModelConfig(path=str(model_folder("mistral")), share_prefixes=on), LoraConfig(r=2), CPU)
        roles.add_policy()
        roles.add_reference(ReferenceConfig())
        roles.add_critic(CriticConfig(source="adapter"))
        for seed, name in enumerate(("policy", "critic")):
            shake(roles.trainable(name).values(), seed=seed)
        results.append(Scorer(roles, tokens).score(batch, streams))
    for stream in streams:
        torch.testing.assert_close(results[1][stream], results[0][stream], atol=2e-5, rtol=1e-4)


def test_a_micro_batch_is_laid_out_once_for_all_roles(model_folder, monkeypatch) -> None:
    from accord import batch as module

    made = []
    real = module.Layout.of
    monkeypatch.setattr(module.Layout, "of", lambda codes: made.append(len(codes)) or real(codes))
    roles = Roles(ModelConfig(path=str(model_folder("llama"))), LoraConfig(r=2), CPU)
    roles.add_policy()
    roles.add_reference(ReferenceConfig())
    roles.add_critic(CriticConfig(source="adapter"))
    batch = batch_of(sequences("tree"))
    Scorer(roles, 60).score(batch, ("old_logprobs_T", "ref_logprobs_T", "values_T"))
    assert sum(made) == batch.sequences and len(made) > 1


def test_short_prefixes_are_left_alone(model_folder, make_roles) -> None:
    prompt = ids_of(packing.SHORTEST - 1, seed=2)
    assert not batch_of([[*prompt, 5], [*prompt, 6]]).layout.shares
    assert batch_of([[*prompt, 7, 5], [*prompt, 7, 6]]).layout.shares
