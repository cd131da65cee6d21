"""DINO's terms between views, over prototypes.

Caron et al. 2021, arXiv 2104.14294, section 3; pairs are counted as in DINOv2 (Oquab et al. 2023, arXiv 2304.07193).
Shapes: B samples on this rank, L local views, K prototypes.
Collectives: a sum of counts where some samples are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.losses.targets import Targets, cross_entropy


def dino_terms(
    logits: Tensor, targets: Targets, views: Sequence[int], temperature: float, reference_counts: bool = False,
    present: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """The view-to-view terms, and the cross entropies [2*B] of the global views.

    logits [(2+L)*B, K] of all student views, targets of 2*B teacher views, `views` (2,) or (2, L). Samples
    outside `present` (bool [B]) are left out.
    """
    batch = len(targets.b) // 2
    num_local = sum(views[1:])
    pairs = 2 + 2 * num_local + (1 if reference_counts and not num_local else 0)
    mine, local = logits.split([2 * batch, num_local * batch])
    rows = torch.arange(2 * batch, device=logits.device)
    swapped = rows.roll(batch)[:, None]  # [2*B, 1] the teacher of the other view
    ce = cross_entropy(mine, targets, swapped, temperature)  # [2*B]
    terms = {"dino_global": 2 / pairs * mean_of(ce, None if present is None else present.repeat(2))}
    if num_local:
        both = rows.view(2, batch).T.repeat(num_local, 1)  # [L*B, 2] both teacher views of a sample
        local_ce = cross_entropy(local, targets, both, temperature)  # [L*B]
        keep = None if present is None else present.repeat(num_local)
        terms = {"dino_local": num_local / pairs * mean_of(local_ce, keep), **terms}
    return terms, ce
