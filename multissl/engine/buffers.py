"""The buffers of a learner as they were before a step, for a step that is skipped.

A forward pass moves batch norm statistics, centers and whatever else its modules update before anybody knows whether
the loss is finite; one batch with a NaN would stay in them for good. Every buffer is copied, those of queues too: only
their objective knows when it writes, and a copy of a queue is little beside scoring it. A transformer has next to none.
What modules keep outside buffers until `after_step` is set anew by every forward pass.
State: two copies of every buffer; nothing of them is saved.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Group:
    """Buffers of one device and dtype, and room for two copies of them, each in one tensor."""

    buffers: list[Tensor]
    kept: Tensor
    """As they were before the step."""
    moved: Tensor
    """As they are after it."""

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Return each buffer's part of a copy."""
        pieces = flat.split([b.numel() for b in self.buffers])
        return [piece.view(b.shape) for piece, b in zip(pieces, self.buffers, strict=True)]


class Buffers:
    """Copies of a module's buffers on this rank; `keep` before a forward pass, `settle` when the step is made."""

    def __init__(self, module: nn.Module) -> None:
        holders = [m._buffers for m in module.modules() if m._buffers]
        self.slots = [(held, name) for held in holders for name in held]
        self.originals: list[Tensor | None] = []
        self.groups: list[Group] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy every buffer as it is now."""
        if not self._in_place(self.originals):
            self.originals = [held[name] for held, name in self.slots]
            self.groups = grouped([b for b in self.originals if b is not None])
        for group in self.groups:
            copy(group.parts(group.kept), group.buffers)

    @torch.no_grad()
    def settle(self, counted: Tensor) -> None:
        """Leave the buffers as they are where a step counted, else put back what `keep` copied. bool []

        Nothing waits for the device, unless a module put another tensor in the place of a buffer.
        """
        if not self._in_place(self.originals):
            if not counted.item():
                self.restore()
            return
        for group in self.groups:
            moved = group.parts(group.moved)
            copy(moved, group.buffers)
            torch.where(counted, group.moved, group.kept, out=group.moved)
            copy(group.buffers, moved)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what `keep` copied; a buffer that was replaced by another tensor is the earlier one again."""
        for (held, name), original in zip(self.slots, self.originals, strict=True):
            held[name] = original
        for group in self.groups:
            copy(group.buffers, group.parts(group.kept))

    def _in_place(self, tensors: list[Tensor | None]) -> bool:
        """Return whether these are the tensors that the modules hold."""
        now = [held[name] for held, name in self.slots]
        return len(now) == len(tensors) and all(a is b for a, b in zip(now, tensors, strict=True))


def copy(to: list[Tensor], of: list[Tensor]) -> None:
    """Copy tensors of one device and dtype in one kernel."""
    torch._foreach_copy_(to, of)  # pyright: ignore[reportPrivateImportUsage]


def grouped(buffers: list[Tensor]) -> list[Group]:
    """Return the buffers that can be written in place, with room for copies, by device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for buffer in buffers:
        expanded = any(
            step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
        )
        if not expanded:  # torch refuses to write into a tensor that shows one number in several places
            groups[buffer.device, buffer.dtype].append(buffer)
    return [
        Group(some, *(some[0].new_empty(sum(b.numel() for b in some)) for _ in range(2)))
        for some in groups.values()
    ]
