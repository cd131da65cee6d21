"""Tables resampled by matrices are those that torch interpolates."""

from __future__ import annotations

import math

import pytest
import torch

from multissl.layers.interpolation import resample_any
from multissl.layers.positions import MODES, resample

GRIDS = [
    ((7,), (5,)),
    ((4, 6), (4, 6)),
    ((4, 6), (4, 9)),
    ((5, 4), (9, 3)),
    ((9, 8), (4, 3)),
    ((2, 4, 4), (3, 2, 7)),
]


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_tables_are_those_of_torch(
    old: tuple[int, ...], new: tuple[int, ...], offset: float, antialias: bool, interpolation: str
) -> None:
    if len(old) != 2 and (antialias or interpolation == "bilinear"):
        pytest.skip("of grids with two axes alone")
    torch.manual_seed(0)
    table = torch.randn(1, 1 + math.prod(old), 3)
    mode = interpolation if len(old) == 2 else MODES[len(old)]
    mine = resample_any(table, old, new, offset, antialias, 1, mode)
    expected = resample(table, old, new, offset, antialias, interpolation=interpolation)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    if old == new:
        assert torch.equal(mine, table)
