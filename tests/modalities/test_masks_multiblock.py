"""Targets and contexts: disjoint, of constant counts, the same on any number of ranks; masks of squares."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from multissl.contract.plans import ViewPlan
from multissl.layers.decoder import places
from multissl.modalities.image.adapter import Image
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.cells import num_hidden
from multissl.modalities.masks.multiblock import as_masks, context_size, draw_multiblock, largest_target
from multissl.modalities.masks.rows import Grid, Kind
from multissl.modalities.tabular.adapter import Tabular
from multissl.random import RowRandom

PLAN = ViewPlan(num_global=2, num_masks=4, mask_ratio=(0.15, 0.2), context_ratio=(0.85, 1.0))


def rows(first: int, count: int, total: int, step: int = 0) -> RowRandom:
    return RowRandom((0, step), first, count, total)


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (2, 2), (64, 8), (1, 12)])
@pytest.mark.parametrize("kind", ["block", "random"])
def test_contexts_hold_no_target_and_all_counts_are_constant(kind: Kind, grid: Grid) -> None:
    tokens, largest = math.prod(grid), largest_target(PLAN, kind, grid)
    for step in range(8):
        context, targets = draw_multiblock(PLAN, kind, grid, rows(0, 4, 4, step))
        assert context.shape == (8, context_size(PLAN, kind, grid))
        assert targets.shape[:2] == (4, 8)
        assert 1 <= targets.shape[2] <= largest
        first, *others = as_masks(context, targets, tokens, largest)
        assert [len(m.index) for m in others] == [8 * largest] * 4
        for mask in others:
            assert not (mask.hidden & ~first.hidden).any(), "the context holds a target"
            assert (mask.hidden.sum(1) == mask.num_hidden).all()
            torch.testing.assert_close(mask.weight.sum(), torch.tensor(8.0))
            assert torch.equal(mask.index[mask.weight > 0], mask.hidden.flatten().nonzero().flatten())
        assert torch.equal(places(first)[0], context)


def test_ranks_draw_what_one_rank_draws() -> None:
    whole = draw_multiblock(PLAN, "block", (14, 14), rows(0, 6, 6))
    parts = [draw_multiblock(PLAN, "block", (14, 14), rows(i, 2, 6)) for i in (0, 2, 4)]
    views = [torch.cat([p[0].unflatten(0, (2, 2)) for p in parts], 1).flatten(0, 1)]
    views += [torch.cat([p[1].unflatten(1, (2, 2)) for p in parts], 2).flatten(1, 2)]
    assert torch.equal(whole[0], views[0])
    assert torch.equal(whole[1], views[1])


def frequency(places: Tensor, tokens: int) -> Tensor:
    return places.flatten().bincount(minlength=tokens).double()


def test_the_last_row_is_predicted_unless_the_reference_is_asked_for() -> None:
    plan = ViewPlan(num_global=1, num_masks=4, mask_ratio=(0.15, 0.2), context_ratio=(0.85, 1.0))
    for reference in (False, True):
        seen = torch.zeros(2, 64, dtype=torch.float64)
        for step in range(40):
            drawn = draw_multiblock(plan, "block", (8, 8), rows(0, 8, 8, step), reference)
            seen += torch.stack([frequency(p, 64) for p in drawn])
        edge = seen.reshape(2, 8, 8)[:, -1].sum(1)
        assert (edge == 0).all() if reference else (edge > 0).all()


def test_a_context_is_trimmed_without_favor_for_the_first_rows() -> None:
    plan = ViewPlan(num_global=1, num_masks=4, mask_ratio=(0.15, 0.2), context_ratio=(1.0, 1.0))
    seen = sum(
        frequency(draw_multiblock(plan, "block", (8, 8), rows(0, 16, 16, s))[0], 64) for s in range(40)
    )
    assert isinstance(seen, Tensor)
    by_row = seen.reshape(8, 8).sum(1)
    assert 0.85 < by_row[:4].sum() / by_row[4:].sum() < 1.18


def test_squares_of_tokens_are_hidden_together() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.6, 0.6))
    mask = draw_masks(plan, "random", (14, 14), 4, rows(0, 4, 4), square=2)[0]
    assert mask.num_hidden == num_hidden(plan, "random", 196, 4, 2) == 4 * 30  # ceil(.6 * 49) squares of 4
    squares = mask.hidden.reshape(4, 7, 2, 7, 2)
    assert Counter(squares.sum((2, 4)).flatten().tolist()).keys() == {0, 4}


def test_images_refuse_squares_that_do_not_fit() -> None:
    for options in ({"mask_patch": 24}, {"mask_patch": 48}, {"mask_patch": 32, "mask": "block"}):
        with pytest.raises(ValueError, match=r"modality\.mask_patch="):
            Image.Config(**{"mask": "random", **options})
    Image.Config(mask="random", mask_patch=32)


@pytest.mark.parametrize("name", ["image", "tabular"])
def test_modalities_deliver_targets_and_a_context(name: str) -> None:
    modality = Image.Config(size=16, patch=4).build() if name == "image" else Tabular.Config().build()
    plan = ViewPlan(num_global=1, num_masks=2, mask_ratio=(0.15, 0.2), context_ratio=(0.85, 1.0), target=True)
    data, rng = modality.dataset("train"), rows(0, 4, 4)
    raw = modality.collate([data[i] for i in range(4)], {name: plan}, rng)
    (views,) = modality.views(raw, {name: plan}, rng)
    assert len(views.masks) == 3
    assert all(m.num_hidden is not None for m in views.masks)
    spec = modality.streams()[name]
    assert views.target is not None
    assert views.target.shape == ((4, 16, 48) if name == "image" else (4, spec.num_tokens))


def test_tables_draw_several_masks_but_not_under_corruption() -> None:
    pytest.importorskip("sklearn")
    modality, rng = Tabular.Config(data="sklearn:breast_cancer").build(), rows(0, 4, 4)
    data = modality.dataset("train")
    plan = ViewPlan(num_global=1, num_masks=3, mask_ratio=(0.3, 0.3))
    raw = modality.collate([data[i] for i in range(4)], {"tabular": plan}, rng)
    (views,) = modality.views(raw, {"tabular": plan}, rng)
    assert [m.num_hidden for m in views.masks] == [9, 9, 9]
    assert not torch.equal(views.masks[0].hidden, views.masks[1].hidden)
    wrong = ViewPlan(num_global=1, num_masks=3, mask_ratio=(0.3, 0.3), corrupt=True)
    with pytest.raises(ValueError, match="ask for num_masks=1"):
        modality.views(raw, {"tabular": wrong}, rng)
