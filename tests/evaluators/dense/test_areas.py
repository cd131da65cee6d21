"""Areas of masks: summed over pictures, ignored pixels, classes that are nowhere; beside scikit-learn."""

from __future__ import annotations

import pytest
import torch

from multissl.evaluators.dense.areas import IGNORED, Areas, without_zero


def test_areas_of_pictures_add_up_before_they_are_divided() -> None:
    predicted = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]])
    counted = Areas.of(predicted, labels, 3)
    torch.testing.assert_close(
        counted.iou(), torch.tensor([3 / 5, 3 / 5, torch.nan], dtype=torch.float64), equal_nan=True
    )
    apart = [Areas.of(p, t, 3).mean_iou() for p, t in zip(predicted, labels, strict=True)]
    assert float(sum(apart)) / 2 != pytest.approx(float(counted.mean_iou()))
    assert float(counted.accuracy()) == 6 / 8


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    predicted, labels = torch.randint(0, 4, (2, 5, 6, 7), generator=draw)
    labels[0, 0] = IGNORED
    known = labels != IGNORED
    counted = Areas.of(predicted, labels, 4)
    expected = metrics.jaccard_score(labels[known], predicted[known], average=None)
    torch.testing.assert_close(counted.iou(), torch.tensor(expected, dtype=torch.float64))
    assert float(counted.accuracy()) == pytest.approx(metrics.accuracy_score(labels[known], predicted[known]))


def test_label_zero_is_ignored_where_it_is_no_class() -> None:
    assert without_zero(torch.tensor([0, 1, 5, IGNORED])).tolist() == [IGNORED, 0, 4, IGNORED]
