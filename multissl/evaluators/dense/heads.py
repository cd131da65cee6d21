"""The linear head for dense prediction (DINOv3, `eval/segmentation/models/heads/linear_head.py`).

Shapes: R pictures, D width, h x w patches, C classes, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LinearSegmentationHead(nn.Module):
    """Dropout of channels while it trains, batch norm, and a linear map of every patch; names as in DINOv3's code."""

    def __init__(self, dim: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.batchnorm_layer = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Patches [R, D, h, w] to scores [R, C, h, w]."""
        return self.conv(self.batchnorm_layer(self.dropout(x)))

    def predict(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return scores [R, C, H, W] of the pixels of a picture, from patches [R, D, h, w]."""
        return F.interpolate(self(x), size, mode="bilinear", align_corners=False)
