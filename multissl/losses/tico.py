"""TiCo's terms: views of a sample come together, and avoid the directions that all samples have taken lately.

Zhu et al. 2022, arXiv 2206.10698. With unit vectors z and a moving covariance C of them:
  invariance  1 - cos between a view and the teacher's view of the same sample
  covariance  z'Cz, the share of a view that lies along what is common
C has these samples in it already and passes no gradient, as in lightly.
Shapes: B samples on this rank, P features.  Collectives: sums of products and counts, without gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import sum_ranks
from multissl.precision import at_least_fp32


@torch.no_grad()
def moved_covariance(z: Tensor, covariance: Tensor, momentum: float, present: Tensor | None = None) -> Tensor:
    """Return a covariance [P, P] moved towards that of the unit vectors of z [B, P] of all ranks, not centered.

    Without gradient. present bool [B] leaves samples out; where there is none it stays. In fp32 at least.
    """
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(at_least_fp32(z), dim=-1)
        if present is not None:
            unit = unit.masked_fill(~present[:, None], 0)
        rows = unit.new_full((), len(unit)) if present is None else present.sum().to(unit.dtype)
        count = sum_ranks(rows)
        before = covariance.to(unit.dtype)
        moved = torch.lerp(sum_ranks(unit.mT @ unit) / count.clamp(min=1), before, momentum)
        return torch.where(count > 0, moved, before)


def tico_terms(
    z: Tensor, target: Tensor, covariance: Tensor, present: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the unweighted terms of views z and target, both [B, P], under a covariance [P, P].

    present bool [B] leaves samples out. In fp32 at least.
    """
    with torch.autocast(z.device.type, enabled=False):
        a, b = (F.normalize(at_least_fp32(x), dim=-1) for x in (z, target))
        along = ((a @ covariance.to(a.dtype)) * a).sum(-1)  # [B]
        return {"invariance": mean_of(1 - (a * b).sum(-1), present), "covariance": mean_of(along, present)}
