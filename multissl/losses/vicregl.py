"""VICRegL's terms: those of VICReg on pooled features, and on tokens matched by place and by feature.

Bardes, Ponce, LeCun, NeurIPS 2022, arXiv 2210.01571, section 3.
Shapes: V views, B samples on this rank, N and M tokens, k matches, P projector width.
Collectives: a gather per view and per map, with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.losses.vicreg import moments
from multissl.precision import at_least_fp32

TERMS = ("invariance", "variance", "covariance")


def global_terms(z: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
    """The unweighted terms of V projections z [V, B, P], the first two of global views, of `present` samples [B]."""
    z = at_least_fp32(z)
    hinge, off_diagonal = moments(z, None if present is None else present.expand(len(z), -1))  # [V], [V]
    pairs = [mean_of((z[i] - z[j]).square(), present) for i, j in meetings(len(z))]
    return dict(zip(TERMS, (torch.stack(pairs).mean(), hinge.mean(), off_diagonal.mean()), strict=True))


def meetings(views: int) -> list[tuple[int, int]]:
    """The ordered pairs of a global view and any other."""
    return [(i, j) for i in range(2) for j in range(views) if i != j]


def local_terms(
    maps: Sequence[Tensor], places: Sequence[Tensor], keep: tuple[int, int], all_by_features: bool = False,
    real: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The unweighted terms of V maps of projections, each [B, N, P], by features and by `places` [B, N, 2].

    N may differ. Tokens outside `real`, bool [B, N] each, neither match nor count. In fp32 at least; bf16 inputs may
    change which tokens match.
    """
    found = []
    with torch.autocast(maps[0].device.type, enabled=False):
        maps = [at_least_fp32(m) for m in maps]
        for i, j in meetings(len(maps)):
            for by in (maps, places):
                everything = all_by_features and by is maps
                for one, other, count in ((i, j, keep[0]), (j, i, keep[1])):
                    number = 0 if everything else count
                    flags = (None, None) if real is None else (real[one], real[other])
                    pair = matched(maps[one], maps[other], by[one], by[other], number, *flags)
                    found.append(torch.stack(slot_terms(*pair)))
    total = torch.stack(found).sum(0) / (2 * len(meetings(len(maps))))  # [3]
    return dict(zip(TERMS, total, strict=True))


def matched(
    a: Tensor, b: Tensor, place_a: Tensor, place_b: Tensor, keep: int,
    real_a: Tensor | None = None, real_b: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Tokens of a [B, N, P] and their nearest of b [B, M, P] by places; the `keep` closest (0: all), [B, k, P] each.

    And which of these are matches of real tokens, bool [B, k], where it is said which are real: [B, N] and [B, M].
    """
    with torch.no_grad():
        exact = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(at_least_fp32(place_a), at_least_fp32(place_b), compute_mode=exact)  # [B, N, M]
        if real_a is not None and real_b is not None:
            apart = apart.masked_fill(~(real_a[:, :, None] & real_b[:, None]), torch.inf)
        distance, nearest = apart.min(-1)  # [B, N]
        count = min(keep or a.shape[1], a.shape[1])
        kept = distance.topk(count, largest=False).indices.sort(-1).values  # [B, k]
        found = nearest.gather(1, kept)  # [B, k]
        match = None if real_a is None else distance.gather(1, kept).isfinite()  # [B, k]
    pair = torch.take_along_dim(a, kept[..., None], 1), torch.take_along_dim(b, found[..., None], 1)
    return *pair, match


def slot_terms(a: Tensor, b: Tensor, match: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """VICReg's terms of matched tokens a, b [B, k, P]: statistics over the batch at each slot, means over slots.

    Slots that hold no match, by `match` bool [B, k], are left out.
    """
    sides = [moments(x.transpose(0, 1), None if match is None else match.T) for x in (a, b)]
    hinge, off_diagonal = (torch.stack(parts).mean() for parts in zip(*sides, strict=True))
    return mean_of((a - b).square(), match), hinge, off_diagonal
