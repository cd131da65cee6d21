"""Masks: counts, constants, groups, and that ranks share one draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.plans import ViewPlan
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.cells import SMALLEST, block_mask, num_hidden, place_block, random_mask
from multissl.modalities.masks.rows import group_size
from multissl.random import RowRandom

IBOT = ViewPlan(num_global=2, mask_ratio=(0.1, 0.5), mask_share=0.5)
MAE = ViewPlan(num_global=1, mask_ratio=(0.75, 0.75))


def rows(first: int, count: int, total: int, step: int = 0) -> RowRandom:
    return RowRandom((0, step), first, count, total)


def test_the_padded_number_of_hidden_tokens_is_the_reference_s_constant() -> None:
    sizes = {
        len(draw_masks(IBOT, "block", (16, 16), 64, rows(0, 64, 64, step))[0].index) for step in range(5)
    }
    assert sizes == {4941}
    assert len(draw_masks(IBOT, "block", (16, 16), 32, rows(0, 64, 64))[0].index) == 4992


def test_half_of_the_views_are_masked_and_weights_sum_to_one_a_row() -> None:
    mask = draw_masks(IBOT, "block", (16, 16), 32, rows(0, 64, 64))[0]
    counts = mask.hidden.sum(1)
    assert (counts > 0).sum() == 64
    assert counts.max() <= 128
    assert mask.weight.sum() == pytest.approx(64, rel=1e-5)
    assert mask.num_hidden is None
    real = mask.weight > 0
    assert torch.equal(mask.index[real], mask.hidden.flatten().nonzero().flatten())


def test_two_ranks_hide_what_one_rank_hides() -> None:
    plan = ViewPlan(num_global=2, mask_ratio=(0.1, 0.5), mask_share=0.5, num_masks=2)
    for which in range(2):
        whole = draw_masks(plan, "block", (7, 7), 4, rows(0, 8, 8))[which].hidden.unflatten(0, (2, 8))
        parts = [draw_masks(plan, "block", (7, 7), 4, rows(i, 4, 8))[which] for i in (0, 4)]
        assert torch.equal(whole, torch.cat([p.hidden.unflatten(0, (2, 4)) for p in parts], 1))
        assert len(parts[0].index) == len(parts[1].index)


def test_several_masks_differ() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), num_masks=3)
    a, b, c = (m.hidden for m in draw_masks(plan, "random", (8, 8), 4, rows(0, 4, 4)))
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_a_fixed_ratio_hides_the_same_number_in_every_row(kind: Any) -> None:
    for step in range(20):
        mask = draw_masks(MAE, kind, (14, 14), 4, rows(0, 8, 8, step))[0]
        assert mask.num_hidden == 147 == num_hidden(MAE, kind, 196, 8)
        assert len(mask.index) == 8 * 147
        assert (mask.weight > 0).all()


def test_random_masks_keep_what_mae_keeps() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.9, 0.9))
    assert num_hidden(plan, "random", 49, 4) == 49 - int(49 * (1 - 0.9))
    assert num_hidden(IBOT, "block", 196, 4) is None


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.999])
def test_at_least_one_token_is_hidden_and_one_is_kept(ratio: float) -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(ratio, ratio))
    for kind in ("random", "block"):
        counts = draw_masks(plan, kind, (2, 2), 4, rows(0, 4, 4))[0].hidden.sum(1)
        assert counts.min() >= 1
        assert counts.max() <= 3


def test_blocks_never_exceed_the_request_on_any_grid() -> None:
    rng = np.random.default_rng(0)
    for grid in [(1, 1), (1, 5), (2, 2), (7, 12), (37, 37)]:
        for request in (0, 1, 3, grid[0] * grid[1] // 2):
            hidden = block_mask(rng, grid, request)
            assert hidden.shape == (grid[0] * grid[1],)
            assert hidden.sum() <= request
    assert random_mask(rng, 10, 4).sum() == 4


@pytest.mark.parametrize(
    ("part", "size"),
    [((0, 48, 48), 24), ((16, 16, 64), 16), ((48, 24, 72), 24), ((0, 7, 14), 7), ((0, 32, 64), 32)],
)
def test_a_group_is_the_largest_divisor_of_the_samples_of_a_rank(
    part: tuple[int, int, int], size: int
) -> None:
    assert group_size(32, rows(*part)) == size


def test_a_batch_that_is_no_multiple_of_the_group_uses_its_largest_divisor() -> None:
    assert len(draw_masks(IBOT, "block", (8, 8), 32, rows(0, 48, 48))[0].hidden) == 96
    assert draw_masks(IBOT, "block", (8, 8), 32, rows(0, 1, 1))[0].hidden.any(1).sum() == 1


def test_a_share_that_masks_nothing_is_refused() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.1, 0.5), mask_share=0.5)
    with pytest.raises(ValueError, match=r"mask_share=0.5 of the 1 views of 1 samples masks none"):
        draw_masks(plan, "block", (8, 8), 32, rows(0, 61, 61))


def test_blocks_are_no_smaller_than_asked_for() -> None:
    rng = np.random.default_rng(0)
    areas = [place_block(rng, (14, 14), 0, 98, 49).bit_count() for _ in range(200)]
    assert min(area for area in areas if area) > 35  # of 49, its sides rounded
    assert min(place_block(rng, (14, 14), 0, 98, SMALLEST).bit_count() or 98 for _ in range(200)) < 20
    large, usual = (
        draw_masks(IBOT, "block", (14, 14), 4, rows(0, 4, 4), smallest=size)[0] for size in (30.0, SMALLEST)
    )
    assert not torch.equal(large.hidden, usual.hidden)
