"""torch.nn.attention.varlen: one flash call for all groups, on CUDA in half precision.

Shapes: see `kernels.base`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multissl.layers.kernels.base import Kernel, Layout


class Varlen(Kernel):
    """One call in which rows are distinguished by where they start among the packed tokens."""

    name = "varlen"

    def prepare(self, sizes: Sequence[tuple[int, int]], causal: bool, device: torch.device) -> Tensor:
        """Return where each row starts, and the end: int32 [rows+1]."""
        parts, offset = [torch.zeros(1, dtype=torch.int32, device=device)], 0
        for rows, tokens in sizes:
            steps = torch.arange(1, rows + 1, dtype=torch.int32, device=device)
            parts.append(offset + tokens * steps)
            offset += rows * tokens
        return torch.cat(parts)

    def __call__(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Attend, all groups at once."""
        from torch.nn.attention.varlen import varlen_attn

        self.check_half_on_cuda(qkv)
        longest = max(tokens for _, tokens in layout.sizes)
        q, k, v = qkv.unbind(1)
        starts: Tensor = layout.prepared
        # The tail of this signature changed between torch 2.10 and 2.12, so nothing is passed after the lengths.
        return varlen_attn(q, k, v, starts, starts, longest, longest)  # type: ignore[return-value]
