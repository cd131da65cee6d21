"""Scores without labels beside loops, numpy's fit and data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multissl.evaluators.spectra import (
    discriminant_values,
    fit_power_law,
    intrinsic_dimension,
    learnability,
    lidar,
    variance_shares,
)


def test_the_power_law_is_the_weighted_fit_of_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.arange(1, 41, dtype=torch.float64) ** -1.3 * torch.rand(40, generator=draw).add(0.5)
    line = fit_power_law(values, 4, 20)
    place = np.arange(1, 41)
    slope, offset = np.polyfit(np.log(place[3:20]), np.log(values.numpy())[3:20], 1, w=place[3:20] ** -0.5)
    assert line.alpha == pytest.approx(-slope)
    y = np.log(values.numpy())[4:30]
    missed = y - offset - slope * np.log(place[4:30])
    assert line.r2 == pytest.approx(1 - (missed**2).sum() / ((y - y.mean()) ** 2).sum())


def test_shares_of_variance_do_not_know_the_mean() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    shares = variance_shares(x)
    torch.testing.assert_close(shares, variance_shares(x + 100), rtol=1e-3, atol=1e-5)
    expected = torch.linalg.eigvalsh(x.double().T.cov()).flip(0)
    torch.testing.assert_close(shares, expected / expected.sum())


def test_lidar_counts_directions_that_tell_samples_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    samples = torch.randn(400, 1, 3, generator=draw) @ directions[:3]
    noise = 0.2 * torch.randn(400, 10, 8, generator=draw)
    assert lidar(samples + noise) == pytest.approx(3, abs=0.4)
    everywhere = (
        5 * torch.randn(400, 10, 1, generator=draw) * directions[7]
    )  # between views alone: counts nothing
    assert lidar(samples + noise + everywhere) == pytest.approx(3, abs=0.4)
    assert math.isnan(lidar(torch.full((4, 2, 3), torch.nan)))


def test_lidar_reads_the_eigenvalues_of_between_over_within() -> None:
    x = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = x.mean(1)
    between = means.T.cov()
    within = sum((v - v.mean(0)).T @ (v - v.mean(0)) for v in x) / (9 * 3) + 0.01 * torch.eye(3)
    expected = torch.linalg.eigvals(torch.linalg.solve(within, between)).real.sort().values
    torch.testing.assert_close(discriminant_values(x, 0.01), expected)


@pytest.mark.parametrize("cosine", [False, True])
def test_learnability_looks_only_at_what_came_before(cosine: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, clusters = torch.randn(20, 3, generator=draw).double(), torch.randint(0, 3, (20,), generator=draw)
    hits = []
    for i in range(1, 20):

        def distance(j: int, i: int = i) -> float:
            return (
                float(-torch.cosine_similarity(x[i], x[j], dim=0)) if cosine else float((x[i] - x[j]).norm())
            )

        hits.append(bool(clusters[min(range(i), key=distance)] == clusters[i]))
    assert learnability(x, clusters, cosine).tolist() == hits


@pytest.mark.parametrize("discard", [0.0, 0.1])
def test_the_intrinsic_dimension_of_a_plane_in_space_is_two(discard: float) -> None:
    draw = torch.Generator().manual_seed(0)
    plane = torch.rand(1500, 2, generator=draw) @ torch.randn(2, 6, generator=draw)
    assert intrinsic_dimension(plane, discard) == pytest.approx(2, abs=0.2)
    repeated = torch.cat([plane, plane[:10]])
    assert intrinsic_dimension(repeated, discard) == pytest.approx(2, abs=0.2)
