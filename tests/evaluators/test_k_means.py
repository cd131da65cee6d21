"""Clusters beside classes: every way to match them, scikit-learn's scores, collapsed features."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from multissl.evaluators.k_means import KMeans, cluster_scores, find_clusters, matched
from tests.evaluators.clusters import START, Clusters, Constant, frozen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_clusters_are_matched_so_that_most_samples_are_right(seed: int, clusters: int) -> None:
    draw = np.random.default_rng(seed)
    found, labels = draw.integers(0, clusters, 30), draw.integers(0, 3, 30)
    names = [*range(3), *[-1] * clusters]
    best = max(sum(np.array(p)[found] == labels) for p in permutations(names, clusters))
    assert matched(found, labels).sum() == best


def test_names_of_clusters_and_classes_do_not_matter() -> None:
    labels = np.array([7, 7, 3, 3, 9])
    scores = cluster_scores(np.array([[5, 5, 0, 0, 2], [1, 1, 1, 1, 1]]), labels)
    assert scores["accuracy"] == pytest.approx((100 + 40) / 2)
    assert scores["nmi"] == pytest.approx(50)
    assert scores["ari"] == pytest.approx(50)


def test_scores_are_the_textbooks() -> None:
    """NMI by entropies and ARI by pairs, written out."""
    draw = np.random.default_rng(0)
    found, labels = draw.integers(0, 4, 40), draw.integers(0, 3, 40)
    table = np.array([[np.mean((found == i) & (labels == j)) for j in range(3)] for i in range(4)])
    rows, columns = table.sum(1), table.sum(0)
    mutual = sum(p * np.log(p / (rows[i] * columns[j])) for (i, j), p in np.ndenumerate(table) if p)
    entropy = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (rows, columns)]
    pairs = [(found[i] == found[j], labels[i] == labels[j]) for i in range(40) for j in range(i)]
    both, one, other = (np.mean(v) for v in ([a and b for a, b in pairs], *zip(*pairs, strict=True)))
    expected = (both - one * other) / ((one + other) / 2 - one * other)
    scores = cluster_scores(found[None], labels)
    assert scores["nmi"] == pytest.approx(100 * mutual / np.mean(entropy))
    assert scores["ari"] == pytest.approx(100 * expected)


def test_classes_that_lie_apart_are_found_and_collapsed_ones_are_not() -> None:
    modality = Clusters.Config().build()
    apart = KMeans.Config().build().run(frozen(Shift()), modality, START)
    assert apart["accuracy"] > 95
    assert apart["nmi"] > 90
    one = KMeans.Config().build().run(frozen(Constant()), modality, START)
    assert one["accuracy"] < 45
    assert find_clusters(torch.ones(6, 2), 4, 2, 1).shape == (2, 6)


class Shift(torch.nn.Module):
    """Points seen from the middle of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 5
