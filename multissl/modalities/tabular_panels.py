"""The picture of a batch of table rows for the report: cells as text, replaced and hidden ones in colour.

Shapes: B samples, V views, C columns.  State: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from multissl.modalities.schema import Column
from multissl.types import Panel, Views

SAMPLES, COLUMNS = 6, 9
WIDE, HIGH, TEXT = 110, 18, 17
PAPER, HEAD, CHANGED, HIDDEN = (255, 255, 255), (228, 232, 240), (250, 205, 190), (170, 170, 170)


def cell_panel(
    views: Sequence[Views], columns: Sequence[Column], rates: Mapping[str, float], share: float, by: str
) -> list[Panel]:
    """The first rows of the batch, view under view, with what was done to them; none without views."""
    globals_ = [v for v in views if v.role == "global"] or list(views)
    if not globals_:
        return []
    shown = globals_[0]
    rows = min(SAMPLES, shown.batch)
    x = shown.x.detach().float().cpu().unflatten(0, (shown.num_views, -1))[:, :rows]  # [V, rows, C]
    base = next((v for v in views if v.role == "clean"), None)
    truth = shown.target if shown.target is not None else None if base is None else base.x
    # Without a clean copy, the first view stands for it.
    whole = (x[:1] if truth is None else truth.detach().float().cpu()[: shown.batch][:rows][None]).expand_as(
        x
    )
    hidden, valid = (
        None if m is None else m.cpu().unflatten(0, (shown.num_views, -1))[:, :rows]
        for m in (shown.mask.hidden if shown.mask is not None else None, shown.valid)
    )
    picked = columns[:COLUMNS]
    lines = rows * (shown.num_views + 1) + 1
    page = Image.new("RGB", (WIDE * len(picked), HIGH * lines), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()

    def put(line: int, place: int, text: str, colour: tuple[int, int, int]) -> None:
        left, top = place * WIDE, line * HIGH
        draw.rectangle((left, top, left + WIDE - 2, top + HIGH - 2), fill=colour)
        said = text if len(text) <= TEXT else text[: TEXT - 1] + "."
        draw.text((left + 3, top + 3), said.encode("ascii", "replace").decode(), fill=(20, 20, 20), font=font)

    for place, column in enumerate(picked):
        put(0, place, column.name, HEAD)
        for row in range(rows):
            first = 1 + row * (shown.num_views + 1)
            put(first, place, column.decode(float(whole[0, row, place])), PAPER)
            for view in range(shown.num_views):
                value, said = x[view, row, place], ""
                colour = CHANGED if value != whole[view, row, place] else HEAD
                absent = valid is not None and not valid[view, row, place]
                masked = hidden is not None and bool(hidden[view, row, place]) and colour == HEAD
                if absent or masked:
                    colour = HIDDEN
                else:
                    said = column.decode(float(value))
                put(first + 1 + view, place, said, colour)
    changed = _share(shown.x, shown, truth)
    least = min(rates, key=lambda name: rates[name])
    caption = (
        f"White lines are rows of the training data ({len(picked)} of {len(columns)} columns), the lines below are "
        f"their views: red cells were replaced ({by}), grey ones are hidden from the encoder."
        + (f" {changed:.0%} of this batch's cells differ from their row's." if changed is not None else "")
        + f" A share of {share:g} drawn anew changes {np.mean([*rates.values()]):.0%} of the cells on average, "
        f"least in {least} ({rates[least]:.0%}): others get the value they had."
    )
    return [Panel("The table as the encoder sees it", np.asarray(page), caption)]


def _share(x: Tensor, shown: Views, truth: Tensor | None) -> float | None:
    if truth is None:
        return None
    whole = truth.detach()[: shown.batch].repeat(shown.num_views, 1)
    return (x.detach() != whole).float().mean().item()
