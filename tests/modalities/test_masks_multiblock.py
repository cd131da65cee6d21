"""Targets and contexts: disjoint, of constant counts, the same on any number of ranks; masks of squares."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

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
from multissl.modalities.masks.unions import Lasting, draw_union, length_of, union_masks
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
        contexts, targets = draw_multiblock(PLAN, kind, grid, rows(0, 4, 4, step))
        assert contexts.shape == (1, 8, context_size(PLAN, kind, grid))
        assert targets.shape[:2] == (4, 8)
        assert 1 <= targets.shape[2] <= largest
        first, *others = as_masks(contexts, targets, tokens, largest)
        assert [len(m.index) for m in others] == [8 * largest] * 4
        for mask in others:
            assert not (mask.hidden & ~first.hidden).any(), "the context holds a target"
            assert (mask.hidden.sum(1) == mask.num_hidden).all()
            torch.testing.assert_close(mask.weight.sum(), torch.tensor(8.0))
            assert torch.equal(mask.index[mask.weight > 0], mask.hidden.flatten().nonzero().flatten())
        assert torch.equal(places(first)[0], contexts[0])


def test_a_context_keeps_what_independent_targets_leave_of_the_smallest() -> None:
    assert context_size(PLAN, "block", (14, 14)) == int(196 * 0.85 * 0.8**4) == 68
    assert context_size(PLAN, "random", (1, 12)) == int(12 * 0.85 * 0.8**4) == 4
    assert (
        context_size(replace(PLAN, num_masks=1, mask_ratio=(0.9, 0.9)), "random", (2, 2)) == 1
    )  # one is always left
    assert largest_target(PLAN, "random", (14, 14)) == 39
    assert largest_target(PLAN, "random", (1, 3)) == 1


@pytest.mark.parametrize("kind", ["block", "random"])
@pytest.mark.parametrize(("grid", "largest"), [((1, 2), 1), ((2, 1), 1), ((2, 2), 3)])
def test_a_target_leaves_something_of_the_smallest_grids(kind: Kind, grid: Grid, largest: int) -> None:
    plan = replace(PLAN, mask_ratio=(0.9, 0.9), num_masks=1)
    assert largest_target(plan, kind, grid) == largest
    contexts, targets = draw_multiblock(plan, kind, grid, rows(0, 4, 4))
    assert contexts.shape[2] >= 1
    assert targets.shape[2] <= largest


@pytest.mark.parametrize("num_masks", [1, 4])
@pytest.mark.parametrize("kind", ["block", "random"])
def test_where_no_place_of_targets_leaves_enough_all_of_them_have_one(
    kind: Kind, num_masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many tries, here one, all else than that place is context."""
    monkeypatch.setattr("multissl.modalities.masks.multiblock.TRIES", 1)
    plan = replace(PLAN, num_masks=num_masks, num_contexts=2, mask_ratio=(0.5, 0.5), context_ratio=(0.5, 0.5))
    monkeypatch.setattr("multissl.modalities.masks.multiblock.context_size", lambda *_: 7)
    contexts, targets = draw_multiblock(plan, kind, (4, 4), rows(0, 8, 8))
    assert contexts.shape == (2, 16, 7)
    for row in range(16):
        assert (targets[:, row] == targets[0, row]).all()
        for context in contexts[:, row]:
            assert not set(context.tolist()) & set(targets[0, row].tolist())


def test_each_of_several_contexts_holds_no_target_and_is_a_block_of_its_own() -> None:
    plan = replace(PLAN, num_contexts=3)
    assert plan.all_masks == 7
    contexts, targets = draw_multiblock(plan, "block", (14, 14), rows(0, 4, 4))
    assert contexts.shape == (3, 8, context_size(plan, "block", (14, 14)))
    masks = as_masks(contexts, targets, 196, largest_target(plan, "block", (14, 14)))
    assert len(masks) == 7
    for shown in masks[:3]:
        assert not any((~shown.hidden & mask.hidden).any() for mask in masks[3:])
    assert not torch.equal(contexts[0], contexts[1])
    assert not torch.equal(contexts[1], contexts[2])


@pytest.mark.parametrize("aspect", [(0.25, 0.25), (1.0, 1.0), (4.0, 4.0), (0.5, 2.0)])
def test_targets_have_the_ratio_of_height_to_width_that_is_asked_for(aspect: tuple[float, float]) -> None:
    plan = replace(PLAN, target_aspect=aspect, mask_ratio=(0.16, 0.16))
    found = []
    for step in range(60):
        _, targets = draw_multiblock(plan, "block", (20, 20), rows(0, 1, 1, step))
        block = targets[0, 0]
        height, width = len((block // 20).unique()), len((block % 20).unique())
        assert height * width == len(block) <= largest_target(plan, "block", (20, 20))
        found.append(height / width)
    low, high = aspect
    assert 0.85 * low <= min(found) <= 1.15 * low + 0.1 * (high - low)
    assert high / 1.15 - 0.1 * (high - low) <= max(found) <= 1.15 * high


def lasting_rows(lasting: Lasting, step: int = 0, blocks: int = 3) -> tuple[Tensor, Tensor]:
    """What is shown and hidden of 6 slots of 8 x 8 cells, bool [R, 6, 8, 8]."""
    plan = ViewPlan(num_global=1, mask_ratio=(0.2, 0.2), context_ratio=(1.0, 1.0))
    context, target = draw_masks(
        plan, "block", (6, 8, 8), 1, rows(0, 4, 4, step), union=blocks, lasting=lasting
    )
    assert (context.hidden.sum(1) == context.num_hidden).all()
    assert (target.hidden.sum(1) == target.num_hidden).all()
    return ~context.hidden.reshape(4, 6, 8, 8), target.hidden.reshape(4, 6, 8, 8)


def test_a_union_lasts_as_long_as_the_clip_and_all_else_is_its_context() -> None:
    shown, hidden = lasting_rows(Lasting())
    assert torch.equal(shown, ~hidden)
    assert (hidden == hidden[:, :1]).all()


def test_blocks_of_a_union_last_the_share_of_the_clip_that_is_asked_for() -> None:
    counts = set()
    for step in range(8):
        lasting = Lasting(blocks=(0.5, 0.5))
        shown, hidden = lasting_rows(lasting, step)
        assert torch.equal(shown, ~hidden)
        assert not (hidden == hidden[:, :1]).all()
        counts.add((int(shown.sum()), int(hidden.sum())))
    assert counts == {(4 * (384 - round(384 * (1 - 0.9**3))), 4 * round(384 * (1 - 0.9**3)))}
    plan = ViewPlan(num_global=1, mask_ratio=(0.2, 0.2), context_ratio=(1.0, 1.0))
    one = torch.from_numpy(union_masks(plan, (8, 8), 1, rows(0, 4, 4), 6, Lasting(blocks=(0.5, 0.5))))
    lit = one.reshape(4, 6, 64).any(2)
    assert (lit.sum(1) == 3).all()  # a single block lies in 3 of 6 slots, one after the other
    areas = one.reshape(4, 6, 64).sum(2)[lit]
    assert len(areas.unique()) == 1
    assert 9 <= areas[0] <= 16  # a fifth of 64, its sides rounded
    assert ((lit[:, 1:] != lit[:, :-1]).sum(1) <= 2).all()
    lengths = {length_of((0.2, 1.0), 10, rows(0, 1, 1, step)) for step in range(60)}
    assert lengths == {2, 3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("blocks", [(1.0, 1.0), (0.5, 1.0)])
def test_a_context_shows_tokens_of_its_first_slots_alone(blocks: tuple[float, float]) -> None:
    counts = set()
    for step in range(6):
        shown, hidden = lasting_rows(Lasting(blocks=blocks, context=0.5), step)
        assert shown[:, :3].flatten(1).any(1).all()
        assert not shown[:, 3:].any()
        assert not (shown & hidden).any()
        assert hidden[:, 3:].any()
        counts.add((int(shown.sum()), int(hidden.sum())))
    assert len(counts) == 1


def test_a_context_shows_at_most_the_share_that_is_kept() -> None:
    shown, hidden = lasting_rows(Lasting(keep=0.25))
    assert (shown.flatten(1).sum(1) == 96).all()
    assert not (shown & hidden).any()
    assert not torch.equal(shown[0], shown[1])
    assert torch.equal(lasting_rows(Lasting(keep=0.99))[0], lasting_rows(Lasting())[0])
    whole = draw_union(CLIPS, (8, 8), 6, 3, rows(0, 4, 4), Lasting(keep=0.25))
    parts = [draw_union(CLIPS, (8, 8), 6, 3, rows(i, 2, 4), Lasting(keep=0.25)) for i in (0, 2)]
    assert all(torch.equal(torch.cat([a, b], 1), both) for a, b, both in zip(*parts, whole, strict=True))


CLIPS = ViewPlan(num_global=1, mask_ratio=(0.2, 0.2), context_ratio=(1.0, 1.0))


def test_ranks_draw_what_one_rank_draws() -> None:
    plan = replace(PLAN, num_contexts=2)
    whole = draw_multiblock(plan, "block", (14, 14), rows(0, 6, 6))
    parts = [draw_multiblock(plan, "block", (14, 14), rows(i, 2, 6)) for i in (0, 2, 4)]
    views = [torch.cat([p[k].unflatten(1, (2, 2)) for p in parts], 2).flatten(1, 2) for k in (0, 1)]
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
