"""Advantages of groups, and weights of tokens drawn elsewhere, against TRL: only models, sampling and rewards are stand-ins."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from accord.algorithms import GRPO, Denominators
from accord.config import GRPOConfig
from accord.errors import RewardError
from accord.model.forward import Outputs
from accord.model.scorer import Scorer
from accord.rewards.mix import MixedReward
from accord.types import Rollout
from oracle.padded import Padded, trainer

pytest.importorskip("trl")

from trl import GRPOTrainer

SEEDS = range(6)
GROUPS, SAMPLES = 5, 4
CAP = 1.5
WEIGHTS = {"quiet": 1.0, "loud": 0.5, "against": -2.0, "watched": 0.0}
"""Of the reward sources by label."""


class Drawn:
    """Groups of responses, scored by several sources of very different size, some of which do not apply to all."""

    def __init__(self, seed: int) -> None:
        self.ragged = Padded(seed, GROUPS * SAMPLES)
        self.old_T = (-self.ragged.stream().abs() - 0.05 * self.ragged.batch.target_mask_T).float()
        self.sampler_T = self.old_T + self.ragged.stream(0.4).float()
        self.new_T = self.old_T + self.ragged.stream(0.2).float()
        self.reference_T = self.old_T + self.ragged.stream(0.3).float()
        draw = lambda: torch.randn(GROUPS * SAMPLES, generator=self.ragged.generator)  # noqa: E731
        self.scores = {"quiet": draw(), "loud": 1000 * draw() + 50, "against": 3 * draw(), "watched": draw()}
        for label in ("loud", "against"):
            away = torch.rand(GROUPS * SAMPLES, generator=self.ragged.generator) < 0.4
            self.scores[label][away] = math.nan
        # One alone of its group says nothing.
        self.scores["loud"][SAMPLES : 2 * SAMPLES] = torch.tensor([math.nan] * (SAMPLES - 1) + [700.0])

    def rollouts(self) -> list[Rollout]:
        ragged, rollouts = self.ragged, []
        of_each = self.sampler_T.split([len(p) + len(r) for p, r in zip(ragged.prompts, ragged.responses, strict=True)])
        for n, (prompt, response) in enumerate(zip(ragged.prompts, ragged.responses, strict=True)):
            values = {label: float(column[n]) for label, column in self.scores.items()}
            scores = {label: None if math.isnan(value) else value for label, value in values.items()}
            rollouts.append(
                Rollout(
                    prompt_ids=tuple(prompt),
                    response_ids=tuple(response),
                    sampler_logprobs=tuple(of_each[n][len(prompt) :].tolist()),
                    finish_reason="stop",
                    prompt_text="",
                    response_text="",
                    group=n // SAMPLES,
                    score=sum(WEIGHTS[label] * value for label, value in scores.items() if value is not None),
                    scores=scores,
                )
            )
        return rollouts


def ours(drawn: Drawn, **options: Any) -> tuple[GRPO, Any]:
    """The algorithm, and the batch that it makes of the rollouts."""
    algorithm = GRPO(GRPOConfig(**options), longest=12, weights=WEIGHTS)
    streams = {"old_logprobs_T": drawn.old_T, "ref_logprobs_T": drawn.reference_T}
    batch, _ = algorithm.prepare(drawn.rollouts(), cast(Scorer, SimpleNamespace(score=lambda *_: streams)))
    return algorithm, batch


def theirs(drawn: Drawn, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The stand-in for a trainer, and what it makes of the rollouts."""
    ragged = drawn.ragged
    sampled = [row[mask].tolist() for row, mask in zip(ragged.pad(drawn.sampler_T), ragged.mask, strict=True)]
    policy = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    frozen = SimpleNamespace()
    of_model = {id(policy): ragged.pad(drawn.old_T, -0.9), id(frozen): ragged.pad(drawn.reference_T, -0.8)}
    stand_in = trainer(
        args={
            "per_device_train_batch_size": GROUPS * SAMPLES,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing_kwargs": None,
        },
        model=policy,
        ref_model=frozen,
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm=True,
        vllm_importance_sampling_correction=False,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=None,
        _generate=lambda _: (
            ragged.prompts,
            ragged.responses,
            None,
            [""] * len(ragged.prompts),
            sampled,
            {},
            None,
            None,
        ),
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (of_model[id(model)], None, None),
        _calculate_rewards=lambda *_: torch.stack([drawn.scores[label] for label in WEIGHTS], dim=1),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_iterations=2,
        num_generations=SAMPLES,
        reward_funcs=list(WEIGHTS),
        reward_func_names=list(WEIGHTS),
        reward_weights=torch.tensor(list(WEIGHTS.values())),
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
        _logs=defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
    )
    stand_in.accelerator.process_index = 0
    vars(stand_in).update(settings)
    return stand_in, GRPOTrainer._generate_and_score_completions(stand_in, [{"prompt": ""}] * GROUPS * SAMPLES)


def at_targets(drawn: Drawn, values_N: Tensor) -> Tensor:
    """A value of each response at each of its tokens."""
    return values_N[:, None].expand(drawn.ragged.mask.shape)[drawn.ragged.mask]


def test_several_rewards_each_normalised():
    """GDPO: `normalize_each` is TRL's `normalize_then_sum`; sources that do not apply are left out of mean and deviation."""
    for seed in SEEDS:
        drawn = Drawn(seed)
        _, batch = ours(drawn, normalize_each=True)
        _, expected = theirs(drawn, multi_objective_aggregation="normalize_then_sum")
        found_K = batch.advantages_T[batch.target_mask_T]
        assert torch.allclose(found_K, at_targets(drawn, expected["advantages"]), rtol=1e-4, atol=1e-5)
        assert found_K.abs().max() > 1


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_their_sum_normalised(scale):
    for seed in SEEDS:
        drawn = Drawn(seed)
        _, batch = ours(drawn, scale=scale)
        _, expected = theirs(drawn, scale_rewards=scale)
        found_K = batch.advantages_T[batch.target_mask_T]
        assert torch.allclose(found_K, at_targets(drawn, expected["advantages"]), rtol=1e-4, atol=1e-4)


def test_of_a_response_that_nothing_judges_trl_learns_nothing_and_we_stop():
    """On purpose: a response without any reward is a fault of data or rewards, and is named where it is scored."""
    drawn = Drawn(0)
    for column in drawn.scores.values():
        column[3] = math.nan
    _, expected = theirs(drawn, multi_objective_aggregation="normalize_then_sum")
    assert expected["advantages"][3] == 0 and expected["advantages"].count_nonzero() == GROUPS * SAMPLES - 1
    nobody = SimpleNamespace(label="quiet", score=lambda rollouts: [r.scores["quiet"] for r in rollouts])
    with pytest.raises(RewardError, match="no reward applies to sample 3"):
        MixedReward([(cast(Any, nobody), 1.0)]).score(drawn.rollouts())


MODES = {
    ("truncate", "token"): {
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": CAP,
    },
    ("truncate", "sequence"): {
        "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_max": CAP,
    },
    **{
        ("mask", level): {
            "vllm_importance_sampling_mode": f"{level}_mask",
            "vllm_importance_sampling_clip_min": 1 / CAP,
            "vllm_importance_sampling_clip_max": CAP,
        }
        for level in ("token", "sequence")
    },
}
"""Our correction and its level -> TRL's settings."""


@pytest.mark.parametrize(("how", "level"), MODES)
def test_weights_of_tokens_that_another_distribution_drew(how, level):
    for seed in SEEDS:
        drawn = Drawn(seed)
        _, batch = ours(drawn, correction=how, correction_cap=CAP, correction_level=level)
        _, expected = theirs(drawn, vllm_importance_sampling_correction=True, **MODES[how, level])
        ratio = expected["importance_sampling_ratio"].expand(drawn.ragged.mask.shape)[drawn.ragged.mask]
        found_K = batch.weights_T[batch.target_mask_T]
        assert torch.allclose(found_K, ratio, rtol=1e-5, atol=1e-7)
        bounded = (found_K == CAP) if how == "truncate" else (found_K == 0)
        assert 0 < bounded.sum() < len(found_K), "both branches are reached"
        assert bool((batch.weights_T[~batch.target_mask_T] == 0).all())


@pytest.mark.parametrize(("how", "level"), MODES)
@pytest.mark.parametrize("aggregate", ["sequence", "token"])
def test_the_loss_with_such_weights(how, level, aggregate):
    """From rollouts to the gradient at each token: the weights count in the policy loss, and neither in the KL term nor in what
    the loss is divided by."""
    for seed in SEEDS:
        drawn = Drawn(seed)
        ragged = drawn.ragged
        options = {"correction": how, "correction_cap": CAP, "correction_level": level}
        algorithm, batch = ours(drawn, aggregate=aggregate, kl={"coef": 0.3}, **options)
        mine = drawn.new_T.clone().requires_grad_()
        outputs = Outputs(logprobs_T=mine, entropies_T=torch.zeros(batch.tokens))
        denominators = Denominators(ragged.tokens.float(), ragged.sequences.float())
        loss, _ = algorithm.loss("policy", outputs, batch, denominators)
        loss.backward()
        settings = {"vllm_importance_sampling_correction": True, "beta": 0.3, **MODES[how, level]}
        stand_in, inputs = theirs(drawn, loss_type="grpo" if aggregate == "sequence" else "bnpo", **settings)
        other = ragged.pad(drawn.new_T, -0.7).requires_grad_()
        stand_in._get_per_token_logps_and_entropies = lambda *_, **__: (other, torch.zeros_like(other), None)  # noqa: B023
        expected = GRPOTrainer._compute_loss(stand_in, None, inputs)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad[batch.target_mask_T], other.grad[ragged.mask], rtol=1e-4, atol=1e-6)


def test_masks_of_trl_have_no_lower_bound_unless_it_is_given_and_ours_always_has():
    """On purpose: IcePop masks from both sides (arXiv:2510.18855); a token that the trainer finds much less likely
    than the sampler did is as foreign to it as one that it finds much likelier."""
    drawn = Drawn(1)
    _, batch = ours(drawn, correction="mask", correction_cap=CAP)
    settings = MODES["mask", "token"] | {"vllm_importance_sampling_clip_min": None}
    _, expected = theirs(drawn, vllm_importance_sampling_correction=True, **settings)
    found_K, ratio_K = batch.weights_T[batch.target_mask_T], expected["importance_sampling_ratio"][drawn.ragged.mask]
    low_K = (ratio_K > 0) & (ratio_K < 1 / CAP)
    assert low_K.any() and bool((found_K[low_K] == 0).all())
    assert torch.allclose(found_K[~low_K], ratio_K[~low_K], rtol=1e-5)
