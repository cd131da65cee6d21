"""W-MSE: whitening of groups of embeddings, and the distance of whitened views.

Ermolov et al., ICML 2021, arXiv 2007.06346, equations 4 to 6.
Shapes: V views, B samples of all ranks, G samples of a group, P projector width.  Collectives: none.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.precision import at_least_fp32


def groupings(rows: int, group: int, draws: int, step: int) -> Tensor:
    """Ways of cutting `rows` samples into groups, drawn from the step alone: int64 [draws, groups, G]."""
    if rows % group:
        raise ValueError(
            f"batch_size={rows} does not divide into groups of objective.group={group}: make batch_size a multiple, "
            "or choose a group that divides it, twice objective.projector.out or more"
        )
    generator = torch.Generator().manual_seed(step)
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(draws)]).unflatten(
        1, (-1, group)
    )


def wmse_loss(z: Tensor, orders: Tensor, eps: float = 0.0) -> Tensor:
    """Mean of 2 - 2 cos between the whitened views z [V, B, P] of a sample, V > 1, grouped by orders [.., G].

    In fp32 at least: of inputs rounded to bf16 the loss agrees to 0.05 with that of the inputs themselves.
    """
    with torch.autocast(z.device.type, enabled=False):
        white = F.normalize(whiten(z[:, orders], eps), dim=-1, eps=1e-12)  # [V, .., G, P]
        pairs = combinations(white, 2)
        return torch.stack([(2 - 2 * (a * b).sum(-1)).mean() for a, b in pairs]).mean()


def whiten(x: Tensor, eps: float = 0.0) -> Tensor:
    """Groups x [.., G, P], G > P, with mean 0 and, where eps = 0, the identity as covariance; in fp32 at least."""
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        centered = x - x.mean(-2, keepdim=True)
        covariance = centered.mT @ centered / (x.shape[-2] - 1)  # [.., P, P]
        shrunk = (1 - eps) * covariance + eps * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if failed.any() and shrunk.isfinite().all():  # the trainer knows what to do about NaN
            raise ValueError(
                f"embeddings do not fill their {x.shape[-1]} dimensions and cannot be whitened: raise objective.eps, "
                "or lower objective.projector.out"
            )
        return torch.linalg.solve_triangular(factor, centered.mT, upper=False).mT
