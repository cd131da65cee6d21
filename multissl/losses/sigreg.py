"""SIGReg: how far embeddings are from an isotropic Gaussian, by the Epps-Pulley test along random directions.

Balestriero and LeCun 2025, arXiv 2511.08544 (LeJEPA). Along a unit direction a the statistic of N samples is
  N * integral of w(t) |mean_n exp(i t a.z_n) - phi(t)|^2 dt,  w(t) = phi(t) = exp(-t^2 / 2),
by the trapezoid rule over `knots` points of [0, t_max], twice. Means over samples are those of all ranks, so that value
and gradient are those of one process, also where ranks hold unequally many samples.
What a value means: it never falls to 0. Samples of a true Gaussian cost `gaussian_cost` on average, 1.0525 by default,
whatever N is; what is not Gaussian costs that and N times a distance, so the term grows with the global batch, and
embeddings in one point cost 0.402 N. There the gradient vanishes, in proportion to how far embeddings are spread.
Shapes: V views, B samples on this rank, P projector width, K directions, T knots.
Collectives: sums over ranks, with gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import mean_of
from multissl.parallel.collectives import sum_ranks
from multissl.precision import at_least_fp32


def draw_directions(width: int, slices: int, step: int, like: Tensor) -> Tensor:
    """Return unit directions [P, K] drawn from the step alone, equal on all ranks, as `like` is stored."""
    generator = torch.Generator().manual_seed(step)
    directions = torch.randn(width, slices, generator=generator)
    return F.normalize(directions, dim=0).to(like)


def quadrature(knots: int, t_max: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points t [T], the Gaussian's characteristic function there, and weights, which hold it as a factor."""
    t = torch.linspace(0, t_max, knots, dtype=like.dtype, device=like.device)
    phi = (-t.square() / 2).exp()
    width = t_max / (knots - 1)
    weights = torch.full_like(t, 2 * width)
    weights[0] = weights[-1] = width
    return t, phi, weights * phi


def gaussian_cost(knots: int = 17, t_max: float = 3.0) -> float:
    """Return what samples of a true Gaussian cost on average, whatever their number."""
    _, phi, weights = quadrature(knots, t_max, torch.zeros((), dtype=torch.float64))
    return (weights * (1 - phi.square())).sum().item()


def slice_statistics(
    z: Tensor, directions: Tensor, knots: int = 17, t_max: float = 3.0, present: Tensor | None = None
) -> Tensor:
    """Return the statistic [..., K] of samples z [..., B, P], of all ranks, along directions [P, K].

    Axes before the last two (views) are samples of their own. present bool [..., B] leaves rows out; where none is left
    the statistic is 0. In fp32 at least: cosines of products in bf16 lose what the statistic is about.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = at_least_fp32(z)
        t, phi, weights = quadrature(knots, t_max, z)
        here = z.new_ones(z.shape[:-1]) if present is None else present.to(z.dtype)  # [..., B]
        count = sum_ranks(here.sum(-1))[..., None]  # [..., 1]
        angles = (z @ directions.to(z))[..., None] * t  # [..., B, K, T]
        shown = here[..., None, None]
        sums = [(wave * shown).sum(-3) for wave in (angles.cos(), angles.sin())]  # 2 of [..., K, T]
        real, imaginary = sum_ranks(torch.stack(sums)) / count.clamp(min=1)[..., None]
        return count * (((real - phi).square() + imaginary.square()) @ weights)


def sigreg(
    z: Tensor, directions: Tensor, knots: int = 17, t_max: float = 3.0, present: Tensor | None = None,
    clip: float | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:  # fmt: skip
    """Return the mean, or the sum, over views and directions of `slice_statistics`.

    Statistics below `clip` are 0, without gradient: samples that are Gaussian enough.
    """
    statistics = slice_statistics(z, directions, knots, t_max, present)
    if clip is not None:
        statistics = statistics.masked_fill(statistics < clip, 0)
    return statistics.mean() if reduction == "mean" else statistics.sum()


def distance_to_center(z: Tensor, centers: int, present: Tensor | None = None) -> Tensor:
    """Return the mean squared distance of views z [V, B, P] from the mean of the first `centers` views of a sample.

    The gradient flows into that mean, too. Over samples and features; where present bool [V, B] is given, over views
    that are there and are not the only one of their sample.
    """
    z = at_least_fp32(z)
    if present is None:
        return (z - z[:centers].mean(0)).square().mean()
    shown = z.masked_fill(~present[..., None], 0)[:centers]  # [C, B, P]
    center = shown.sum(0) / present[:centers].sum(0).clamp(min=1)[:, None]  # [B, P]
    compared = present & present[:centers].any(0) & (present.sum(0) > 1)
    return mean_of((z - center).square().mean(-1), compared)
