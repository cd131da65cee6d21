"""A learned temperature and a learned bias of scores, as CLIP and SigLIP have them.

Radford et al., ICML 2021, arXiv 2103.00020, section 2.5; Zhai et al., ICCV 2023, arXiv 2303.15343, section 3.2. Each is
a module with a `forward` of its own, so that sharding keeps it in fp32 where everything else computes in bf16: between
log scales of 4.500 and 4.515 bf16 knows one value only.
State: the parameter, [1], for FSDP2 shards no scalars.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multissl.parallel.sharding import local
from multissl.precision import at_least_fp32


class Scale(nn.Module):
    """A learned temperature 1 / exp(logit_scale), between 1 and 1 / `largest`."""

    def __init__(self, temperature: float, largest: float = 100.0) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))
        self.largest = largest

    def forward(self) -> Tensor:
        """Return the present temperature, [1]."""
        return (-at_least_fp32(self.logit_scale)).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Move it back into its limits, after an optimizer step."""
        local(self.logit_scale.detach()).clamp_(0, math.log(self.largest))


class Bias(nn.Module):
    """A learned bias of all scores."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.logit_bias = nn.Parameter(torch.full((1,), value))

    def forward(self) -> Tensor:
        """Return the present bias, [1]; a copy, as sharding frees a parameter's memory when `forward` ends."""
        return at_least_fp32(self.logit_bias).clone()
