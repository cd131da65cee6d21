"""How linear weights begin."""

from __future__ import annotations

from torch import nn


def init_linear(linear: nn.Linear, std: float) -> None:
    """Truncated normal with a deviation of `std`, or of 1/sqrt(inputs) where std is 0; biases 0.

    0.02 is 1/sqrt(2500): right for the published widths, too small for narrow ones, whose branches then start silent.
    """
    nn.init.trunc_normal_(linear.weight, std=std or linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
