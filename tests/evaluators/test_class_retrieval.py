"""Retrieval of the same class beside scikit-learn's average precision, and by group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multissl.contract.data import Samples
from multissl.evaluators.class_retrieval import ClassRetrieval
from multissl.inference import Pooled, featurize_split
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.every import expansion
from tests.helpers.stubs import Listed


def test_precision_is_that_of_scikit_learn_without_the_sample_itself() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    modality, encoders = Clusters.Config(noise=0.6).build(), frozen(expansion())
    figures = ClassRetrieval.Config().build().run(encoders, modality, START)
    x, labels = featurize_split(Pooled(encoders), modality, "val")
    cosine = F.normalize(x.double(), dim=1) @ F.normalize(x.double(), dim=1).T
    precisions, first = [], []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        precisions.append(metrics.average_precision_score(labels[others] == labels[i], cosine[i, others]))
        first.append(labels[others][cosine[i, others].argmax()] == labels[i])
    assert figures["map"] == pytest.approx(100 * sum(precisions) / 60)
    assert figures["r1"] == pytest.approx(100 * float(torch.stack(first).double().mean()))


class Grouped(Clusters):
    """Samples in pairs of the same place, next to one another, whatever their class."""

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        samples = [base[i] for i in range(len(base))]
        return Listed(
            [
                replace(s, group=i // 2, data=samples[i - i % 2].data + 0.001 * (i % 2))
                for i, s in enumerate(samples)
            ]
        )


def test_groups_are_found_where_classes_are_not() -> None:
    modality = Grouped.Config(noise=3.0).build()
    by: Any = {
        b: ClassRetrieval.Config(by=b).build().run(frozen(), modality, START) for b in ("class", "group")
    }
    assert by["group"]["r1"] > 90
    assert by["class"]["r1"] < 40
    assert by["group"]["map"].n == 60


def test_nothing_is_measured_where_nothing_is_shared(said: list[str]) -> None:
    assert ClassRetrieval.Config(by="group").build().run(frozen(), Clusters.Config().build(), START) == {}
    assert said == ["class_retrieval: no two samples of the val split share a group, nothing to measure"]


def test_every_rank_asked_for_is_reported() -> None:
    evaluator = ClassRetrieval.Config(k=(1, 3)).build()
    figures = evaluator.run(frozen(), Clusters.Config().build(), START)
    assert [*figures] == evaluator.metric_names() == ["map", "map_at_r", "r1", "r3"]
