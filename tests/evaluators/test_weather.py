"""Weather: clouds beside a loop, what is seen through them, and layers that shrink with the picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.evaluators import weather
from multissl.evaluators.weather import clouds, fitted, layer_shape

GRAY = torch.full((3, 224, 224), 0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clouds_are_heights_of_diamonds_and_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "layer_shape", lambda x: (4, 3))
    made, draw = clouds(GRAY, 1.5, seeded()), seeded()
    heights, noise, side = {(0, 0): 0.0}, 1.0, 4
    step = side
    while step > 1:
        half, known = step // 2, dict(heights)

        def middle(
            row: int, column: int, corners: list[tuple[int, int]], drawn: float, noise: float = noise
        ) -> None:
            near = [heights[(row + r) % side, (column + c) % side] for r, c in corners]
            heights[row, column] = sum(near) / 4 + noise * drawn

        order = sorted(known)
        count = (side // step, side // step)
        for kind in ("center", "across", "down"):
            values = (2 * torch.rand(count, generator=draw) - 1).flatten().tolist()
            for (row, column), drawn in zip(order, values, strict=True):
                if kind == "center":
                    corners = [(-half, -half), (-half, half), (half, -half), (half, half)]
                    middle(row + half, column + half, corners, drawn)
                else:
                    crossing = [(-half, 0), (half, 0), (0, -half), (0, half)]
                    down, right = (0, half) if kind == "across" else (half, 0)
                    middle(row + down, column + right, crossing, drawn)
        step, noise = half, noise / 1.5**2
    whole = torch.tensor([[heights[r, c] for c in range(4)] for r in range(4)])
    whole = (whole - whole.min()) / (whole.max() - whole.min())
    torch.testing.assert_close(made, whole[None, :4, :3])


def test_fog_adds_clouds_and_keeps_the_brightest_value() -> None:
    made = weather.fog(GRAY, 3, seeded())
    expected = (0.5 + 2.5 * clouds(GRAY, 1.7, seeded())) * 0.5 / 3.0
    torch.testing.assert_close(made, expected.expand(3, -1, -1))
    assert float(made.max()) <= 0.5 + 1e-6
    assert not weather.fog(0 * GRAY, 3, seeded()).any()


def test_layers_shrink_with_the_picture() -> None:
    small = torch.full((3, 32, 48), 0.5)
    assert layer_shape(small) == (224, 336)
    large = torch.full((3, 224, 336), 0.5)
    for made in (weather.fog, weather.frost_like, weather.snow_like, weather.spatter_like):
        shrunk = F.interpolate(made(large, 2, seeded())[None], (32, 48), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(made(small, 2, seeded()), shrunk, atol=1e-4, rtol=0)


def covered(x: Tensor, of: Tensor) -> float:
    return float(((x - of).abs() > 1e-3).any(0).float().mean())


def test_drops_cover_as_much_as_their_threshold_says() -> None:
    """Smoothed noise has a deviation of std / (2 sqrt(pi) sigma); water is bright, mud is dark."""
    normal = torch.distributions.Normal(0.0, 1.0)
    for severity, (sigma, above) in enumerate(((4, 0.04), (3, 0.03), (2, 0.03)), start=1):
        draws = [weather.spatter_like(GRAY, severity, seeded(s)) for s in range(4)]
        wet = torch.stack([(m - GRAY).amax(0) > 0.25 * 0.9 for m in draws]).float().mean()
        expected = 1 - normal.cdf(torch.tensor(above * 2 * 3.14159**0.5 * sigma / 0.3))
        assert float(wet) == pytest.approx(float(expected), abs=0.06)
    for severity in (4, 5):
        mud = weather.spatter_like(GRAY, severity, seeded())
        assert 0.02 < covered(mud, GRAY) < 0.6
        assert float(mud.min()) < 0.1
        assert float(mud.max()) <= 0.5


def test_snow_whitens_and_falls_twice() -> None:
    made = weather.snow_like(GRAY, 4, seeded())
    ground = 0.65 * 0.5 + 0.35 * 1.25
    flakes = made[0] - ground
    assert float(flakes.min()) >= -1e-5
    assert covered(made, torch.full_like(GRAY, ground)) > 0.02
    torch.testing.assert_close(flakes, flakes.flip(0, 1))


def test_frost_lets_its_share_of_the_picture_through() -> None:
    black, white = weather.frost_like(0 * GRAY, 5, seeded()), weather.frost_like(2 * GRAY, 5, seeded())
    torch.testing.assert_close(white - black, torch.full_like(GRAY, 0.6))
    assert 0.05 < float(black.mean()) < 0.75
    assert float(black.max()) <= 0.75 + 1e-6


def test_a_layer_of_the_pictures_size_is_as_it_was() -> None:
    layer = torch.rand(1, 224, 224)
    torch.testing.assert_close(fitted(layer, GRAY), layer)
