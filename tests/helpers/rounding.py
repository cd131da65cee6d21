"""Another processor's rounding: what matrix products give, moved by some units in the last place of fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default, aten.dot.default,
    aten.convolution.default, aten.convolution_backward.default, aten.native_layer_norm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip
SIZE = 1e-6
"""Share of a value by which it moves: eight units in the last place, as sums in another order differ."""


class AnotherRounding(TorchDispatchMode):
    """Moves every product that is made within it, fp64 as much as fp32, as its inputs were made in fp32."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, self.moved, made) if func in PRODUCTS else made

    def moved(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=self.draw, dtype=torch.float64)
        return (tensor.double() * (1 + SIZE * noise)).to(tensor.dtype)
