"""Sizes of views and of the blur that suit pictures, and how they are said.

State: none.
"""

from __future__ import annotations

import math
from typing import Any

from multissl.contract.data import Sample, Samples
from multissl.modalities.image.crops import pair
from multissl.modalities.image.files import dimensions
from multissl.modalities.image.values import Reading
from multissl.modalities.sizes import Rule, as_pixels, sides_for, usual_extent

KERNEL, PER_KERNEL = 9, 16
"""The widest kernel of a blur, and the pixels of a view for each of its pixels on either side of the middle."""


def sizes_for(data: Samples, cfg: Any, reading: Reading) -> tuple[dict[str, Any], str]:
    """Return the sizes that suit training images, of which those that `cfg` says stay, and a line that says both."""

    def read(sample: Sample) -> tuple[int, int, int]:
        width, height = dimensions(sample, cfg.channels, reading)
        return width, height, min(width, height)

    (width, height, short), count = usual_extent(data, read, "images", "size")
    sizes = sides_for(round(short), cfg, Rule(multiple=cfg.mask_patch))
    kernel = cfg.blur_kernel or min(KERNEL, 2 * (min(pair(sizes["size"])) // PER_KERNEL) + 1)
    tokens = math.prod(side // sizes["patch"] for side in pair(sizes["size"]))
    line = (
        f"views of {as_pixels(sizes['size'])} ({tokens} tokens of {sizes['patch']} px) and local views of "
        f"{as_pixels(sizes['local_size'])} for images of {width:g} x {height:g} (median of {count}): --modality.size, "
        "--modality.patch and --modality.local_size say otherwise; smaller views train faster"
    )
    return {**sizes, "blur_kernel": kernel}, line


def check_sizes(cfg: Any) -> None:
    """Raise a ValueError where views, tokens, squares of masks and the kernel of the blur do not fit each other."""
    for name, size in (("size", cfg.size), ("local_size", cfg.local_size)):
        for side in pair(size):
            below = max(side // cfg.patch * cfg.patch, 0)
            if below != side or not side:
                near = f"{below} or {below + cfg.patch}" if below else f"{cfg.patch}"
                raise ValueError(f"modality.{name}={size}: want a multiple of patch={cfg.patch}: {near}")
    square = cfg.mask_patch or cfg.patch
    uneven = any(side % square for side in pair(cfg.size))
    if square % cfg.patch or uneven or (square != cfg.patch and cfg.mask != "random"):
        raise ValueError(
            f"modality.mask_patch={cfg.mask_patch}: want 0, or with modality.mask=random a multiple of"
            f" patch={cfg.patch} that divides size={cfg.size}"
        )
    widest = 2 * min(*pair(cfg.size), *pair(cfg.local_size)) - 1
    if cfg.blur != "none" and (cfg.blur_kernel % 2 == 0 or not 1 <= cfg.blur_kernel <= widest):
        given = f"modality.blur_kernel={cfg.blur_kernel}"
        raise ValueError(f"{given}: want an odd number up to {widest}, or modality.blur=none")
