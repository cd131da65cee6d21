"""What every modality shares: the base class and helpers that cut a global batch into views.

Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multissl.contract.data import Mask, Sample, Samples

if TYPE_CHECKING:
    pass


class Payloads(Samples):
    """Payloads as samples."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.data[index], index)


def pack_masks(hidden: Tensor, size: int | None = None) -> Mask:
    """A `Mask` from hidden [R, N], its index padded to `size` (default: as many as are hidden)."""
    counts = hidden.sum(1)  # [R]
    index = hidden.flatten().nonzero().flatten()
    weight = (1.0 / counts.clamp(min=1)).repeat_interleave(counts).float()
    padding = (len(index) if size is None else size) - len(index)
    if padding < 0:
        raise ValueError(f"{len(index)} tokens are hidden, more than the {size} that fit")
    same = counts.numel() > 0 and bool((counts == counts[0]).all())
    return Mask(
        hidden=hidden,
        index=torch.nn.functional.pad(index, (0, padding)),
        weight=torch.nn.functional.pad(weight, (0, padding)),
        num_hidden=int(counts[0]) if same else None,
    )
