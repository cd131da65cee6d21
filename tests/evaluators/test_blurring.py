"""Blurs beside scipy and loops; lengths that follow the size of the picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multissl.evaluators import blurring
from multissl.evaluators.blurring import disk, scattered, smoothed, smoothed_by_mirrors, trailed, zoomed

DRAW = torch.Generator().manual_seed(0)
PICTURE = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 10, generator=DRAW), (32, 40), mode="bilinear")[
    0
]


def test_blur_and_zoom_are_those_of_scipy() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    for sigma in (0.4, 1.3, 2.0):
        channels = PICTURE.double().numpy()
        theirs = np.stack([scipy.gaussian_filter(c, sigma, mode="nearest") for c in channels])
        np.testing.assert_allclose(smoothed(PICTURE, sigma).numpy(), theirs, atol=1e-5)
    for zoom in (1.0, 1.1, 1.25):
        h, w = math.ceil(32 / zoom), math.ceil(40 / zoom)
        top, left = (32 - h) // 2, (40 - w) // 2
        for channel, ours in zip(PICTURE, zoomed(PICTURE, zoom), strict=True):
            large = scipy.zoom(channel[top : top + h, left : left + w].numpy(), zoom, order=1)
            down, right = (large.shape[0] - 32) // 2, (large.shape[1] - 40) // 2
            theirs = large[down : down + 32, right : right + 40]
            if theirs.shape == (
                32,
                40,
            ):  # scipy's rounding may lose a line, which the original code breaks on
                np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_lengths_follow_the_size_of_the_picture() -> None:
    small, large = torch.rand(3, 56, 56, generator=DRAW), torch.rand(3, 224, 224, generator=DRAW)
    assert torch.equal(blurring.gaussian_blur(small, 3, DRAW), smoothed(small, 0.75))
    assert torch.equal(blurring.gaussian_blur(large, 3, DRAW), smoothed(large, 3))


def test_a_disk_covers_pixels_by_parts_and_sums_to_one() -> None:
    assert float(disk(3, 0.1).sum()) == pytest.approx(1)
    whole = disk(4.0, 0.0)
    side = len(whole) // 2
    assert float(whole[side, side]) == pytest.approx(1 / (math.pi * 16), rel=0.02)
    assert float(whole[side, side + 5]) == 0
    tiny = disk(0.3, 0.0)
    assert float(tiny[len(tiny) // 2, len(tiny) // 2]) == 1


def test_mirrors_are_those_of_scipy_however_long_the_blur() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    for sigma in (0.7, 5.0, 60.0):
        theirs = [
            scipy.gaussian_filter(c, sigma, mode="reflect", truncate=3) for c in PICTURE.double().numpy()
        ]
        np.testing.assert_allclose(smoothed_by_mirrors(PICTURE, sigma).numpy(), np.stack(theirs), atol=1e-5)


def test_scattered_pixels_come_from_nearby_and_the_border_stays() -> None:
    places = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij"))
    made = scattered(places, 2, 1, torch.Generator().manual_seed(3))
    draw, expected = torch.Generator().manual_seed(3), places.clone()
    inside = [(r, c) for r in range(7, 2, -1) for c in range(10, 2, -1)]
    for (r, c), (right, down) in zip(
        inside, torch.randint(-2, 2, (len(inside), 2), generator=draw), strict=True
    ):
        expected[:, r, c] = expected[:, r + down, c + right]
    assert torch.equal(made, expected)
    assert not torch.equal(made, places)
    assert torch.equal(made[:, :3], places[:, :3])
    assert torch.equal(scattered(places, 0, 3, draw), places)


def test_glass_scatters_between_two_blurs() -> None:
    large = torch.rand(3, 224, 224, generator=DRAW)
    made = blurring.glass_blur(large, 4, torch.Generator().manual_seed(1))
    expected = smoothed(scattered(smoothed(large, 1.1), 3, 2, torch.Generator().manual_seed(1)), 1.1)
    assert torch.equal(made, expected)


def test_a_trail_is_half_a_gaussian_along_its_direction() -> None:
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 1
    weights = torch.exp(-0.5 * (torch.arange(5) / 2.0) ** 2)
    made = trailed(point, 2, 2.0, 0.0)
    torch.testing.assert_close(made[0, 4, :5].flip(0), weights / weights.sum())
    assert made.sum() == pytest.approx(1)
    down = trailed(point, 2, 2.0, 90.0)
    torch.testing.assert_close(down, made.mT, atol=1e-5, rtol=0)
    gray = torch.full((3, 8, 8), 0.5)
    torch.testing.assert_close(trailed(gray, 10, 3.0, 30.0, 0.2), gray)


def test_motion_is_seeded_and_at_most_half_a_right_angle() -> None:
    point = torch.zeros(3, 224, 224)
    point[:, 112, 112] = 1
    for seed in range(8):
        made = blurring.motion_blur_like(point, 5, torch.Generator().manual_seed(seed))
        at = made[0].nonzero().float()
        assert at[:, 1].min() < 112 - 27  # 40 points at 45 degrees or less
        slope = (at[:, 0] - 112).abs() / (112 - at[:, 1]).clamp(min=1)
        assert slope[at[:, 1] < 100].max() < 1.15
