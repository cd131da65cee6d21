"""CLIP's contrast between streams, both ways, and the gap between their embeddings.

Radford et al., ICML 2021, arXiv 2103.00020, figure 3.
Shapes: S streams, B samples on this rank, P width.  Collectives: gathers of embeddings, with gradient.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.nce import Relations, one_way


def clip_loss(
    z: Tensor, relation: Relations, temperature: float | Tensor, present: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over pairs of S streams' embeddings z [S, B, P], and accuracy_forth and accuracy_back.

    `present` bool [S, B]: who has which stream. bf16 z gives the fp32 loss within 0.02 / temperature.
    """
    losses, forth, back = [], [], []
    for a, b in combinations(range(len(z)), 2):
        keep = None if present is None else present[a] & present[b]
        there, hits_there = one_way(z[a], z[b], relation, temperature, keep)
        again, hits_again = one_way(z[b], z[a], relation, temperature, keep)
        losses.append((there + again) / 2)
        forth.append(hits_there)
        back.append(hits_again)
    stats = {"accuracy_forth": torch.stack(forth).mean(), "accuracy_back": torch.stack(back).mean()}
    return torch.stack(losses).mean(), stats


@torch.no_grad()
def modality_gap(z: Tensor, present: Tensor | None = None) -> Tensor:
    """The mean distance between the centers of the streams' unit embeddings z [S, B, P]; 0 where they mix.

    `present` bool [S, B]: who has which stream.
    """
    here = z.new_ones(z.shape[:2]) if present is None else present.to(z.dtype)  # [S, B]
    centers = (F.normalize(z, dim=-1) * here[..., None]).sum(1) / here.sum(1, keepdim=True).clamp(min=1)
    return torch.stack([(a - b).norm() for a, b in combinations(centers, 2)]).mean()
