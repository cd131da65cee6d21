"""A learned temperature, as CLIP has it (Radford et al., ICML 2021, arXiv 2103.00020, section 2.5).

State: the parameter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multissl.parallel.sharding import local
from multissl.precision import at_least_fp32


class Scale(nn.Module):
    """A learned temperature 1 / exp(logit_scale), between 1 and 1 / `largest`. [1], for scalars cannot be sharded."""

    def __init__(self, temperature: float, largest: float = 100.0) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))
        self.largest = largest

    def temperature(self) -> Tensor:
        """The present temperature, [1]."""
        return (-at_least_fp32(self.logit_scale)).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Back into its limits, after an optimizer step."""
        local(self.logit_scale.detach()).clamp_(0, math.log(self.largest))
