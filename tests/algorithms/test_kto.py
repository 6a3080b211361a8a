"""KTO and BCO on a real tiny model: their points of reference, what they keep, what a held-out row changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from accord.algorithms import BCO, KTO, Denominators
from accord.config import BCOConfig, KTOConfig, LoraConfig, ModelConfig, ReferenceConfig
from accord.data import EncodedLabelled, TokenSequence, with_mismatched
from accord.model.roles import Roles
from accord.model.scorer import Scorer
from accord.ops.statistics import one_rank
from accord.training.evaluate import evaluate


def rows(count: int = 6) -> list[EncodedLabelled]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for n in range(count):
        ids = tuple(torch.randint(3, 250, (5 + 2 * n,), generator=generator).tolist())
        made.append(EncodedLabelled(TokenSequence(ids, (False,) * 3 + (True,) * (len(ids) - 3)), n % 3 != 0))
    return made


@pytest.fixture(params=[False, True], ids=["lora", "full"])
def roles(request, model_folder: Callable[[str], Path]) -> Roles:
    adapter = None if request.param else LoraConfig(r=4, alpha=8)
    made = Roles(ModelConfig(path=str(model_folder("llama"))), adapter, torch.device("cpu"))
    made.add_policy()
    made.add_reference(ReferenceConfig())
    return made


def by_hand(model: torch.nn.Module, sequence: TokenSequence) -> float:
    """Summed log-probability of the targets, with plain transformers."""
    ids = torch.tensor([sequence.input_ids])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    places = [t for t, target in enumerate(sequence.target_mask) if target]
    return sum(float(logprobs[t - 1, ids[0, t]]) for t in places)


def plain(roles: Roles) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Policy (inside `use("policy")`) and reference, each as a plain model."""
    return roles.model, AutoModelForCausalLM.from_pretrained(roles.location.base).eval()


def test_at_the_start_there_is_no_kl_and_no_reward(roles):
    items = with_mismatched(rows(), 64)
    batch, metrics = KTO(KTOConfig()).prepare(items, Scorer(roles, 4096))
    assert metrics == {"objective/kl": 0.0}
    assert batch.baselines_N.tolist() == [0.0] * 6
    bco_batch, _ = BCO(BCOConfig()).prepare(rows(), Scorer(roles, 4096))
    assert bco_batch.scores_N.abs().max() < 1e-5 and bco_batch.baselines_N.tolist() == [0.0] * 6


def moved_towards(roles: Roles, sequences: list[TokenSequence], shake) -> None:
    """Move the policy off its reference until it likes these sequences better, whatever the sign of the move."""
    weights = list(roles.trainable("policy").values())
    before = [weight.detach().clone() for weight in weights]
    for seed in range(20):
        for weight, start in zip(weights, before, strict=True):
            weight.data.copy_(start)
        shake(weights, 0.15, seed)
        with roles.use("policy"):
            policy, reference = plain(roles)
            gain = sum(by_hand(policy, s) - by_hand(reference, s) for s in sequences)
        if gain > 0.5:
            return
    raise AssertionError("no move made them likelier")


@pytest.mark.parametrize("micro", [8, 4096])
def test_the_kl_term_is_the_mean_over_mismatched_pairs_for_any_micro_batch(roles, shake, micro):
    items = with_mismatched(rows(), 64)
    moved_towards(roles, [item.mismatched for item in items], shake)
    batch, metrics = KTO(KTOConfig(beta=0.3)).prepare(items, Scorer(roles, micro))
    with roles.use("policy"):
        policy, reference = plain(roles)
        ratios = [by_hand(policy, i.mismatched) - by_hand(reference, i.mismatched) for i in items]
        matched = [by_hand(reference, i.sequence) for i in items]
    assert metrics["objective/kl"] == pytest.approx(sum(ratios) / 6, rel=1e-3)
    assert batch.baselines_N.tolist() == pytest.approx([0.3 * sum(ratios) / 6] * 6, rel=1e-3)
    assert batch.ref_logprobs_N.tolist() == pytest.approx(matched, rel=1e-4)
    assert batch.labels_N.tolist() == [False, True, True, False, True, True]


def test_the_kl_term_is_of_all_ranks():
    """Two ranks with two rows each: the sum over ranks makes of both halves the mean of the whole."""
    log_ratio = {3: 1.0, 4: 2.0, 5: 4.0, 6: 9.0}  # by the token that the answer is

    class Fixed:
        def score(self, batch, wanted):
            old_T = torch.tensor([log_ratio.get(int(i), 0.0) for i in batch.input_ids_T])
            return {"old_logprobs_T": old_T, "ref_logprobs_T": torch.zeros(batch.tokens)}

    def row(token):
        return EncodedLabelled(TokenSequence((1, token), (False, True)), True)

    items = with_mismatched([row(t) for t in (3, 4, 5, 6)], 9)
    whole = KTO(KTOConfig()).prepare(items, Fixed())[1]["objective/kl"]
    assert whole == 4.0
    counts: list[torch.Tensor] = []

    def remember(tensor):
        counts.append(tensor)
        return tensor

    KTO(KTOConfig(), remember).prepare(items[1::2], Fixed())
    other = iter(counts[:])
    two = KTO(KTOConfig(), lambda tensor: tensor + next(other)).prepare(items[0::2], Fixed())
    assert two[1]["objective/kl"] == 4.0


def test_a_negative_estimate_is_0():
    items, scorer = labelled([-1.0, -2.0], [True, False])
    batch, metrics = KTO(KTOConfig()).prepare(with_mismatched(items, 9), scorer)
    assert metrics["objective/kl"] == 0.0 and batch.baselines_N.tolist() == [0.0, 0.0]


def test_without_kl_no_mismatched_answers_are_needed(roles):
    algorithm = KTO(KTOConfig(kl=False))
    batch, metrics = algorithm.prepare(rows(), Scorer(roles, 4096))
    assert metrics == {} and batch.baselines_N.tolist() == [0.0] * 6
    with pytest.raises(ValueError, match="with_mismatched"):
        KTO(KTOConfig()).prepare(rows(), Scorer(roles, 4096))


def labelled(rewards: list[float], labels: list[bool]) -> object:
    """A scorer under which these are the rewards at beta 1 of rows of one token each."""

    class Fixed:
        def score(self, batch, wanted):
            old_T = torch.zeros(batch.tokens)
            old_T[1::2] = torch.tensor(rewards)
            return {"old_logprobs_T": old_T, "ref_logprobs_T": torch.zeros(batch.tokens)}

    items = [EncodedLabelled(TokenSequence((1, 2), (False, True)), label) for label in labels]
    return items, Fixed()


def take(algorithm: BCO, rewards: list[float], labels: list[bool]) -> float:
    """One step; the shift that its loss reads."""
    batch, _ = algorithm.prepare(*labelled(rewards, labels))
    (batch,) = algorithm.minibatches(batch, torch.Generator())
    (shift,) = set(batch.baselines_N.tolist())
    assert shift == pytest.approx(algorithm.shift)
    return shift


def test_the_shift_lies_half_way_between_the_classes_so_far():
    algorithm = BCO(BCOConfig(beta=1.0))
    assert take(algorithm, [4.0, 2.0, 1.0], [True, True, False]) == (3.0 + 1.0) / 2, "not the mean of all, 7/3"
    assert take(algorithm, [9.0, -2.0], [True, False]) == (15 / 3 + -1 / 2) / 2


def test_the_shift_with_decay_is_a_moving_average():
    algorithm = BCO(BCOConfig(beta=1.0, shift_decay=0.5))
    take(algorithm, [4.0, 0.0], [True, False])
    assert take(algorithm, [10.0, 0.0], [True, False]) == pytest.approx((0.5 * 4 + 10) / 1.5 / 2)


def test_one_class_alone_is_its_own_shift_and_the_other_is_kept():
    algorithm = BCO(BCOConfig(beta=1.0))
    assert take(algorithm, [3.0, 5.0], [True, True]) == 4.0
    assert take(algorithm, [-2.0, -2.0], [False, False]) == (4.0 - 2.0) / 2


def test_held_out_rows_do_not_move_the_shift(roles):
    algorithm = BCO(BCOConfig(beta=1.0))
    take(algorithm, [4.0, 0.0], [True, False])
    state = algorithm.state_dict()
    metrics = evaluate(rows(), algorithm, roles, Scorer(roles, 4096), 4096)
    assert metrics["eval/shift"] == pytest.approx(2.0) and algorithm.state_dict() == state


def test_state_round_trip():
    one, other = BCO(BCOConfig(beta=1.0)), BCO(BCOConfig(beta=1.0))
    take(one, [4.0, 2.0, 1.0], [True, True, False])
    other.load_state_dict(one.state_dict())
    assert take(one, [1.0, 7.0], [True, False]) == take(other, [1.0, 7.0], [True, False])


@pytest.mark.parametrize(
    ("labels", "missing"),
    [([True, True], {"rewards/rejected", "rewards/margins", "logps/rejected"}),
     ([False, False], {"rewards/chosen", "rewards/margins", "logps/chosen"}),
     ([True, False], set())],
)  # fmt: skip
def test_means_over_a_label_that_the_step_lacks_are_left_out(labels, missing, roles):
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
    items = [EncodedLabelled(row.sequence, label) for row, label in zip(rows(2), labels, strict=True)]
    metrics = evaluate(items, KTO(KTOConfig(kl=False)), roles, Scorer(roles, 4096), 4096)
    assert {f"eval/{name}" for name in names - missing} == {n for n in metrics if n.count("/") == 2}


def test_denominators_count_the_thumbs_up():
    batch, _ = BCO(BCOConfig()).prepare(*labelled([0.0, 0.0, 0.0], [True, False, True]))
    denominators = Denominators.of(batch, lambda counts: counts * 2)
    assert (denominators.tokens, denominators.sequences, denominators.desirable) == (6, 6, 4)
    unlabelled = batch.with_streams(labels_N=None)
    assert Denominators.of(unlabelled, one_rank).desirable == 0
