"""xFormers' memory-efficient attention under a block-diagonal mask: one call, on CUDA in half precision."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from multissl.layers.kernels.base import Kernel, Layout
from multissl.registry import require


class XFormers(Kernel):
    """One call for all groups; the mask of a set of sizes is made once."""

    name = "xformers"
    takes_causal = True

    def __call__(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Attend, all groups at once."""
        self.check_half_on_cuda(qkv)
        ops = require("xformers.ops")
        bias = _block_diagonal(layout.sizes, layout.causal, qkv.device)
        q, k, v = (t[None] for t in qkv.unbind(1))
        return ops.memory_efficient_attention(q, k, v, attn_bias=bias)[0]


@functools.lru_cache(maxsize=64)
def _block_diagonal(sizes: tuple[tuple[int, int], ...], causal: bool, device: torch.device) -> Any:
    kind = require("xformers.ops.fmha.attn_bias").BlockDiagonalMask
    bias = kind.from_seqlens([tokens for rows, tokens in sizes for _ in range(rows)], device=device)
    return bias.make_causal() if causal else bias
