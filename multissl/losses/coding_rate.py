"""SimDINO's terms: views of a sample come together, and the coding rate keeps all samples spread out.

Wu et al., ICML 2025, arXiv 2502.10385. With p features, m samples of all ranks and an allowed error eps:
  compression  mean over pairs (teacher's global view i, student's view v != i) of their cosine
  expansion    (p + m) / (p m) * 1/2 logdet(I + p / (m eps) Z'Z), the mean over the global views, Z [m, p]
  patches      the cosine at hidden tokens, weighted and divided as in iBOT
Z'Z is summed over ranks, so that value and gradient are those of one process. The published runs leave it local while m
counts all ranks, by which the expansion weakens with every rank: `summed=False`.
Shapes: V views of the student, B samples on this rank, P features, M hidden tokens (padded).
Collectives: sums over ranks, with gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


def compression(
    student: Tensor, teacher: Tensor, present: Tensor | None = None, cosine: bool = True
) -> Tensor:
    """Return the mean cosine of views student [V, B, P] with other views teacher [G, B, P], its first G views.

    `cosine=False` leaves products as they are, for features that are unit vectors already (SimDINOv2). present bool [B]
    leaves samples out. In fp32 at least.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_fp32(student), at_least_fp32(teacher)
        if cosine:
            student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        products = torch.einsum("gbp,vbp->bgv", teacher, student)  # [B, G, V]
        other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
        return mean_of(products.masked_fill(~other, 0).sum((1, 2)) / other.sum(), present)


def expansion(z: Tensor, eps: float, present: Tensor | None = None, summed: bool = True) -> Tensor:
    """Return the scaled coding rate of views z [G, B, P], the mean over views; present bool [B] leaves samples out.

    In fp32 at least: in half precision the matrix need not be positive definite.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_fp32(z)
        if present is not None:
            z = z.masked_fill(~present[:, None], 0)
        features = z.shape[-1]
        count = (
            z.new_full((), z.shape[1] * world()) if present is None else sum_ranks(present.sum().to(z.dtype))
        )
        count = count.clamp(min=1)
        products = z.mT @ z  # [G, P, P]
        if summed:
            products = sum_ranks(products)
        unit = torch.eye(features, dtype=z.dtype, device=z.device)
        factor, _ = torch.linalg.cholesky_ex(unit + features / (count * eps) * products)
        half_logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [G]
        return (features + count) / (features * count) * half_logdet.mean()


def patch_likeness(student: Tensor, teacher: Tensor, weight: Tensor, views: Tensor | float) -> Tensor:
    """Return the cosines of hidden tokens, both [M, P], weighted by 1 / (hidden tokens of their view), over all views.

    Views without a mask count among `views`, as in iBOT. In fp32 at least.
    """
    with torch.autocast(student.device.type, enabled=False):
        cosines = F.cosine_similarity(at_least_fp32(teacher), at_least_fp32(student), dim=-1)  # [M]
        return (cosines * weight).sum() / views
