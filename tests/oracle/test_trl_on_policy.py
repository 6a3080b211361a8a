"""Online DPO and on-policy distillation against TRL, where only the sampling, the models and the rewards are stand-ins."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from accord.algorithms.base import Denominators
from accord.algorithms.online_dpo import OnlineDPO, best_and_worst
from accord.config import OnlineDPOConfig
from accord.losses import distill
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.ops.divergence import generalised_jsd
from accord.types import Rollout
from oracle.padded import Padded, trainer

pytest.importorskip("trl")

from trl.experimental.gkd import GKDTrainer
from trl.experimental.online_dpo import OnlineDPOTrainer

SEEDS = range(6)
GROUPS = 5
END = 3
"""Token that ends a response; about half of them have it."""


class Drawn:
    """Two responses to each prompt, first all first ones, then all second ones, with scores."""

    def __init__(self, seed: int) -> None:
        self.ragged = Padded(seed, 2 * GROUPS, vocabulary=11)
        self.logprobs_T = (-self.ragged.stream().abs() - 0.05 * self.ragged.batch.target_mask_T).float()
        self.reference_T = self.logprobs_T + self.ragged.stream(0.4).float()
        self.scores = torch.randn(2 * GROUPS, generator=self.ragged.generator)

    def rollouts(self) -> list[Rollout]:
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                response_ids=tuple(response),
                sampler_logprobs=(-1.0,) * len(response),
                finish_reason="stop" if END in response else "length",
                prompt_text="",
                response_text="",
                group=n % GROUPS,
                score=float(self.scores[n]),
            )
            for n, (prompt, response) in enumerate(zip(self.ragged.prompts, self.ragged.responses, strict=True))
        ]


def ours(drawn: Drawn, **options: Any) -> tuple[Tensor, Tensor]:
    algorithm = OnlineDPO(OnlineDPOConfig(minibatches=1, **options))
    streams = {"old_logprobs_T": drawn.logprobs_T, "ref_logprobs_T": drawn.reference_T}
    rollouts = drawn.rollouts()
    batch, _ = algorithm.prepare(rollouts, cast(Scorer, SimpleNamespace(score=lambda *_: streams)))
    pairs, _ = best_and_worst(rollouts, options.get("missing_eos_penalty") or 0.0)
    new = drawn.logprobs_T.clone().requires_grad_()
    of_each = new.split([len(r.prompt_ids) + len(r.response_ids) for r in rollouts])
    learnt_T = torch.cat([of_each[n] for pair in pairs for n in pair])
    denominators = Denominators(torch.tensor(float(batch.targets)), torch.tensor(float(batch.sequences)))
    loss, _ = algorithm.loss("policy", Outputs(logprobs_T=learnt_T), batch, denominators)
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad[drawn.ragged.batch.target_mask_T]


def theirs(drawn: Drawn, beta: float, loss_type: str, missing_eos_penalty: float | None) -> tuple[Tensor, Tensor]:
    ragged = drawn.ragged
    padded = ragged.pad(drawn.logprobs_T, -0.7).requires_grad_()
    reference = ragged.pad(drawn.reference_T, -0.3)
    inputs = ragged.inputs()
    sampled = [inputs[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
    policy, frozen = SimpleNamespace(train=lambda: None), SimpleNamespace()
    stand_in = trainer(
        args={
            "use_vllm": False,
            "missing_eos_penalty": missing_eos_penalty,
            "loss_type": loss_type,
            "torch_empty_cache_steps": None,
            "optim": "adamw_torch",
            "n_gpu": 1,
            "gradient_accumulation_steps": 1,
        },
        beta=beta,
        model=policy,
        ref_model=frozen,
        eos_token_ids=[END],
        stats=defaultdict(list),
        state=SimpleNamespace(global_step=0),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        reward_funcs=[None],
        _generate=lambda *_: (*sampled, None),
        _forward=lambda model, *_: padded if model is policy else reference,
        _calculate_rewards_from_functions=lambda **_: drawn.scores.clone(),
    )
    stand_in.accelerator.backward = lambda loss, **_: loss.backward()
    loss = OnlineDPOTrainer.training_step(stand_in, policy, {"prompt": [""] * GROUPS})
    assert padded.grad is not None
    return loss, padded.grad[ragged.mask]


# TRL's online IPO, unlike its offline one, is of whole answers; so ours is asked without `length_normalize`.
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("penalty", [None, 1.0])
def test_online_dpo(loss, penalty):
    for seed in SEEDS:
        drawn = Drawn(seed)
        found, gradient = ours(drawn, loss=loss, beta=0.3, missing_eos_penalty=penalty)
        expected, expected_gradient = theirs(drawn, 0.3, loss, penalty)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_the_penalty_changes_who_is_better():
    changed = [best_and_worst(Drawn(s).rollouts(), 1.0)[0] != best_and_worst(Drawn(s).rollouts())[0] for s in SEEDS]
    assert any(changed)


def test_of_equal_scores_trl_learns_the_first_and_we_nothing():
    """On purpose: a tie says nothing. Theirs is the mean over all groups, with the tie's first response as the chosen one."""
    drawn = Drawn(0)
    drawn.scores[0] = drawn.scores[GROUPS]
    found, _ = ours(drawn, beta=0.3)
    expected, gradient = theirs(drawn, 0.3, "sigmoid", None)
    ratios_N = torch.zeros(2 * GROUPS).index_add(0, drawn.ragged.batch.sequence_T, drawn.logprobs_T - drawn.reference_T)
    tie = -torch.nn.functional.logsigmoid(0.3 * (ratios_N[0] - ratios_N[GROUPS]))
    assert expected.item() == pytest.approx((found.item() * (GROUPS - 1) + tie.item()) / GROUPS, rel=1e-5)
    assert bool((gradient[: len(drawn.ragged.responses[0])] != 0).all())
    _, ours_gradient = ours(drawn, beta=0.3)
    assert bool((ours_gradient[: len(drawn.ragged.responses[0])] == 0).all())


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_generalised_jsd(beta, temperature):
    """Value, and gradient of hidden states and output layer, which ours has by a formula of its own and theirs by autograd."""
    for seed in SEEDS:
        ragged, vocabulary = Padded(seed), 23
        draw = lambda *shape: torch.randn(*shape, generator=ragged.generator)  # noqa: B023, E731
        hidden, weight, bias = draw(*ragged.mask.shape, 6), draw(vocabulary, 6), draw(vocabulary)
        teacher = draw(*ragged.mask.shape, 4), draw(vocabulary, 4), draw(vocabulary)
        mine = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        divergences_K = generalised_jsd(
            mine[0][ragged.mask],
            mine[1],
            mine[2],
            teacher[0][ragged.mask],
            teacher[1],
            teacher[2],
            beta=beta,
            temperature=temperature,
        )
        mask_T = ragged.batch.target_mask_T
        divergences_T = torch.zeros(ragged.batch.tokens).masked_scatter(mask_T, divergences_K)
        loss, _ = distill(divergences_T=divergences_T, mask_T=mask_T, tokens=ragged.tokens)
        loss.backward()
        other = [x.double().requires_grad_() for x in (hidden, weight, bias)]
        expected = GKDTrainer.generalized_jsd_loss(
            student_logits=other[0] @ other[1].T + other[2],
            teacher_logits=(teacher[0] @ teacher[1].T + teacher[2]).double(),
            labels=torch.where(ragged.mask, 1, -100),
            beta=beta,
            temperature=temperature,
            num_items_in_batch=ragged.tokens,
        )
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for of_mine, of_other in zip(mine, other, strict=True):
            assert of_mine.grad is not None and of_other.grad is not None
            assert torch.allclose(of_mine.grad.double(), of_other.grad, rtol=1e-4, atol=1e-6)
