"""Scores of features that need no labels: LiDAR, alpha-ReQ as its authors fit it, CLID.

LiDAR: Thilak et al. 2024, arXiv 2312.04000, section 4. alpha-ReQ: Agrawal et al., NeurIPS 2022, by the weighted fit of
their code (after Stringer et al. 2019); `collapse.alpha_req` is the plain fit. CLID: Lu et al. 2022, arXiv 2206.01251,
whose cluster learnability is that of the paper's first version, sample by sample, and our own definition in detail;
TwoNN: Facco et al. 2017, arXiv 1803.06992.
Shapes: S samples, V views of each, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-7
"""Added to shares before their logarithm, as in RankMe."""


def entropy_rank(values: Tensor) -> float:
    """Return exp of the entropy of values [n] as shares of their sum."""
    share = values / values.abs().sum().clamp(min=torch.finfo(values.dtype).tiny) + EPS
    return float((-(share * share.log()).sum()).exp())


def discriminant_values(views: Tensor, delta: float = 1e-4) -> Tensor:
    """Return the eigenvalues [D] of LiDAR's matrix of views [S, V, D]: between samples, whitened within them.

    `delta` is added to the diagonal of the covariance within samples.
    """
    views = views.double()
    samples, per_sample, width = views.shape
    means = views.mean(1)  # [S, D]
    off, within = means - means.mean(0), (views - means[:, None]).flatten(0, 1)
    between = off.T @ off / (samples - 1)
    inner = within.T @ within / (samples * (per_sample - 1)) + delta * torch.eye(width).to(views)
    values, vectors = torch.linalg.eigh(inner)
    white = vectors * values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt() @ vectors.T
    return torch.linalg.eigvalsh(white @ between @ white)


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """Return LiDAR of features of views [S, V, D]: how many directions tell samples apart; NaN of NaN."""
    if not bool(views.isfinite().all()):
        return math.nan
    return entropy_rank(discriminant_values(views, delta))


def variance_shares(x: Tensor) -> Tensor:
    """Return the shares of variance of x [S, D] along its principal components, largest first: float64 [min(S, D)]."""
    values = torch.linalg.svdvals((x - x.mean(0)).double()).square()
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


class PowerLaw(NamedTuple):
    """The line of log variance on log place."""

    alpha: float
    """Minus its slope."""
    r2: float
    """Share of the variance of log variance that the line explains, as the authors' code measures it: from the second
    place of the fit to the 500th, or the tenth before the last."""


def fit_power_law(variances: Tensor, first: int, last: int) -> PowerLaw:
    """Return the line fitted to variances [n] at places `first` to `last`, from 1 on, each weighed by 1 / place."""
    y = variances.clamp(min=1e-300).log()
    place = torch.arange(1, len(y) + 1, dtype=y.dtype, device=y.device)
    x, fitted = place.log(), slice(first - 1, last)
    weight = 1 / place[fitted]
    weight = weight / weight.sum()
    x_mean, y_mean = weight @ x[fitted], weight @ y[fitted]
    off = x[fitted] - x_mean
    slope = weight @ (off * (y[fitted] - y_mean)) / (weight @ off.square())
    line = y_mean + slope * (x - x_mean)
    scored = slice(first, 500 if len(y) >= 500 else len(y) - 10)
    missed = (y - line)[scored].square().sum()
    r2 = 1 - missed / (y[scored] - y[scored].mean()).square().sum()
    return PowerLaw(-float(slope), float(r2))


def learnability(x: Tensor, clusters: Tensor, cosine: bool = False) -> Tensor:
    """Return whether the nearest of all samples before it has a sample's cluster: bool [S-1], from the second on."""
    x = F.normalize(x, dim=1) if cosine else x
    distance = pairwise(x).fill_diagonal_(torch.inf)
    before = torch.ones_like(distance, dtype=torch.bool).tril(-1)
    nearest = distance.masked_fill(~before, torch.inf)[1:].argmin(1)
    return clusters[nearest] == clusters[1:]


def pairwise(x: Tensor) -> Tensor:
    """Return distances [S, S] of x [S, D] in float64, without the rounding of a difference of squares."""
    return torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")


def intrinsic_dimension(x: Tensor, discard: float = 0.0) -> float:
    """Return the dimension of x [S, D] by TwoNN: from how much further the second neighbor is than the first.

    By maximum likelihood; with `discard` by a line through the origin without that share of the largest ratios.
    Samples that are repeated are left out, as they have no nearest neighbor at a distance.
    """
    near = pairwise(x).fill_diagonal_(torch.inf).topk(2, dim=1, largest=False).values  # [S, 2]
    log_ratio = (near[:, 1] / near[:, 0])[near[:, 0] > 0].log().sort().values
    count = len(log_ratio)
    if not discard:
        return float(count / log_ratio.sum())
    kept = int(count * (1 - discard))
    share = torch.arange(1, count + 1, dtype=log_ratio.dtype, device=x.device) / count
    y, log_ratio = -(1 - share[:kept]).log(), log_ratio[:kept]
    return float((log_ratio @ y) / log_ratio.square().sum())
