"""A moving covariance of unit vectors, the same on every rank (TiCo: Zhu et al. 2022, arXiv 2206.10698).

A step's losses read it with that step's vectors in it already; it is kept after the step.
Shapes: B samples on this rank, P features.  State: the covariance.  Collectives: a sum of products and counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multissl.losses.tico import moved_covariance


class MovingCovariance(nn.Module):
    """The moving average of z'z over the samples of all ranks, which begins at 0."""

    covariance: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.waiting: Tensor | None = None
        self.register_buffer("covariance", torch.zeros(width, width))

    def observe(self, z: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the covariance [P, P] with the unit vectors of z [B, P] in it, without gradient.

        It is kept by `after_step`. Samples outside `present` (bool [B]) have no part in it.
        """
        self.waiting = moved_covariance(z, self.covariance, self.momentum, present)
        return self.waiting

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep what the step observed."""
        if self.waiting is not None:
            self.covariance.copy_(self.waiting)
            self.waiting = None
