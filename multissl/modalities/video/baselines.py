"""Classical features of clips that learning has to beat: pixels, a single frame, and how patches move.

Movement is the least-squares flow of a patch (Lucas and Kanade 1981): the shift that best explains how brightness
changes from frame to frame, given its slopes. It is reported, a run need not beat it: it is made for motion.
Shapes: R rows, C channels, T frames, S pixels per side.  State: none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.modalities.image.ops import luminance

SIDE, CELLS = 16, 4


def clip_floor(views: Views) -> Tensor:
    """All frames, averaged down to at most 16 x 16 pixels: [R, C*T*16*16]."""
    return _small(views.x.float()).flatten(1)


def frame_floor(views: Views) -> Tensor:
    """The frame in the middle, averaged down to at most 32 x 32 pixels: [R, C*32*32]."""
    x = views.x[:, :, views.x.shape[2] // 2].float()
    return (F.adaptive_avg_pool2d(x, 32) if x.shape[-1] > 32 else x).flatten(1)


def flow_floor(views: Views) -> Tensor:
    """The mean flow of 4 x 4 patches over the first and the second half of the clip: [R, 2*2*4*4]."""
    x = views.x.float()
    gray = luminance(x.movedim(1, 2).flatten(0, 1))[:, 0].unflatten(0, (len(x), -1))  # [R, T, S, S]
    change = gray[:, 1:] - gray[:, :-1]
    mean = (gray[:, 1:] + gray[:, :-1]) / 2
    slopes = torch.gradient(mean, dim=(2, 3))  # down, right
    dy, dx = slopes
    parts = torch.stack([dy * dy, dy * dx, dx * dx, dy * change, dx * change], 2).flatten(0, 1)
    yy, yx, xx, yt, xt = F.adaptive_avg_pool2d(parts, CELLS).unbind(1)  # each [R*(T-1), 4, 4]
    ridge = 0.01 * (yy + xx) + 1e-6
    det = (yy + ridge) * (xx + ridge) - yx * yx
    flow = torch.stack([((xx + ridge) * yt - yx * xt) / det, ((yy + ridge) * xt - yx * yt) / det], 1)
    flow = flow.unflatten(0, (len(x), -1))  # [R, T-1, 2, 4, 4]
    half = max(flow.shape[1] // 2, 1)
    return torch.cat([flow[:, :half].mean(1).flatten(1), flow[:, -half:].mean(1).flatten(1)], 1)


def _small(x: Tensor) -> Tensor:
    if x.shape[-1] <= SIDE:
        return x
    return F.adaptive_avg_pool3d(x, (x.shape[2], SIDE, SIDE))
