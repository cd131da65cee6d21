"""Scores without labels: views of a sample for LiDAR, and the pieces of CLID and alpha-ReQ."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")

from multissl.contract.data import Batch, Raw, Views
from multissl.contract.plans import Plans
from multissl.evaluators.label_free import LabelFree
from multissl.evaluators.spectra import fit_power_law, intrinsic_dimension, lidar, variance_shares
from multissl.inference import Pooled, featurize_split
from multissl.random import RowRandom
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.every import expansion


class Shaken(Clusters):
    """Global views are points moved at random along the first axis."""

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        batch = super().views(raw, plans, rng)
        if count := plans["points"].num_global:
            x = raw["x"].repeat(count, 1)  # view-major
            noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
            x = x + noise[:, None] * torch.tensor([1.0, 0.0])
            batch = Batch([Views(x=x, stream="points", role="global")])
        return batch


def test_lidar_is_that_of_the_views_of_each_sample() -> None:
    modality, evaluator = Shaken.Config(noise=1.0).build(), LabelFree.Config(views=5, delta=1e-3).build()
    figures = evaluator.run(frozen(), modality, START)
    data = modality.dataset("val")
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0)).view(5, 60).T
    points = torch.stack([data[i].data for i in range(60)])
    expected = points[:, None] + noise[..., None] * torch.tensor([1.0, 0.0])
    assert figures["lidar"] == pytest.approx(lidar(expected, 1e-3), rel=1e-4)
    assert "lidar" not in LabelFree.Config(views=0).build().run(frozen(), modality, START)


def test_other_figures_are_those_of_the_clean_views() -> None:
    modality, encoders = Clusters.Config(noise=0.5).build(), frozen(expansion())
    figures = LabelFree.Config(first=2, views=0).build().run(encoders, modality, START)
    x, _ = featurize_split(Pooled(encoders), modality, "val")
    assert figures["alpha"] == fit_power_law(variance_shares(x), 2, 8).alpha
    assert figures["dimension"] == intrinsic_dimension(x) == pytest.approx(2, abs=0.5)


def test_clusters_that_lie_apart_are_learned_at_once() -> None:
    tight = (
        LabelFree.Config(clusters=4, views=0)
        .build()
        .run(frozen(Shifted()), Clusters.Config(noise=0.02).build(), START)
    )
    loose = (
        LabelFree.Config(clusters=30, views=0)
        .build()
        .run(frozen(Shifted()), Clusters.Config(noise=2.0).build(), START)
    )
    assert tight["learnability"] == pytest.approx(
        100 * 56 / 59, abs=2
    )  # the first of each cluster is a surprise
    assert loose["learnability"] < 50


class Shifted(torch.nn.Module):
    """Points seen from the middle of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 5


def test_samples_too_few_for_two_neighbors_are_said(said: list[str]) -> None:
    modality = Clusters.Config(broken=tuple(range(3, 60))).build()
    assert LabelFree.Config().build().run(frozen(), modality, START) == {}
    assert said == ["label_free: 3 samples of the val split can be read, want 4 or more, nothing to measure"]
