"""Invariant 1: packed results equal those of plain transformers, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from accord.batch import TokenBatch
from accord.model.forward import forward
from accord.model.heads import ScalarHead

TEMPERATURE = 0.7


def expected_logprobs(model, hidden: list[torch.Tensor], ids: list[list[int]], mask_T: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the vocabulary, written out; 0 off the targets."""
    parts = []
    for states, sequence in zip(hidden, ids, strict=True):
        logprobs = (model.get_output_embeddings()(states[:-1]) / TEMPERATURE).log_softmax(-1)
        own = logprobs.gather(-1, torch.tensor(sequence[1:], dtype=torch.long)[:, None]).squeeze(-1)
        parts.append(torch.cat([torch.zeros(1), own]))
    return torch.cat(parts) * mask_T


def policy_of(roles, value_head: bool = False):
    roles.add_policy()
    generator = torch.Generator().manual_seed(5)
    head = ScalarHead(32, torch.randn(1, 32, generator=generator)) if value_head else None
    return replace(roles.roles["policy"], value_head=head, score_head=head)


def test_packed_logprobs_entropies_values_and_scores_equal_plain_transformers(
    family, model_folder, make_roles, plain, plain_hidden, ids, batch
) -> None:
    role = policy_of(make_roles(model_folder(family)), value_head=True)
    model = plain(model_folder(family))
    with torch.no_grad():
        outputs = forward(role, batch, temperature=TEMPERATURE, entropy=True)
        hidden = plain_hidden(model, ids)
        wanted = expected_logprobs(model, hidden, ids, batch.target_mask_T)
        assert wanted.std() > 1, "the model is sharp enough to tell tokens apart"
        torch.testing.assert_close(outputs.logprobs_T, wanted, atol=3e-5, rtol=1e-5)

        log_p = [(model.get_output_embeddings()(states) / TEMPERATURE).log_softmax(-1) for states in hidden]
        entropies = torch.cat([torch.cat([torch.zeros(1), -(p.exp() * p).sum(-1)[:-1]]) for p in log_p])
        torch.testing.assert_close(outputs.entropies_T, entropies * batch.target_mask_T, atol=3e-5, rtol=1e-5)

        weight = role.value_head.weight[0]
        values = torch.cat([torch.cat([torch.zeros(1), states[:-1] @ weight]) for states in hidden])
        torch.testing.assert_close(outputs.values_T, values * batch.target_mask_T, atol=5e-5, rtol=1e-5)
        scores = torch.stack([states[-1] @ weight for states in hidden])
        torch.testing.assert_close(outputs.scores_N, scores, atol=5e-5, rtol=1e-5)


def test_packed_equals_one_by_one_through_the_same_model(family, model_folder, make_roles, ids, batch) -> None:
    role = policy_of(make_roles(model_folder(family)))
    with torch.no_grad():
        packed = forward(role, batch).logprobs_T
        alone = [forward(role, batch.select([n])).logprobs_T for n in range(batch.sequences)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_packed_gradients_equal_plain_transformers(
    family, model_folder, make_roles, plain, plain_hidden, ids, batch
) -> None:
    weights_T = torch.randn(batch.tokens, generator=torch.Generator().manual_seed(9))
    roles = make_roles(model_folder(family))
    (forward(policy_of(roles), batch, temperature=TEMPERATURE).logprobs_T * weights_T).sum().backward()
    model = plain(model_folder(family))
    hidden = plain_hidden(model, ids)
    (expected_logprobs(model, hidden, ids, batch.target_mask_T) * weights_T).sum().backward()
    ours = dict(roles.model.named_parameters())
    for name, parameter in model.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            ours[name].grad, parameter.grad, atol=2e-5 * scale, rtol=1e-4, msg=lambda m, n=name: n + m
        )


def test_changing_one_sequence_changes_nothing_in_the_others_exactly(
    family, model_folder, make_roles, ids, batch
) -> None:
    role = policy_of(make_roles(model_folder(family)), value_head=True)
    for changed in (0, 2, 5):
        other_ids = [[(t + 17) % 250 for t in s] if n == changed else s for n, s in enumerate(ids)]
        masks = [part.target_mask_T.tolist() for part in map(batch.select, ([n] for n in range(batch.sequences)))]
        other = TokenBatch.from_sequences(other_ids, masks)
        with torch.no_grad():
            before, after = (forward(role, b, entropy=True) for b in (batch, other))
        elsewhere = batch.sequence_T != changed
        for stream in ("logprobs_T", "entropies_T", "values_T"):
            was, now = getattr(before, stream), getattr(after, stream)
            assert torch.equal(was[elsewhere], now[elsewhere]), f"{stream} leaks from sequence {changed}"
            assert not torch.equal(was, now)
        rest = torch.arange(batch.sequences) != changed
        assert torch.equal(before.scores_N[rest], after.scores_N[rest])
        assert before.scores_N[changed] != after.scores_N[changed]


def test_detached_trunk_takes_no_gradient(model_folder, make_roles, batch) -> None:
    roles = make_roles(model_folder("llama"))
    role = policy_of(roles, value_head=True)
    outputs = forward(role, batch, detach_trunk=True)
    outputs.values_T.sum().backward()
    assert role.value_head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in roles.model.parameters())


def test_no_targets_give_streams_of_zeros(model_folder, make_roles, ids) -> None:
    batch = TokenBatch.from_sequences(ids, [[False] * len(sequence) for sequence in ids])
    outputs = forward(policy_of(make_roles(model_folder("llama"))), batch)
    assert torch.equal(outputs.logprobs_T, torch.zeros(batch.tokens))
