"""The moving center of a teacher's scores, which keeps its targets from one prototype.

Caron et al. 2021, arXiv 2104.14294, equation 4.
Shapes: M rows on this rank, K prototypes.  State: the center, and the mean that waits to enter it.
Collectives: a sum of scores and counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multissl.losses.sinkhorn import Weighting, centered
from multissl.losses.targets import Targets, weighted_sum
from multissl.parallel.collectives import sum_ranks
from multissl.precision import at_least_fp32


class Center(nn.Module):
    """A moving average of the teacher's logits; a step's mean enters it after the step, or lazily at the next one."""

    center: Tensor
    waiting: Tensor
    """NaN where no mean waits"""

    def __init__(
        self, prototypes: int, momentum: float = 0.9, weighting: Weighting = "count", lazy: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.lazy = momentum, lazy
        self.weighting: Weighting = weighting
        self.register_buffer("center", torch.zeros(prototypes))
        self.register_buffer("waiting", torch.full((prototypes,), torch.nan))

    def targets(self, logits: Tensor, temperature: float, real: Tensor | None = None) -> Targets:
        """Targets of logits [M, K] by the center of the steps before."""
        if self.lazy:
            self.move()
        return centered(logits, temperature, self.center, real)

    @torch.no_grad()
    def observe(self, logits: Tensor, real: Tensor | None = None) -> None:
        """Keep the mean of the real rows of logits [M, K] on all ranks; a rank with none joins in.

        Every row counts the same, or every rank's mean where weighting is equal.
        """
        rows = at_least_fp32(logits.new_ones(len(logits)) if real is None else real.to(logits.dtype))  # [M]
        total, count = weighted_sum(rows, logits), rows.sum(0, keepdim=True)  # [K], [1]
        if self.weighting == "equal":
            total, count = total / count.clamp(min=1), count.clamp(max=1)
        self.waiting.copy_(sum_ranks(total) / sum_ranks(count))  # 0 / 0 where there is no row: nothing waits

    @torch.no_grad()
    def move(self) -> None:
        """Move the center by the mean that waits, if one does."""
        moved = self.center.lerp(self.waiting, 1 - self.momentum)
        self.center.copy_(torch.where(self.waiting.isnan(), self.center, moved))
        self.waiting.fill_(torch.nan)

    def after_step(self) -> None:
        """Called once after every step."""
        if not self.lazy:
            self.move()
