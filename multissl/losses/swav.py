"""SwAV's swapped prediction of codes.

Caron et al., NeurIPS 2020, arXiv 2006.09882, equations 1 to 5.
Shapes: V views, A coded views, B samples on this rank, Q queued rows, K prototypes.
Collectives: Sinkhorn's potentials.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.losses.sinkhorn import sinkhorn
from multissl.losses.targets import Targets, cross_entropy


def swav_loss(
    scores: Tensor, coded: int, temperature: float = 0.1, epsilon: float = 0.05, rounds: int = 3,
    queue: Tensor | None = None, use_queue: Tensor | None = None,
) -> tuple[Tensor, list[Targets], list[Tensor]]:  # fmt: skip
    """The loss, the codes of each coded view and the cross entropies [(V-1)*B] with them.

    scores [V, B, K], cosines, of which the first `coded` views are coded; queue [A, Q, K] scores of this rank's part of
    the queue, used where `use_queue` (bool []; None: used) says so. All ranks call it. Computed in fp32 at least; bf16
    scores, by their rounding alone, move the loss by 3 % at most.
    """
    views, batch, _ = scores.shape
    if views < 2:
        raise ValueError("swav needs 2 or more views of a sample, got 1: raise the number of views")
    rows = torch.arange(batch, device=scores.device).repeat(views - 1)[:, None]  # [(V-1)*B, 1]
    codes: list[Targets] = []
    ce: list[Tensor] = []
    for i in range(coded):
        logits, real = scores[i].detach(), None  # [B, K]
        if queue is not None:
            logits = torch.cat([logits, queue[i].to(logits.dtype)])  # [B+Q, K]
            used = rows.new_ones((), dtype=torch.bool) if use_queue is None else use_queue
            real = torch.cat([used.new_ones(batch), used.expand(queue.shape[1])])
        q = sinkhorn(logits, epsilon, real, rounds)
        codes.append(q.part(slice(batch)))
        others = torch.cat([scores[:i], scores[i + 1 :]]).flatten(0, 1)  # [(V-1)*B, K]
        ce.append(cross_entropy(others, codes[-1], rows, temperature))
    return torch.stack(ce).mean(), codes, ce
