"""VICReg's terms: the distance of views, the hinge on variance, squared covariances.

Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906, equations 1 to 6; variance is averaged over views and covariance
summed, as in the official code.
Shapes: V views, B samples on this rank, W ranks, P projector width.
Collectives: a gather per view, with gradient; where samples lack a stream also sums of counts.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import gather
from multissl.precision import at_least_fp32


def vicreg_terms(z: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
    """The unweighted terms of V projections z [V, B, P], V > 1; the statistics span all W ranks.

    present bool [V, B] leaves out the rows of a view that are not there. In fp32 at least: of inputs rounded to bf16
    the terms agree to 2% with those of the inputs themselves.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_fp32(z)
        hinge, off_diagonal = moments(z, present)  # [V], [V]
        if present is None:
            distance = torch.stack([F.mse_loss(a, b) for a, b in combinations(z, 2)]).mean()
        else:
            distance = _distance(z, present)
        return {"invariance": distance, "variance": hinge.mean(), "covariance": off_diagonal.sum()}


def _distance(z: Tensor, present: Tensor) -> Tensor:
    """Mean squared distance of the views of a sample, over samples that have both; z [V, B, P], present [V, B]."""
    found = []
    for (a, here), (b, there) in combinations(zip(z, present, strict=True), 2):
        found.append(mean_of((a - b).pow(2).mean(-1), here & there))
    return torch.stack(found).mean()


def moments(z: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What z [V, B, P] lacks in variance and has in covariance, each [V], over the rows of all ranks.

    The hinge on the standard deviation, a mean over features; the squared covariances off the diagonal, over P.
    """
    everyone = torch.stack([gather(view) for view in z])  # [V, W*B, P]
    rows = everyone.shape[1]
    if rows < 2:
        raise ValueError("vicreg needs 2 or more samples per step, got 1: raise batch_size")
    if present is None:
        count = torch.full((len(z), 1), rows, dtype=z.dtype, device=z.device)
        centered = everyone - everyone.mean(1, keepdim=True)
    else:
        here = gather(present.T.to(z.dtype).contiguous()).T.unsqueeze(-1)  # [V, W*B, 1]
        count = here.sum(1)  # [V, 1]
        mean = (everyone * here).sum(1, keepdim=True) / count.clamp(min=1).unsqueeze(-1)
        centered = (everyone - mean) * here
    free = (count - 1).clamp(min=1)  # [V, 1]
    std = (centered.pow(2).sum(1) / free + 1e-4).sqrt()  # [V, P]
    covariance = centered.mT @ centered / free.unsqueeze(-1)  # [V, P, P]
    off_diagonal = covariance.pow(2).sum((1, 2)) - covariance.diagonal(dim1=1, dim2=2).pow(2).sum(1)  # [V]
    return F.relu(1 - std).mean(1), off_diagonal / z.shape[-1]
