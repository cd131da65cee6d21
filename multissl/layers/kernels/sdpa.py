"""torch's scaled_dot_product_attention, one call per group: any device, any precision, padding and causal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.layers.kernels.base import Kernel, Layout


class SDPA(Kernel):
    """One dense call per group of rows of one length."""

    name = "sdpa"
    takes_padding = True
    takes_causal = True

    def __call__(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Attend, group by group."""
        parts, masks = qkv.split(layout.lengths), layout.masks or (None,) * len(layout.sizes)
        out: list[Tensor] = []
        for part, (rows, tokens), mask in zip(parts, layout.sizes, masks, strict=True):
            q, k, v = part.view(rows, tokens, *part.shape[1:]).permute(2, 0, 3, 1, 4)  # each [R, H, N, d]
            seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=layout.causal and mask is None)
            out.append(seen.transpose(1, 2).flatten(0, 1))
        return torch.cat(out)
