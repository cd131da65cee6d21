"""Accuracies by group: those of the k-NN, the worst, and groups too small to compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from multissl.contract.data import Samples
from multissl.evaluators.group_gaps import GroupGaps
from multissl.evaluators.knn import KNN
from tests.evaluators.clusters import START, Clusters, frozen
from tests.helpers.stubs import Listed


class Regions(Clusters):
    """Groups of 30, 24 and 6 samples of the split; those of the second have the labels of others."""

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        samples = []
        for i in range(len(base)):
            group = 0 if i < 30 else 1 if i < 54 else 2
            label = (base[i].label + (i % 2)) % 4 if group == 1 and split == "val" else base[i].label
            samples.append(replace(base[i], group=group, label=label))
        return Listed(samples)


def test_groups_have_the_accuracies_of_their_samples(said: list[str]) -> None:
    modality = Regions.Config().build()
    figures: Any = GroupGaps.Config(k=5).build().run(frozen(), modality, START)
    top1: Any = KNN.Config(k=(5,)).build().run(frozen(), modality, START)["top1"]
    scores = np.array(top1.scores)
    assert figures["group/0"] == pytest.approx(scores[:30].mean())
    assert figures["group/1"] == figures["worst"] == pytest.approx(scores[30:54].mean())
    assert figures["gap"] == pytest.approx(figures["group/0"] - figures["group/1"])
    assert figures["gap"] == pytest.approx(50, abs=5)
    assert (figures["groups"], figures["worst"].n) == (2, 24)
    assert said == ["group_gaps: 1 of 3 groups have fewer than least=20 samples and no part in the gap"]


def test_small_groups_are_compared_where_they_are_asked_for() -> None:
    figures = GroupGaps.Config(k=5, least=6).build().run(frozen(), Regions.Config().build(), START)
    assert figures["groups"] == 3
    assert "group/2" in figures


def test_one_group_has_no_gap(said: list[str]) -> None:
    assert GroupGaps.Config(least=30).build().run(frozen(), Regions.Config().build(), START) == {}
    assert said == [
        "group_gaps: 1 groups of the val split have least=30 samples or more, of 3; want 2, nothing to measure"
    ]
