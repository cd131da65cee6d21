"""Norms of gradients, sharded or not: clipping and the largest entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multissl.parallel.ranks import world
from multissl.parallel.sharding import full, local


def clip_gradients(groups: dict[str, list[nn.Parameter]], limit: float) -> dict[str, Tensor]:
    """Scale each group's gradients to a norm of at most `limit` (0: leave them); return the norms before, by group."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norms: dict[str, Tensor] = {}
    for name, parameters in groups.items():
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = get_total_norm(grads)
        norms[name] = full(norm)
        if limit > 0 and grads:
            clip_grads_with_norm_(parameters, limit, norms[name])
    return norms


def largest_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the L-infinity norm of the gradient, over all ranks."""
    grads = [local(p.grad) for p in parameters if p.grad is not None and local(p.grad).numel()]
    peaks = torch._foreach_norm(grads, math.inf) if grads else ()  # pyright: ignore[reportPrivateImportUsage]
    peak = torch.stack(peaks).max() if peaks else torch.zeros(())
    if world() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return peak
