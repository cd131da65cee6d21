"""Self-attention over groups of rows of different lengths, packed into one tensor.

Linears run once on all packed tokens; the attention itself is a kernel's business (layers/kernels), chosen by name.
Shapes: R_i rows of N_i tokens in group i, T = sum of R_i * N_i packed tokens, H heads of width d, D = H*d.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.layers.kernels.base import Layout, kernel


class LinearWithoutKeyBias(nn.Linear):
    """A linear for queries, keys and values whose bias counts nothing for the keys (DINOv3, BEiT, VideoMAE).

    The bias keeps all its places: files and names are those of a plain linear.
    """

    counted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        counted = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(dim)
        self.register_buffer("counted", counted, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[T, D] to [T, 3 D]."""
        return F.linear(input, self.weight, self.bias * self.counted.to(self.bias.dtype))


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values."""

    def __init__(
        self, dim: int, heads: int, backend: str = "sdpa", *, key_bias: bool = True, steps: int = 0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.kernel = heads, kernel(backend)
        self.qkv = nn.Linear(dim, 3 * dim) if key_bias else LinearWithoutKeyBias(dim)
        self.proj = nn.Linear(dim, dim)
        self.relative = nn.Parameter(torch.zeros(steps, heads)) if steps else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens [T, D] to [T, D]; each row attends to itself alone."""
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1))  # [T, 3, H, d]
        if layout.rotation is not None:
            q, k, v = qkv.unbind(1)
            qkv = torch.stack([layout.rotation.turn(q), layout.rotation.turn(k), v], 1)
        if self.relative is not None:
            layout = layout._replace(masks=self._with_steps(layout, qkv.dtype))
        return self.proj(self.kernel(qkv, layout).flatten(1))

    def _with_steps(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the masks of all groups with the numbers for relative positions in them."""
        added: list[Tensor] = []
        for steps, mask in zip(layout.steps, layout.masks or (None,) * len(layout.steps), strict=True):
            bias = cast(Tensor, self.relative)[steps].permute(2, 0, 1)[None].to(dtype)  # [1, H, N, N]
            added.append(bias if mask is None else bias.masked_fill(~mask, float("-inf")))
        return tuple(added)

    def first_token(self, x: Tensor, layout: Layout) -> Tensor:
        """How the first token of each row of the only group looks at all: softmax weights [R, H, N]."""
        ((rows, tokens),) = layout.sizes
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1)).float()  # [T, 3, H, d]
        if layout.rotation is not None:
            qkv = torch.stack([layout.rotation.turn(part) for part in qkv[:, :2].unbind(1)], 1)
        parts = qkv.unflatten(0, (rows, tokens)).permute(2, 0, 3, 1, 4)  # each [R, H, N, d]
        scores = (parts[0][:, :, :1] @ parts[1].mT)[:, :, 0] / parts.shape[-1] ** 0.5  # [R, H, N]
        if self.relative is not None:
            scores = scores + self.relative[layout.steps[0][0]].T
        mask = layout.masks[0] if layout.masks else None
        return (scores if mask is None else scores.masked_fill(~mask[:, :, 0], float("-inf"))).softmax(-1)
