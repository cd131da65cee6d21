"""VICRegL's terms: those of VICReg on pooled features, and on tokens matched by place and by feature.

Bardes, Ponce, LeCun, NeurIPS 2022, arXiv 2210.01571, section 3.
Shapes: V views, B samples on this rank, N and M tokens, k matches, P projector width.
Collectives: a gather per view and per map, with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.vicreg import moments
from multissl.precision import at_least_fp32

TERMS = ("invariance", "variance", "covariance")


def global_terms(z: Tensor) -> dict[str, Tensor]:
    """The unweighted terms of V projections z [V, B, P], the first two of global views."""
    z = at_least_fp32(z)
    hinge, off_diagonal = moments(z)  # [V], [V]
    pairs = [F.mse_loss(z[i], z[j]) for i, j in meetings(len(z))]
    return dict(zip(TERMS, (torch.stack(pairs).mean(), hinge.mean(), off_diagonal.mean()), strict=True))


def meetings(views: int) -> list[tuple[int, int]]:
    """The ordered pairs of a global view and any other."""
    return [(i, j) for i in range(2) for j in range(views) if i != j]


def local_terms(
    maps: Sequence[Tensor], places: Sequence[Tensor], keep: tuple[int, int], all_by_features: bool = False
) -> dict[str, Tensor]:
    """The unweighted terms of V maps of projections, each [B, N, P], by features and by `places` [B, N, 2].

    N may differ. In fp32 at least; bf16 inputs may change which tokens match.
    """
    found = []
    with torch.autocast(maps[0].device.type, enabled=False):
        maps = [at_least_fp32(m) for m in maps]
        for i, j in meetings(len(maps)):
            for by in (maps, places):
                everything = all_by_features and by is maps
                for one, other, count in ((i, j, keep[0]), (j, i, keep[1])):
                    number = 0 if everything else count
                    pair = matched(maps[one], maps[other], by[one], by[other], number)
                    found.append(torch.stack(slot_terms(*pair)))
    total = torch.stack(found).sum(0) / (2 * len(meetings(len(maps))))  # [3]
    return dict(zip(TERMS, total, strict=True))


def matched(a: Tensor, b: Tensor, place_a: Tensor, place_b: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Tokens of a [B, N, P] and their nearest of b [B, M, P] by places; the `keep` closest (0: all), [B, k, P] each."""
    with torch.no_grad():
        exact = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(at_least_fp32(place_a), at_least_fp32(place_b), compute_mode=exact)  # [B, N, M]
        distance, nearest = apart.min(-1)  # [B, N]
        count = min(keep or a.shape[1], a.shape[1])
        kept = distance.topk(count, largest=False).indices.sort(-1).values  # [B, k]
        found = nearest.gather(1, kept)  # [B, k]
    return torch.take_along_dim(a, kept[..., None], 1), torch.take_along_dim(b, found[..., None], 1)


def slot_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """VICReg's terms of matched tokens a, b [B, k, P]: statistics over the batch at each slot, means over slots."""
    sides = [moments(x.transpose(0, 1)) for x in (a, b)]
    hinge, off_diagonal = (torch.stack(parts).mean() for parts in zip(*sides, strict=True))
    return F.mse_loss(a, b), hinge, off_diagonal
