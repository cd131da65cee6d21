"""Which rows drop path keeps: every share, every piece of a batch, every shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from multissl.layers.drop_path import Subset, draw_subsets, rows_of_groups
from multissl.layers.kernels.base import kernel, layout

SDPA = kernel("sdpa")
CPU = torch.device("cpu")


def drawn(
    sizes: Sequence[tuple[int, int]],
    rate: float,
    branches: int,
    places: Sequence[Tensor | None] = (),
    seed: int = 0,
) -> list[Subset]:
    torch.manual_seed(seed)
    rows = rows_of_groups(sizes, places, branches, CPU)
    return draw_subsets(rows, slice(0, branches), rate, layout(sizes, CPU, SDPA), SDPA)


def kept_rows(subset: Subset, tokens: int = 1) -> list[int]:
    """Return the rows of a single group that are computed and count."""
    kept = subset.tokens[subset.kept > 0]
    return sorted({token // tokens for token in kept.tolist()})


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.3, 0.4, 0.9])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 16, 64])
def test_the_share_that_is_kept_is_the_one_asked_for_however_many_rows_there_are(
    rows: int, rate: float
) -> None:
    subsets = drawn([(rows, 1)], rate, 4000)
    kept = sum(len(kept_rows(s)) for s in subsets) / (4000 * rows)
    spread = (rate * (1 - rate) / 4000) ** 0.5  # of a single row; more rows spread less
    assert kept == pytest.approx(1 - rate, abs=5 * spread)
    assert {s.layout.sizes for s in subsets} == {((-int(-rows * (1 - rate) // 1), 1),)}
    assert subsets[0].scale == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_every_row_is_kept_equally_often_and_branches_draw_apart() -> None:
    subsets = drawn([(6, 2)], 0.5, 4000)
    counts = torch.tensor([row for s in subsets for row in kept_rows(s, 2)]).bincount(minlength=6)
    assert ((counts - 2000).abs() < 5 * (4000 * 0.25) ** 0.5).all(), counts
    assert len({tuple(kept_rows(s, 2)) for s in subsets}) == 2  # odd or even places
    assert sum(kept_rows(a, 2) == kept_rows(b, 2) for a, b in itertools.pairwise(subsets)) < 2300


def test_views_draw_apart() -> None:
    """Two views of a sample are not left out together more often than by chance."""
    place = torch.arange(4)
    both = sum(0 in rows and 4 in rows for rows in map(kept_rows, drawn([(8, 1)], 0.5, 4000, [place])))
    assert both == pytest.approx(1000, abs=5 * (4000 * 3 / 16) ** 0.5)


@pytest.mark.parametrize("pieces", [(3, 3, 3, 3), (6, 6), (1,) * 12, (5, 7)])
@pytest.mark.parametrize("rate", [0.1, 0.37])
def test_pieces_of_a_batch_keep_the_rows_that_the_whole_keeps(pieces: tuple[int, ...], rate: float) -> None:
    """Two views of 12 samples, as chunks and ranks cut them."""
    whole = [set(kept_rows(s)) for s in drawn([(24, 1)], rate, 6, [torch.arange(12)])]
    together: list[set[int]] = [set() for _ in whole]
    first = 0
    for count in pieces:
        place = torch.arange(first, first + count)
        for rows, subset in zip(together, drawn([(2 * count, 1)], rate, 6, [place]), strict=True):
            rows |= {row // count * 12 + first + row % count for row in kept_rows(subset)}
        first += count
    assert together == whole


def test_a_row_that_only_fills_the_shape_weighs_nothing() -> None:
    subsets = drawn([(2, 3), (1, 2)], 0.5, 50)
    assert {s.layout.sizes for s in subsets} == {((1, 3), (1, 2))}
    alone = {tuple(s.kept[3:].tolist()) for s in subsets}
    assert alone == {(0.0, 0.0), (1.0, 1.0)}  # the only row of a group is kept half of the time
    assert all(s.kept[:3].tolist() == [1.0] * 3 for s in subsets)  # one row of two always is
    assert {tuple(s.tokens[3:].tolist()) for s in subsets} == {(6, 7)}


def test_rows_that_are_no_whole_views_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows are no whole number of views of 3 samples"):
        rows_of_groups([(7, 1)], [torch.arange(3)], 2, CPU)
