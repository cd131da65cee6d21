"""A queue of embeddings of earlier steps, the same on every rank.

MoCo's dictionary (He et al. 2020, arXiv 1911.05722, section 3.1), NNCLR's support set (Dwibedi et al. 2021, arXiv
2104.14548). It starts as random unit vectors, as in both; keys enter after the step, so a loss never meets its own.
The end of the queue wraps around; lightly's memory bank drops the keys that do not fit before the end, an option.
Shapes: K rows, P width, n keys of all ranks.  State: rows, their labels, the pointer, how many rows are real.
Collectives: none here, `put` wants gathered keys.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.precision import at_least_fp32

NOBODY = torch.iinfo(torch.int64).min
"""The label of rows that belong to no sample."""
MISSING = NOBODY + 1
"""The label of keys whose stream the sample lacks."""


class Queue(nn.Module):
    """The last K keys, oldest overwritten first, each with `labels` int64 labels."""

    rows: Tensor
    labels: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(
        self, size: int, width: int, labels: int = 0, wrap: Literal["around", "drop"] = "around"
    ) -> None:
        super().__init__()
        self.wrap = wrap
        self.waiting: tuple[Tensor, Tensor] | None = None
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))  # [K, P]
        self.register_buffer("labels", torch.full((size, labels), NOBODY))  # [K, labels]
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def share_filled(self) -> Tensor:
        """The share of rows that are real keys."""
        return self.filled / len(self.rows)

    def put(self, keys: Tensor, labels: Tensor | None = None) -> None:
        """Keep keys [n, P] of all ranks, labels [n, labels], until `after_step`; they enter as they are, in fp32."""
        if len(keys) > len(self.rows):
            raise ValueError(
                f"objective.queue={len(self.rows)}: smaller than the {len(keys)} keys of a step; "
                f"set objective.queue to {len(keys)} or more, or lower batch_size"
            )
        if labels is None:
            labels = self.labels.new_full((len(keys), self.labels.shape[1]), NOBODY)
        self.waiting = at_least_fp32(keys.detach()), labels

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the waiting keys overwrite the oldest rows."""
        if self.waiting is None:
            return
        keys, labels = self.waiting
        self.waiting = None
        size = len(self.rows)
        if self.wrap == "drop":
            keys, labels = (x[: size - int(self.pointer)] for x in (keys, labels))
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size  # [n]
        self.rows[places] = keys.to(self.rows.dtype)
        self.labels[places] = labels
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))
        self.pointer.copy_((self.pointer + len(keys)) % size)


def strangers(ids: Tensor, labels: Tensor) -> Tensor:
    """Which queued keys, by labels [K, 2], are negatives of samples with ids [B, 2]; bool [B, K]."""
    alike = ((ids[:, None] == labels) & (ids[:, None] != NOBODY)).any(2)
    return ~alike & (labels[:, 0] != MISSING)
