"""MMCR's terms: the nuclear norm of all samples' centroids, and of the views of each sample.

Yerxa et al., NeurIPS 2023, arXiv 2303.03307. The nuclear norm of a matrix is the sum of its singular values; its
gradient is U V', to which singular values of 0 add nothing here, so that it is the same on any device and for any
order of rows. Of m unit vectors of P features it is at most sqrt(m min(m, P)), where they fill all directions alike.
Shapes: V views, B samples on this rank, W ranks, P features.  Collectives: a gather of centroids, with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import gather, sum_ranks
from multissl.precision import at_least_fp32

FEWEST = 2
"""Views without which the centroid of a sample says nothing of their agreement."""


def nuclear_norm(x: Tensor) -> Tensor:
    """Return the sum of the singular values of matrices x [.., M, N]: [..], in fp32 at least. NaN where x is."""
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        with (
            torch.no_grad()
        ):  # a decomposition of what is not finite is an error, and the trainer handles NaN
            u, s, vh = torch.linalg.svd(
                torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0), full_matrices=False
            )
            least = torch.finfo(x.dtype).eps * max(x.shape[-2:]) * s.amax(-1, keepdim=True)
            slope = (u * (s > least).to(x.dtype).unsqueeze(-2)) @ vh  # [.., M, N]
        return (slope * x).sum((-2, -1))


def centroids_of(z: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the mean of the views z [V, B, P] of each sample: [B, P]; 0 for samples with fewer than two views.

    present bool [V, B] leaves out views that are not there.
    """
    if present is None:
        return z.mean(0)
    total = z.masked_fill(~present[..., None], 0).sum(0)
    count = present.sum(0)[:, None]  # [B, 1]
    return torch.where(count >= FEWEST, total / count.clamp(min=1), torch.zeros_like(total))


def capacity(z: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the nuclear norm of the centroids of views z [V, B, P] of all ranks, and its share of what it can be.

    The same on every rank. present bool [V, B] leaves out views that are not there, and samples with fewer than two.
    """
    everyone = gather(centroids_of(at_least_fp32(z), present))  # [W*B, P]
    rows, width = everyone.shape
    if rows < 2:
        raise ValueError("mmcr needs 2 or more samples per step, got 1: raise batch_size")
    count = everyone.new_full((), rows)
    if present is not None:
        count = sum_ranks((present.sum(0) >= FEWEST).sum().to(everyone.dtype)).clamp(min=1)
    norm = nuclear_norm(everyone)
    return norm, norm.detach() / (count * count.clamp(max=width)).sqrt()


def mean_extent(z: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the mean over samples of the nuclear norm of their views z [V, B, P]; present bool [V, B] as above."""
    if present is None:
        return nuclear_norm(z.transpose(0, 1)).mean()
    norms = nuclear_norm(z.masked_fill(~present[..., None], 0).transpose(0, 1))  # [B]
    return mean_of(norms, present.sum(0) >= FEWEST)
