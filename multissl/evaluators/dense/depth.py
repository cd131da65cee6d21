"""Depth as an expectation over bins, its losses and its scores (DINOv2, DINOv3, after Eigen et al. 2014).

DINOv2's linear depth head (`dinov2/eval/depth`) gives a score per bin; the sum of the bins' depths by normalized score
is the depth; DINOv3's `eval/depth/metrics.py` has the scores.
Shapes: B pictures, K bins, h x w pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["linear", "softmax", "sigmoid"]
EPS = 1e-3
"""Added to depths before their logarithm."""
MARGIN = 0.1
"""Added to every bin by the linear normalization, so that no bin is closed for the gradient."""
VARIANCE_FOCUS = 0.15
"""Weight of the squared mean in the scale-invariant loss."""
STRIDES = (1, 2, 4, 6)
"""Scales of the gradient loss."""


def expected_depth(
    logits: Tensor, low: float, high: float, normalization: Normalization = "linear"
) -> Tensor:
    """Return depth [B, 1, h, w] from scores [B, K, h, w] of K bins, evenly from low to high."""
    match normalization:
        case "softmax":
            share = logits.softmax(1)
        case "sigmoid":
            share = logits.sigmoid()
        case "linear":
            share = logits.relu() + MARGIN
    share = share / share.sum(1, keepdim=True)
    bins = torch.linspace(low, high, logits.shape[1], dtype=logits.dtype, device=logits.device)
    return torch.einsum("bkhw,k->bhw", share, bins)[:, None]


def scale_invariant_loss(depth: Tensor, truth: Tensor, warm_up: bool = False) -> Tensor:
    """Return the root of the variance of the log ratio plus 0.15 of its squared mean, over pixels with truth.

    During the warm-up, DINOv2's first 100 steps, the mean alone.
    """
    known = truth > 0
    gap = (depth[known] + EPS).log() - (truth[known] + EPS).log()
    mean = VARIANCE_FOCUS * gap.mean().square()
    return (mean if warm_up else gap.var() + mean).sqrt()


def gradient_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Return the mean difference of the gradients of log depth, summed over four scales."""
    total = depth.new_zeros(())
    for stride in STRIDES:
        near, far = depth[..., ::stride, ::stride], truth[..., ::stride, ::stride]
        known = far > 0
        gap = ((near + EPS).log() - (far.clamp(min=0) + EPS).log()) * known
        down = (gap[..., 2:, :] - gap[..., :-2, :]).abs() * (known[..., 2:, :] & known[..., :-2, :])
        right = (gap[..., 2:] - gap[..., :-2]).abs() * (known[..., 2:] & known[..., :-2])
        total = total + (down.sum() + right.sum()) / known.sum().clamp(min=1)
    return total


def depth_scores(depth: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Return the usual scores of pictures [B, 1, h, w] by name: the mean over those that have pixels with truth.

    Segmentation does the opposite and adds areas up first.
    """
    scores = [pixel_scores(d[t > 0], t[t > 0]) for d, t in zip(depth, truth, strict=True)]
    return {name: torch.stack([s[name] for s in scores]).nanmean() for name in scores[0]}


def pixel_scores(depth: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Return the scores of pixels [n] with truth; NaN of none."""
    ratio = torch.maximum(depth / truth, truth / depth)
    gap, logs = depth - truth, depth.log() - truth.log()
    return {
        **{f"a{power}": (ratio < 1.25**power).to(depth.dtype).mean() for power in (1, 2, 3)},
        "abs_rel": (gap.abs() / truth).mean(),
        "rmse": gap.square().mean().sqrt(),
        "log_10": (depth.log10() - truth.log10()).abs().mean(),
        "rmse_log": logs.square().mean().sqrt(),
        "silog": 100 * (logs.square().mean() - logs.mean().square()).sqrt(),
        "sq_rel": (gap.square() / truth).mean(),
        "mae": gap.abs().mean(),
    }
