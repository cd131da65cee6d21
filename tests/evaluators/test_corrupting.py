"""Corruptions beside scipy, colorsys and loops; draws that a batch does not change."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.evaluators import corrupting
from multissl.evaluators.blurring import pixels, sampled
from multissl.evaluators.corrupting import CORRUPTIONS, FIFTEEN, NINETEEN, SEVERITIES, corrupt
from multissl.evaluators.robustness import STANDARD

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
    if name == "elastic_transform":  # the first two move far what the others tear apart
        changes = [np.mean([roughness(s, seed) for seed in range(4)]) for s in SEVERITIES[2:]]
        assert changes == sorted(changes)
    assert changes[-1] > changes[0] >= 0
    assert torch.equal(corrupt(picture.clone(), name, 3), made[2])
    assert all(m.shape == picture.shape and m.dtype == torch.uint8 for m in made)


def roughness(severity: int, seed: int) -> float:
    """How far the elastic transform pulls neighbors apart, of a picture that shows where its pixels come from."""
    places = pixels(224, 224).movedim(2, 0) / 224
    draw = torch.Generator().manual_seed(seed)
    moved = 224 * corrupting.elastic_transform(torch.cat([places, places[:1]]), severity, draw)[:2]
    return float((moved.diff(dim=2) - moved.diff(dim=2).mean()).square().mean())


def test_the_published_sets_are_whole_but_for_what_is_named_a_likeness() -> None:
    assert [name.removesuffix("_like") for name in FIFTEEN] == [*STANDARD]
    likenesses = {name for name in NINETEEN if name.endswith("_like")}
    assert likenesses == {"motion_blur_like", "snow_like", "frost_like", "spatter_like"}
    assert len({*NINETEEN}) == 19
    assert [*CORRUPTIONS] == [*NINETEEN]


def test_the_elastic_transform_moves_pixels_as_an_affine_map_and_smooth_noise_do() -> None:
    """Beside scipy, from the same draws: the field smoothed by mirrors, the map solved for, one look between pixels."""
    scipy = pytest.importorskip("scipy.ndimage")
    large = torch.nn.functional.interpolate(PICTURE[None], (224, 224), mode="bilinear")[0]
    for severity, (alpha, sigma, shift) in ((1, (488.0, 170.8, 24.4)), (5, (29.28, 2.44, 4.88))):
        made = corrupting.elastic_transform(large, severity, torch.Generator().manual_seed(severity))
        draw = torch.Generator().manual_seed(severity)
        noise = (2 * torch.rand(2, 224, 224, generator=draw) - 1).double().numpy()
        x, y = (alpha * scipy.gaussian_filter(n, sigma, mode="reflect", truncate=3) for n in noise)
        third, points = 224 / 3, []
        for right, down in ((1, 1), (1, -1), (-1, -1)):
            points.append((112 + right * third, 112 + down * third))
        points = np.array(points)
        moved = points + shift * (2 * torch.rand(3, 2, generator=draw).double().numpy() - 1)
        # columns and rows of where the pixels at `moved` come from
        back = np.linalg.solve(np.c_[moved, np.ones(3)], points)
        columns, rows = np.meshgrid(np.arange(224.0), np.arange(224.0))
        at = np.stack([columns + x, rows + y, np.ones_like(x)], -1) @ back
        theirs = [
            scipy.map_coordinates(c, [at[..., 1], at[..., 0]], order=1, mode="reflect")
            for c in large.double().numpy()
        ]
        np.testing.assert_allclose(made.numpy(), np.stack(theirs), atol=2e-3)


def test_what_lies_between_pixels_is_bilinear() -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    at = torch.tensor([[[1.5, 0.0], [3.0, 1.25], [-5.0, 0.0]]])
    assert sampled(x, at, "border").flatten().tolist() == pytest.approx([1.5, 8.0, 0.0], abs=1e-5)


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
