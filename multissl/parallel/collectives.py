"""Sums and gathers over ranks, with gradient where losses need it.

As every rank differentiates its own loss and the trainer averages parameter gradients over ranks, the backward of a
gather or a sum adds up what all ranks ask of a value.
Shapes: B rows of this rank, W ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from multissl.parallel.ranks import rank, world


def _sum(x: Tensor) -> Tensor:
    """Return the sum over ranks; a tensor without numbers, of which operations are counted, is sent nowhere."""
    total = x.contiguous().clone()
    if not isinstance(x, FakeTensor):
        dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        if not isinstance(x, FakeTensor):
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _sum(grads[0]).chunk(world())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _sum(grads[0])


def gather(x: Tensor) -> Tensor:
    """x [B, ...] of every rank in rank order, [W*B, ...], with gradient. All ranks must hold equally many rows."""
    return cast(Tensor, _Gather.apply(x)) if world() > 1 else x


def sum_ranks(x: Tensor) -> Tensor:
    """Return the sum of x over ranks, with gradient."""
    return cast(Tensor, _Sum.apply(x)) if world() > 1 else x


def row_labels(rows: int, device: torch.device | None = None) -> Tensor:
    """Return the global numbers of this rank's rows, int64 [rows]."""
    return torch.arange(rows, device=device) + rank() * rows


def all_true(flags: Tensor) -> Tensor:
    """Return which of some flags hold on every rank. bool, any shape."""
    if world() == 1:
        return flags
    lowest = flags.float()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return lowest > 0.5


def broadcast_object(value: Any) -> Any:
    """Return, on every rank, a picklable value of rank 0."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the picklable values of all ranks, in rank order, on every rank."""
    values = [value]
    if world() > 1:
        values = [None] * world()
        dist.all_gather_object(values, value)
    return values
