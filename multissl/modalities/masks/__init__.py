"""Which tokens of a grid are hidden: one function draws every kind of mask.

random, block: cells of the grid, of each slot of time where there are three axes; random hides the cells of all slots
one by one. tube: random cells, the same in every slot. time, frequency, time_frequency: whole columns or rows of a
spectrogram. Where a plan has a context, its first mask hides all but that and the others are targets (`multiblock`), or
one target is a union of blocks (`unions`).
Masks are drawn on the CPU, inside fixed groups of samples from generators that depend on the group alone, so that any
number of ranks draws the same ones; the padded number of hidden tokens is the same at every step. A kind of mask is a
`Hiding` (`rows`); texts have one of their own, which goes by words.
Shapes: B samples of this rank, V views, R = V*B rows, view-major, N tokens.  State: none.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from multissl.contract.data import Mask
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks.bands import BANDS, Bands
from multissl.modalities.masks.cells import SMALLEST, Cells, plane_of
from multissl.modalities.masks.multiblock import context_masks
from multissl.modalities.masks.rows import masks_of
from multissl.modalities.masks.unions import Lasting, union_context
from multissl.random import RowRandom

Hidden = Literal["random", "block", "tube", "time", "frequency", "time_frequency"]


def draw_masks(
    plan: ViewPlan,
    kind: Hidden,
    grid: tuple[int, ...],
    group: int,
    rng: RowRandom,
    square: int = 1,
    *,
    union: int = 0,
    lasting: Lasting | None = None,
    reference: bool = False,
    real: Tensor | None = None,
    smallest: float = SMALLEST,
) -> tuple[Mask, ...]:
    """Return the masks of this rank's global views that a plan asks for, each over R rows of a grid of tokens.

    `group` samples share out the range of ratios among them. `square`: cells go together in squares of that side.
    `union`: a context's target is a union of so many blocks, which last as `lasting` says. `reference`: contexts as
    I-JEPA's code draws them.
    `real` int64 [R]: how many columns of time, the first axis, are no padding, which is hidden in the same share.
    `smallest`: area from which those of blocks are drawn, in squares.
    """
    slots, plane = plane_of(kind, grid)
    if plan.context_ratio is not None and union:
        return union_context(plan, plane, slots, union, rng, lasting)
    if plan.context_ratio is not None:
        cells = "random" if kind in ("random", "tube") else "block"
        return context_masks(plan, cells, plane, slots, rng, reference)
    if kind != "tube" and (real is not None or kind in BANDS):
        return masks_of(plan, Bands(plan, kind, plane, real, plan.num_global * rng.rows), group, rng)
    return masks_of(plan, Cells(kind, grid, square, smallest), group, rng)
