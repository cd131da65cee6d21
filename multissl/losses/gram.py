"""Gram anchoring: how alike the patches of a picture are to each other stays as a teacher has it.

DINOv3 (Siméoni et al. 2025, arXiv 2508.10104, section 4, equation 2). With unit vectors of the student X_S and of the
teacher X_G of the same N patches the loss is || X_S X_S' - X_G X_G' ||^2 / N^2, the mean over pictures.
Shapes: R rows, N patches, D width.  Collectives: a sum of counts where patches are left out.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.precision import at_least_fp32

Negatives = Literal["kept", "clipped", "clipped_teacher"]
"""What becomes of negative similarities: nothing; 0 on both sides; or 0 on the teacher's side alone, which is what
DINOv3's `remove_only_teacher_neg` comes to."""


def gram_loss(
    student: Tensor, teacher: Tensor, negatives: Negatives = "kept", keep: Tensor | None = None
) -> Tensor:
    """Return the mean squared difference of cosines between the tokens of a row; student and teacher [R, N, D].

    The widths may differ. keep: bool [R, N], the tokens that count, or None for all.
    """
    with torch.autocast(student.device.type, enabled=False):
        cosines = [_cosines(at_least_fp32(x)) for x in (student, teacher)]  # [R, N, N]
        if negatives == "clipped":
            cosines[0] = cosines[0].clamp(min=0)
        if negatives != "kept":
            cosines[1] = cosines[1].clamp(min=0)
        errors = F.mse_loss(cosines[0], cosines[1], reduction="none")
        return mean_of(errors, None if keep is None else keep[:, :, None] & keep[:, None, :])


def _cosines(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.mT


def shrink(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return tokens [R, N', D] of a grid at the places of another one [R, N, D], bicubic without antialias (DINOv3)."""
    if grid == size:
        return tokens
    maps = at_least_fp32(tokens).mT.unflatten(2, grid)  # [R, D, *grid]
    return F.interpolate(maps, size, mode="bicubic", align_corners=False).flatten(2).mT
