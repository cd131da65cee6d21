"""What is drawn on the host for the photometric changes of pictures and clips: the second argument of `photometric`.

Shapes: B samples of this rank, V views, R = V*B rows stacked view-major.  State: none.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from multissl.contract.data import Role
from multissl.modalities.image import ops
from multissl.modalities.views import rand_rows
from multissl.random import RowRandom


class Chances(Protocol):
    """The options of what is drawn here."""

    flip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float
    solarize: float


def draw_changes(cfg: Chances, role: Role, views: int, rng: RowRandom) -> dict[str, Tensor]:
    """Return, for each row of a role, what `photometric` does to it but for the blur: tensors [R, ...] by name.

    `rng` delivers on the CPU. Only every second global view is solarized.
    """
    widths = (cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
    solarized = [cfg.solarize if role == "global" and v % 2 else 0.0 for v in range(views)]
    return {
        "flip": hits("flip", [cfg.flip] * views, rng),
        "jitter": hits("jitter", [cfg.jitter] * views, rng),
        "jitter order": rand_rows(rng.fork("jitter order"), views, 4).argsort(1),
        "jitter strength": ops.jitter_factors(rand_rows(rng.fork("jitter strength"), views, 4), widths),
        "grayscale": hits("grayscale", [cfg.grayscale] * views, rng),
        "solarize": hits("solarize", solarized, rng),
    }


def draw_blur(chances: list[float], rng: RowRandom) -> dict[str, Tensor]:
    """Return which rows are blurred, with a chance for each view, and their sigmas: tensors [R] by name."""
    low, high = ops.BLUR_SIGMA
    sigma = low + (high - low) * rand_rows(rng.fork("blur sigma"), len(chances))
    return {"blur": hits("blur", chances, rng), "blur sigma": sigma}


def hits(tag: str, chances: list[float], rng: RowRandom) -> Tensor:
    """Return what falls to rows with a chance for each view, bool [R]."""
    return rand_rows(rng.fork(tag), len(chances)) < torch.tensor(chances).repeat_interleave(rng.rows)
