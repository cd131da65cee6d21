"""KoLeo: spread features out by pushing each one away from its nearest neighbor.

Sablayrolles et al., ICLR 2019, arXiv 1806.03198; as in DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the negative mean
log distance to the nearest other unit vector. Neighbors are searched in fixed groups of G samples by their number in
the global batch, so the loss does not depend on the number of ranks; with G = the batch of a GPU it is DINOv2's.
Shapes: B rows on this rank, W ranks, G rows per group, D width.  State: none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import gather
from multissl.parallel.ranks import rank, world
from multissl.precision import at_least_fp32

EPS = 1e-8


def koleo(x: Tensor, neighbors: int = 1, present: Tensor | None = None) -> Tensor:
    """Minus the log distance of every row of x [..., G, D] to its `neighbors` nearest, averaged over them: [..., G].

    Rows outside `present` (bool [..., G]) are nobody's neighbors. Always in fp32 (in fp16 two equal rows give inf); the
    gradient flows into both ends of a pair.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(at_least_fp32(x), dim=-1, eps=EPS)
        with torch.no_grad():
            likeness = unit @ unit.mT  # [..., G, G]
            likeness.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
            if present is not None:
                likeness.masked_fill_(~present.unsqueeze(-2), -torch.inf)
            nearest = likeness.topk(neighbors, dim=-1).indices  # [..., G, neighbors]
        picked = torch.take_along_dim(
            unit.unsqueeze(-3), nearest.unsqueeze(-1), dim=-2
        )  # [..., G, neighbors, D]
        distance = (unit.unsqueeze(-2) - picked + EPS).norm(dim=-1)  # [..., G, neighbors]
        return -(distance + EPS).log().mean(-1)


def check_groups(samples: int, group: int) -> None:
    """Raise a ValueError where groups of a batch leave one sample without another."""
    if samples < 2 or samples % group == 1:
        raise ValueError(
            f"koleo compares samples in groups of objective.koleo_group={group}, and a batch of {samples} leaves one "
            "alone: change batch_size, or set objective.koleo_weight=0"
        )


def grouped_koleo(x: Tensor, group: int, neighbors: int = 1, present: Tensor | None = None) -> Tensor:
    """Mean KoLeo of this rank's rows x [B, D] among groups of `group` rows of the global batch.

    Rows outside `present` (bool [B]) are left out, and so are those that they leave without enough neighbors.
    """
    rows = len(x)
    alone = rows % group == 0 or world() == 1  # this rank owns whole groups
    everyone = x if alone else gather(x)  # [W*B, D]
    here = present if alone or present is None else gather(present.long()).bool()  # [W*B]
    total = len(everyone)
    check_groups(total, group)
    whole = total - total % group
    parts: list[Tensor] = []
    enough: list[Tensor] = []
    for low, high, size in ((0, whole, group), (whole, total, total - whole)):
        if low == high:
            continue
        flags = None if here is None else here[low:high].unflatten(0, (-1, size))  # [groups, size]
        parts.append(koleo(everyone[low:high].unflatten(0, (-1, size)), neighbors, flags).flatten())
        if flags is not None:
            enough.append((flags & (flags.sum(1, keepdim=True) > neighbors)).flatten())
    mine = slice(None) if alone else slice(rank() * rows, (rank() + 1) * rows)
    return mean_of(torch.cat(parts)[mine], torch.cat(enough)[mine] if enough else None)
