"""Corruptions beside scipy, colorsys and loops; draws that a batch does not change; lengths that follow the picture."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.evaluators import corrupting
from multissl.evaluators.corrupting import CORRUPTIONS, SEVERITIES, corrupt, disk, smoothed, zoomed

DRAW = torch.Generator().manual_seed(0)
PICTURE = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 10, generator=DRAW), (32, 40), mode="bilinear")[
    0
]


def bytes_of(x: Tensor) -> Tensor:
    return (x * 255).to(torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_picture_is_changed_more_with_severity_and_alike_whenever_it_is_asked(name: str) -> None:
    picture = bytes_of(PICTURE)
    made = [corrupt(picture, name, severity) for severity in SEVERITIES]
    changes = [float((m.float() - picture.float()).square().mean()) for m in made]
    assert changes[-1] > changes[0] >= 0
    assert torch.equal(corrupt(picture.clone(), name, 3), made[2])
    assert made[0].shape == picture.shape


def test_noise_is_as_strong_as_it_says() -> None:
    gray = torch.full((3, 200, 200), 0.5)
    for severity, sigma in zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True):
        made = corrupting.gaussian_noise(gray, severity, DRAW)
        assert float(made.std()) == pytest.approx(sigma, rel=0.02)
    for severity, photons in zip(SEVERITIES, (60, 25, 12, 5, 3), strict=True):
        assert float(corrupting.shot_noise(gray, severity, DRAW).var()) == pytest.approx(
            0.5 / photons, rel=0.03
        )
    for severity, amount in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        hit = corrupting.impulse_noise(gray, severity, DRAW) != 0.5
        assert float(hit.float().mean()) == pytest.approx(amount, rel=0.05)
    assert float(corrupting.speckle_noise(gray, 5, DRAW).std()) == pytest.approx(0.3, rel=0.02)


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


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturation_and_brightness_are_those_of_colorsys(severity: int) -> None:
    x = PICTURE[:, :6, :6].clone()
    x[:, 0, 0], x[:, 0, 1] = 0.4, 0.0
    factor, more = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    pale, bright = corrupting.saturate(x, severity, DRAW), corrupting.brightness(x, severity, DRAW)
    for r in range(6):
        for c in range(6):
            h, s, v = colorsys.rgb_to_hsv(*x[:, r, c].tolist())
            want = colorsys.hsv_to_rgb(h, min(max(s * factor + more, 0), 1), v)
            assert pale[:, r, c].tolist() == pytest.approx(want, abs=1e-5)
            want = colorsys.hsv_to_rgb(h, s, min(v + 0.1 * severity, 1))
            assert bright[:, r, c].tolist() == pytest.approx(want, abs=1e-5)


def test_lengths_follow_the_size_of_the_picture() -> None:
    small, large = torch.rand(3, 56, 56, generator=DRAW), torch.rand(3, 224, 224, generator=DRAW)
    assert torch.equal(corrupting.gaussian_blur(small, 3, DRAW), smoothed(small, 0.75))
    assert torch.equal(corrupting.gaussian_blur(large, 3, DRAW), smoothed(large, 3))


def test_a_disk_covers_pixels_by_parts_and_sums_to_one() -> None:
    assert float(disk(3, 0.1).sum()) == pytest.approx(1)
    whole = disk(4.0, 0.0)
    side = len(whole) // 2
    assert float(whole[side, side]) == pytest.approx(1 / (math.pi * 16), rel=0.02)
    assert float(whole[side, side + 5]) == 0
    tiny = disk(0.3, 0.0)
    assert float(tiny[len(tiny) // 2, len(tiny) // 2]) == 1
