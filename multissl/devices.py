"""What keeps host and device from waiting for each other: small tensors that travel together, constants that travel
once, and answers that are read when they have arrived.

State: the constants of the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

SMALL = 1 << 20
"""Bytes from which on a tensor is copied by itself."""
ALIGNED = 16
"""Bytes at whose multiples tensors begin in a common buffer, as vectorized reads want it."""
T = TypeVar("T")


def copied(tree: T, device: torch.device | str) -> T:
    """Return nested tensors of the host on a device, without a wait; all small ones in one copy.

    The small ones lie in one buffer, page-locked where a GPU reads it, and come back as views of its copy.
    """
    device = torch.device(device)
    leaves, spec = tree_flatten(tree)
    here = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.device != device]
    small = [i for i in here if leaves[i].device.type == "cpu" and leaves[i].nbytes < SMALL]
    if small:
        tensors = [leaves[i] for i in small]
        buffer = packed(tensors)
        if device.type == "cuda":
            buffer = buffer.pin_memory()
        parts = unpacked(buffer.to(device, non_blocking=True), tensors)
        for i, part in zip(small, parts, strict=True):
            leaves[i] = part
    for i in here:
        leaves[i] = leaves[i].to(device, non_blocking=True)
    return tree_unflatten(leaves, spec)


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bytes of tensors in one buffer, uint8, each at a multiple of `ALIGNED`."""
    buffer = torch.zeros(sum(_room(tensor) for tensor in tensors), dtype=torch.uint8)
    start = 0
    for tensor in tensors:
        buffer[start : start + tensor.nbytes] = tensor.contiguous().flatten().view(torch.uint8)
        start += _room(tensor)
    return buffer


def unpacked(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that `packed` made a buffer of, as views of a copy of it."""
    parts, start = [], 0
    for tensor in tensors:
        parts.append(buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return parts


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNED) * ALIGNED


class ToHost:
    """A tensor on its way to the host, behind the work that the device has been given so far."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)  # page-locked where it comes from a GPU
        self._arrived = torch.cuda.Event() if tensor.device.type == "cuda" else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> Tensor:
        """Return it on the host, once it has arrived."""
        if self._arrived:
            self._arrived.synchronize()
        return self._copy


@functools.lru_cache(maxsize=256)
def made_once(
    make: Callable[..., Tensor], args: tuple[Any, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return what a function makes on the host of plain values, on a device; made and copied once in a process.

    Nobody writes into it.
    """
    with torch.inference_mode(False):
        return make(*args).to(device, dtype)


def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers as a tensor [n] on a device, copied there once in a process. Nobody writes into it."""
    return made_once(_numbers, (values,), device, dtype)


def _numbers(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
