from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from accord.algorithms import Classify, Denominators
from accord.config import ClassifyConfig
from accord.data import EncodedClasses
from accord.model.forward import Outputs
from accord.ops.statistics import one_rank

ITEMS = [
    EncodedClasses((5, 6, 7), (0, None, 2)),
    EncodedClasses((8,), (1,)),
    EncodedClasses((9, 10, 11, 12), (None, None, None, 2)),
]


def test_prepare_marks_where_a_class_is_read_first_tokens_too():
    batch, metrics = Classify(ClassifyConfig()).prepare(ITEMS, scorer=None)
    assert batch.input_ids_T.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert batch.target_mask_T.tolist() == [True, False, True, True, False, False, False, True]
    assert batch.classes_T.tolist() == [0, 0, 2, 1, 0, 0, 0, 2] and batch.classes_T.dtype == torch.long
    assert metrics == {} and float(Denominators.of(batch, one_rank).tokens) == 4


@pytest.mark.parametrize("limit", [1, 4, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_mean_over_all_places_for_any_micro_batches(limit, smoothing):
    algorithm = Classify(ClassifyConfig(label_smoothing=smoothing))
    batch, _ = algorithm.prepare(ITEMS, scorer=None)
    logits_TC = torch.randn(8, 3)
    denominators = Denominators.of(batch, one_rank)
    total = 0.0
    for members in batch.bins(limit):
        part = batch.select(members)
        own = logits_TC[batch.token_index(members)][part.target_mask_T]
        loss, _ = algorithm.loss("classifier", Outputs(class_logits_KC=own), part, denominators)
        total += float(loss)
    wanted = functional.cross_entropy(logits_TC[[0, 2, 3, 7]], torch.tensor([0, 2, 1, 2]), label_smoothing=smoothing)
    assert total == pytest.approx(float(wanted), rel=1e-5)
