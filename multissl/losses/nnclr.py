"""NNCLR's nearest neighbors in a queue, and their contrast with predictions.

Dwibedi et al., ICCV 2021, arXiv 2104.14548, equations 2 and 3.
Shapes: B samples on this rank, K queued embeddings, P width.  Collectives: gathers of predictions, with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.losses.infonce import infonce_terms
from multissl.losses.nce import Relations, one_way, scores


@torch.no_grad()
def neighbors(z: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """The row of queue [K, P] with the highest cosine to each z [B, P], without gradient, and its number [B]."""
    place = scores(z, queue).argmax(1)
    return queue[place], place


def nnclr_loss(
    near: Tensor, p: Tensor, relation: Relations, temperature: float, two_view: bool = False
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of neighbors [B, P] that look for predictions p [B, P] of the same samples.

    bf16 inputs give the fp32 loss within 0.02 / temperature.
    """
    if not two_view:
        return one_way(near, p, relation, temperature)
    terms, stats = infonce_terms(torch.stack([near, p]), relation, temperature)
    return terms["nce"], stats["accuracy"]
