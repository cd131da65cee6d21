"""The precision in which losses, statistics and norms are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Return x in fp32 at least: half precision is widened, fp64 stays."""
    return x.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type that `at_least_fp32` gives x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
