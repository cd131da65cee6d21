"""The buffers of a learner as they were before a step, for a step that is skipped.

A forward pass moves batch norm statistics, centers and whatever else its modules update before anybody knows whether
the loss is finite; one batch with a NaN would stay in them for good. Every buffer is copied, those of queues too: only
their objective knows when it writes, and a copy of a queue is little beside scoring it. A transformer has next to none.
What modules keep outside buffers until `after_step` is set anew by every forward pass.
State: one copy of every buffer; nothing of it is saved.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


class Buffers:
    """Copies of a module's buffers on this rank; `keep` before a forward pass, `restore` where it did not count."""

    def __init__(self, module: nn.Module) -> None:
        holders = [m._buffers for m in module.modules() if m._buffers]
        self.slots = [(held, name) for held in holders for name in held]
        self.originals: list[Tensor | None] = []
        self.groups: list[tuple[list[Tensor], list[Tensor]]] = []
        """Buffers and their copies, by device and dtype: a foreach copy of one group is one kernel."""

    @torch.no_grad()
    def keep(self) -> None:
        """Copy every buffer as it is now."""
        now = [held[name] for held, name in self.slots]
        if any(a is not b for a, b in zip(now, self.originals, strict=False)) or len(now) != len(
            self.originals
        ):
            self.originals, self.groups = now, grouped([b for b in now if b is not None])
        for buffers, copies in self.groups:
            torch._foreach_copy_(copies, buffers)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what `keep` copied; a buffer that was replaced by another tensor is the earlier one again."""
        for (held, name), original in zip(self.slots, self.originals, strict=True):
            held[name] = original
        for buffers, copies in self.groups:
            torch._foreach_copy_(buffers, copies)  # pyright: ignore[reportPrivateImportUsage]


def grouped(buffers: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the buffers that can be written in place, each with room for a copy, by device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for buffer in buffers:
        expanded = any(
            step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
        )
        if not expanded:  # torch refuses to write into a tensor that shows one number in several places
            groups[buffer.device, buffer.dtype].append(buffer)
    return [(some, [torch.empty_like(b) for b in some]) for some in groups.values()]
