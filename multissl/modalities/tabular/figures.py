"""The picture of a batch of table rows for the report: cells as text, replaced and hidden ones in color.

A row of the table, under it each of its views: a cell that the view keeps is pale, one that was replaced is red and
holds the new value, one that the encoder does not see is dark.
Shapes: B samples, V views, C columns.  State: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.learning import Figure
from multissl.modalities.tabular.schema import Column

SAMPLES, COLUMNS = 6, 8
WIDE, HIGH, SIDE, TEXT = 130, 22, 72, 19
PAPER, HEAD, CHANGED, HIDDEN = (255, 255, 255), (228, 232, 240), (250, 205, 190), (90, 90, 90)
INK, PALE, LIGHT = (20, 20, 20), (165, 165, 165), (235, 235, 235)


class _Rows(NamedTuple):
    """The first rows of a batch: as they are [B, C], as the views have them [V, B, C], and what is hidden there."""

    whole: Tensor
    x: Tensor
    hidden: Tensor | None


def cell_panel(
    views: Sequence[Views], columns: Sequence[Column], rates: Mapping[str, float], by: str
) -> list[Figure]:
    """The first rows of the batch, view under view, with what was done to them; none without views.

    `rates` says by column how many cells change where all of them are drawn anew.
    """
    globals_ = [v for v in views if v.role == "global"] or list(views)
    if not globals_:
        return []
    shown = globals_[0]
    base = next((v for v in views if v.role == "clean"), None)
    truth = shown.target if shown.target is not None else None if base is None else base.x
    page = _page(_first(shown, truth), columns[:COLUMNS])
    caption = (
        f"{min(COLUMNS, len(columns))} of {len(columns)} columns. Below each row of the training data, its "
    )
    caption += "views: pale cells are as they were, red ones were replaced, dark ones are hidden. "
    if truth is not None:
        caption += _share_changed(shown, truth)
    least, usual = min(rates, key=lambda name: rates[name]), np.mean([*rates.values()])
    caption += (
        f"A cell drawn anew ({by}) often gets the value it had: {usual:.0%} of them change, "
        f"fewest in {least} ({rates[least]:.0%})."
    )
    return [Figure("The table as the encoder sees it", np.asarray(page), caption)]


def _first(shown: Views, truth: Tensor | None) -> _Rows:
    """Without a clean copy, the first view stands for it."""
    rows = min(SAMPLES, shown.batch)
    x = shown.x.detach().float().cpu().unflatten(0, (shown.num_views, -1))[:, :rows]
    whole = x[0] if truth is None else truth.detach().float().cpu()[: shown.batch][:rows]
    hidden = None if shown.valid is None else ~shown.valid
    if shown.mask is not None:
        replaced = (
            shown.x != shown.x
            if truth is None
            else shown.x != truth[: shown.batch].repeat(shown.num_views, 1)
        )
        masked = shown.mask.hidden & ~replaced  # a mask of replaced cells tells the same twice
        hidden = masked if hidden is None else hidden | masked
    if hidden is not None:
        hidden = hidden.cpu().unflatten(0, (shown.num_views, -1))[:, :rows]
    return _Rows(whole, x, hidden)


def _page(rows: _Rows, columns: Sequence[Column]) -> Image.Image:
    views, count = rows.x.shape[:2]
    page = Image.new("RGB", (SIDE + WIDE * len(columns), HIGH * (1 + count * (views + 1))), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)

    def put(line: int, left: int, wide: int, text: str, color: tuple[int, ...], ink: tuple[int, ...]) -> None:
        top = line * HIGH
        draw.rectangle((left, top, left + wide - 2, top + HIGH - 2), fill=color)
        said = text if len(text) <= TEXT else text[: TEXT - 1] + "."
        draw.text((left + 4, top + 3), said.encode("ascii", "replace").decode(), fill=ink, font=font)

    for row in range(count):
        first = 1 + row * (views + 1)
        put(first, 0, SIDE, f"row {row + 1}", HEAD, INK)
        for view in range(views):
            put(first + 1 + view, 0, SIDE, "view" if views == 1 else f"view {view + 1}", PAPER, PALE)
    for place, column in enumerate(columns):
        left = SIDE + place * WIDE
        put(0, left, WIDE, column.name, HEAD, INK)
        for row in range(count):
            first = 1 + row * (views + 1)
            whole = rows.whole[row, place]
            was = column.decode(float(whole))
            put(first, left, WIDE, was, HEAD, INK)
            for view in range(views):
                value, line = rows.x[view, row, place], first + 1 + view
                if rows.hidden is not None and rows.hidden[view, row, place]:
                    put(line, left, WIDE, "hidden", HIDDEN, LIGHT)
                elif value != whole:
                    put(line, left, WIDE, f"> {column.decode(float(value))}", CHANGED, INK)
                else:
                    put(line, left, WIDE, was, PAPER, PALE)
    return page


def _share_changed(shown: Views, truth: Tensor) -> str:
    """Return a sentence about how many of the cells that are seen differ from their row's."""
    changed = (shown.x.detach() != truth.detach()[: shown.batch].repeat(shown.num_views, 1)).float()
    share = changed.mean() if shown.valid is None else changed[shown.valid].mean()
    return f"{share.item():.0%} of the cells seen differ from their row's. "
