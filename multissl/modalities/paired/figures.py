"""The picture of some pairs for the report: one line per sample, its streams side by side.

Shapes: B samples, H, W pixels.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.learning import Figure

SAMPLES, HEIGHT, GAP = 6, 110, 6


def side_by_side(drawn: Sequence[tuple[str, np.ndarray, Tensor | None]]) -> list[Figure]:
    """One figure of streams' pictures, uint8 [B, H, W, 3] each; what a sample lacks stays gray. None of no pictures."""
    if not drawn:
        return []
    columns = []
    for _, pictures, present in drawn:
        x = torch.from_numpy(pictures[:SAMPLES]).movedim(-1, 1).float()
        width = max(round(x.shape[3] * HEIGHT / x.shape[2]), 1)
        mode = "area" if x.shape[2] > HEIGHT else "nearest"
        x = F.interpolate(x, (HEIGHT, width), mode=mode)
        if present is not None:
            x[~present[:SAMPLES].cpu()] = 200.0
        columns.append(F.pad(x, (GAP, GAP, GAP, GAP), value=255.0))
    page = torch.cat([torch.cat(list(c), 1) for c in columns], 2)  # [3, H, W]
    said = f"Each line is one sample of the training set: {', '.join(name for name, _, _ in drawn)}, as seen."
    if any(here is not None and not here[:SAMPLES].all() for _, _, here in drawn):
        said += " Gray is what a sample does not have."
    return [Figure("Pairs", page.round().to(torch.uint8).movedim(0, -1).numpy(), said)]
