"""Masks of spectrograms: bands are bands, counts are what was promised, padding is not hidden as sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.bands import count, fixed_count, rates
from multissl.random import RowRandom

KINDS: list[Any] = ["random", "block", "time", "frequency", "time_frequency"]
GRID = (16, 8)
MAE = ViewPlan(num_global=1, mask_ratio=(0.8, 0.8))
IBOT = ViewPlan(num_global=2, mask_ratio=(0.1, 0.5), mask_share=0.5)


def rows(first: int, number: int, total: int, step: int = 0) -> RowRandom:
    return RowRandom((0, step), first, number, total)


def full(views: int, samples: int, columns: int = GRID[0]) -> torch.Tensor:
    return torch.full((views, samples), columns)


def draw_bands(plan: ViewPlan, kind: Any, rng: RowRandom, real: torch.Tensor) -> tuple[Mask, ...]:
    return draw_masks(plan, kind, GRID, 4, rng, real=real.flatten())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 2, 5, 16])
def test_every_row_hides_the_same_number_whatever_is_padding(kind: Any, columns: int) -> None:
    want = fixed_count(kind, GRID, MAE, 8)
    for step in range(10):
        (mask,) = draw_bands(MAE, kind, rows(0, 8, 8, step), full(1, 8, columns))
        assert mask.num_hidden == want
        assert want is not None
        assert (mask.hidden.sum(1) == want).all()
        assert len(mask.index) == 8 * want
        sound = mask.hidden[:, : columns * GRID[1]]
        assert sound.any(1).all()
        assert not sound.all(1).any()
        listed = mask.index[mask.weight > 0]
        assert ((listed % 128) < columns * GRID[1]).all()
        assert mask.weight.sum() == pytest.approx(8, rel=1e-5)


def test_sound_and_padding_lose_the_same_share() -> None:
    (mask,) = draw_bands(MAE, "random", rows(0, 4, 4), full(1, 4, 8))
    assert mask.num_hidden is not None
    assert (mask.hidden[:, :64].sum(1) == round(0.5 * mask.num_hidden)).all()


def test_bands_are_bands() -> None:
    grids = {}
    for kind in ("time", "frequency", "time_frequency"):
        (mask,) = draw_bands(MAE, kind, rows(0, 4, 4), full(1, 4))
        grids[kind] = mask.hidden.unflatten(1, GRID)
    assert (grids["time"].all(2) == grids["time"].any(2)).all()
    assert (grids["time"].all(2).sum(1) == 16 - int(16 * (1 - 0.8))).all()
    assert (grids["frequency"].all(1) == grids["frequency"].any(1)).all()
    both = grids["time_frequency"]
    columns, bands = both.all(2), both.all(1)
    assert torch.equal(both, columns[:, :, None] | bands[:, None])
    assert columns.any()
    assert bands.any()


def test_equal_rates_hide_the_share_asked_for() -> None:
    time, frequency = rates("time_frequency", 0.8)
    assert time == frequency == pytest.approx(0.553, abs=1e-3)
    assert 1 - (1 - time) * (1 - frequency) == pytest.approx(0.8)
    big = (1000, 1000)
    assert count("time_frequency", big, MAE, 0) / 1e6 == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_ratios_masks_half_of_the_views_within_a_constant_length(kind: Any) -> None:
    lengths = set()
    for step in range(5):
        (mask,) = draw_bands(IBOT, kind, rows(0, 8, 8, step), full(2, 8))
        assert mask.num_hidden is None
        assert (mask.hidden.any(1).sum()) == 8
        lengths.add(len(mask.index))
    assert len(lengths) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_hide_what_one_rank_hides(kind: Any) -> None:
    real = torch.from_numpy(np.random.default_rng(0).integers(1, 17, (2, 8)))
    whole = draw_bands(IBOT, kind, rows(0, 8, 8), real)[0].hidden.unflatten(0, (2, 8))
    parts = [draw_bands(IBOT, kind, rows(i, 4, 8), real[:, i : i + 4])[0] for i in (0, 4)]
    assert torch.equal(whole, torch.cat([p.hidden.unflatten(0, (2, 4)) for p in parts], 1))


def test_several_masks_differ() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), num_masks=2)
    a, b = draw_bands(plan, "time", rows(0, 4, 4), full(1, 4))
    assert not torch.equal(a.hidden, b.hidden)


def test_a_share_that_masks_nothing_is_refused() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.1, 0.5), mask_share=0.5)
    with pytest.raises(ValueError, match=r"mask_share=0.5 of the 1 views of 1 samples masks none"):
        draw_bands(plan, "time", rows(0, 1, 1), full(1, 1))
