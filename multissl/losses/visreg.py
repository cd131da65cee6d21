"""VISReg's terms: the center, the scale and the shape of embeddings, each against the normal distribution's.

arXiv 2606.02572. Of a view with mean mu and biased deviation s of each feature:
  center  mean of mu^2
  scale   mean of (s - 1)^2
  shape   sliced Wasserstein distance: (z - mu) / s, with no gradient into s, is projected on random directions and
          sorted, and its squared distance from the quantiles of the normal distribution averaged
so that embeddings close to one point are pushed apart by a gradient that grows, where SIGReg's vanishes. Quantiles of
(2i / (N + 1) - 1) clip the tails: of finitely many samples the shape is never 0.
Shapes: V views, B samples on this rank, W ranks, P projector width, K directions, N samples of a view on all ranks.
Collectives: a gather, with gradient; every rank takes the terms of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.parallel.collectives import gather
from multissl.precision import at_least_fp32

EPS = 1e-6
"""Added to the deviations."""


def visreg_terms(z: Tensor, directions: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
    """Return the unweighted terms of projections z [V, B, P] along unit directions [P, K], each a mean over views.

    present bool [V, B] leaves out rows that are not there. In fp32 at least.
    """
    with torch.autocast(z.device.type, enabled=False):
        everyone = gather(at_least_fp32(z).transpose(0, 1).contiguous()).transpose(0, 1)  # [V, W*B, P]
        here = torch.ones(everyone.shape[:2], dtype=torch.bool, device=z.device)
        if present is not None:
            here = gather(present.T.long().contiguous()).T > 0
        if everyone.shape[1] < 2:
            raise ValueError("visreg needs 2 or more samples per step, got 1: raise batch_size")
        views = [_view_terms(*view, directions.to(everyone)) for view in zip(everyone, here, strict=True)]
        return {name: torch.stack([terms[name] for terms in views]).mean() for name in views[0]}


def _view_terms(z: Tensor, here: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Return the terms of one view z [N, P], of the rows in `here` (bool [N])."""
    rows = here[:, None]
    count = here.sum().clamp(min=1).to(z.dtype)
    mean = z.masked_fill(~rows, 0).sum(0) / count  # [P]
    centered = (z - mean).masked_fill(~rows, 0)  # [N, P]
    std = centered.norm(dim=0) / count.sqrt() + EPS  # [P]
    along = (centered / std.detach()) @ directions  # [N, K]
    ordered = along.masked_fill(~rows, torch.inf).sort(0).values  # rows that are not there come last
    rank = torch.arange(1, len(z) + 1, device=z.device, dtype=z.dtype)[:, None]  # [N, 1]
    counted = rank <= here.sum()
    normal = 2**0.5 * torch.erfinv(2 * rank / (count + 1) - 1)  # no number behind the last row
    gaps = (ordered.masked_fill(~counted, 0) - normal.masked_fill(~counted, 0)).square()
    return {
        "center": mean.square().mean(),
        "scale": (std - 1).square().mean() * here.any(),
        "shape": gaps.sum() / (count * directions.shape[1]),
    }
