"""Random resized crops by hand: the share of the area is uniform, the ratio of the sides log-uniform."""

from __future__ import annotations

import pytest

from multissl.modalities.image.crops import crop_box
from multissl.random import RowRandom

SIDE = 10_000
SCALE, RATIO = (0.1, 0.5), (0.5, 2.0)


def draw_sides(area_draw: float, ratio_draw: float) -> tuple[int, int]:
    """Height and width of a crop of a large square image."""
    _, _, height, width = crop_box(SIDE, SIDE, [[area_draw, ratio_draw, 0.5, 0.5]], SCALE, RATIO)
    return height, width


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.1), (0.25, 0.2), (0.5, 0.3), (0.75, 0.4), (1.0, 0.5)])
def test_quarters_of_the_draw_are_quarters_of_the_range_of_areas(draw: float, share: float) -> None:
    height, width = draw_sides(draw, 0.3)
    assert height * width / SIDE**2 == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize(
    ("draw", "ratio"), [(0.0, 0.5), (0.25, 0.5**0.5), (0.5, 1.0), (0.75, 2**0.5), (1.0, 2.0)]
)
def test_quarters_of_the_draw_are_quarters_of_the_range_of_logarithms(draw: float, ratio: float) -> None:
    height, width = draw_sides(0.4, draw)
    assert width / height == pytest.approx(ratio, rel=1e-3)


def test_places_are_uniform_over_all_that_fit() -> None:
    for draw, place in ((0.0, 0), (0.5, 3), (0.999, 6)):  # a side of 4 has 7 places in 10
        top, left, height, width = crop_box(10, 10, [[0.0, 0.5, draw, draw]], (0.16, 1.0), RATIO)
        assert (top, left, height, width) == (place, place, 4, 4)


def test_wide_and_tall_crops_are_equally_frequent() -> None:
    draws = RowRandom((0, 0), 0, 4000, 4000).rand(1, 4).tolist()
    boxes = [crop_box(SIDE, SIDE, d, SCALE, (1 / 3, 3.0)) for d in draws]
    wide = sum(width > height for _, _, height, width in boxes) / len(boxes)
    assert wide == pytest.approx(0.5, abs=0.04)  # a uniform ratio would give 0.75
