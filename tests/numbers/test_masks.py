"""The masks of a seed are those of before: every kind, on grids of which no side is like another."""

from __future__ import annotations

import typing

import pytest
import torch

from multissl.contract.plans import ViewPlan
from multissl.modalities.masks import Hidden, draw_masks
from multissl.modalities.masks.unions import Lasting, union_masks
from multissl.random import RowRandom
from tests.helpers.known import Cases, check_known, numbers_of
from tests.numbers.test_views import plans

ROWS = 8
GRIDS = [(4, 9), (9, 4), (1, 12), (3, 5, 7)]


def random() -> RowRandom:
    return RowRandom((3, 1), 0, ROWS, ROWS)


@pytest.mark.parametrize("kind", typing.get_args(Hidden))
def test_masks_on_oblong_grids_are_those_of_before(kind: Hidden) -> None:
    cases: Cases = {}
    for grid in GRIDS:
        for asked, plan in plans():
            if plan.mask_ratio is None:
                continue
            for square in (1, 2):
                try:
                    masks = draw_masks(plan, kind, grid, 4, random(), square)
                except (ValueError, NotImplementedError):
                    continue
                hidden = {f"{i}": mask.hidden for i, mask in enumerate(masks)}
                cases[f"{grid}, {asked}, {square}"] = numbers_of(hidden)
    check_known(f"masks_{kind}", lambda: cases, 1e-6)


def test_unions_on_oblong_grids_are_those_of_before() -> None:
    cases: Cases = {}
    plan = ViewPlan(num_global=2, mask_ratio=(0.1, 0.3), context_ratio=(0.85, 1.0))
    for grid in ((4, 9), (9, 4)):
        for exact in (False, True):
            for blocks in ((1.0, 1.0), (0.3, 0.7)):
                made = union_masks(
                    plan, grid, 3, random(), 5, Lasting(blocks=blocks), wanted_group=4, exact=exact
                )
                cases[f"{grid}, {exact}, {blocks}"] = numbers_of({"union": torch.from_numpy(made)})
    check_known("masks_unions", lambda: cases, 1e-6)
