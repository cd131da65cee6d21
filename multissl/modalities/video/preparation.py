"""Clips in memory as clean views: frames that the caller has chosen, normalized by color.

Shapes: B clips, T frames, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multissl.contract.preparation import Constants, FreeAxis
from multissl.modalities.image.preparation import PixelPreparation


@dataclass(kw_only=True)
class ClipPreparation(PixelPreparation):
    """Clips [B, 3, T, S, S]."""

    still: bool = False
    """Whether the middle frame stands for all (modality.clean=frame)."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Normalize, after the middle frame was repeated where that is what is read."""
        if self.still:
            middle = x.shape[2] // 2
            x = x[:, :, middle : middle + 1].expand_as(x)
        return super().__call__(x, mask, constants)


def preparation_of(cfg: Any, mean: Sequence[float], std: Sequence[float]) -> ClipPreparation:
    """Return the preparation of clips under the options of `Video`."""
    if cfg.clean == "shuffled":
        raise ValueError(
            "modality.clean=shuffled orders the frames of a video by its place in the data, which a tensor does not "
            "tell: set modality.clean=clip in the recipe, or use Model.encode"
        )
    return ClipPreparation(
        reads=f"clips [B, 3, {cfg.frames}, {cfg.size}, {cfg.size}], uint8 or values 0 to 1",
        constants={"mean": torch.tensor(mean), "std": torch.tensor(std)},
        free_axes=(
            FreeAxis(axis=2, name="frames", step=cfg.tubelet, least=cfg.tubelet),
            FreeAxis(axis=3, name="height", step=cfg.patch, least=cfg.patch),
            FreeAxis(axis=4, name="width", step=cfg.patch, least=cfg.patch),
        ),
        shape=(3, cfg.frames, cfg.size, cfg.size),
        still=cfg.clean == "frame",
    )
