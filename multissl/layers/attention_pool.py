"""Pooling by attention: a learned query looks at all tokens, as in SigLIP (Zhai et al. 2023, arXiv 2303.15343).

The head of big_vision (Lee et al. 2019, arXiv 1810.00825, and Zhai et al. 2022, arXiv 2106.04560). Names are timm's.
Shapes: R rows, N tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import DeclaresParameters
from multissl.layers.init import init_linear
from multissl.layers.transformer import MLP, Act


class AttentionPool(DeclaresParameters, nn.Module):
    """What a learned query sees, and a feed-forward net behind it."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, act: Act, eps: float, init_std: float = 0.02
    ) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden, act)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, init_std)

    def token_parameters(self) -> Iterable[Tensor]:
        """Return the query."""
        return [self.latent]

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D], of which `valid` [R, N] are real, to [R, D]."""
        split = (self.heads, -1)
        q = self.q(self.latent.to(tokens.dtype)).expand(tokens.shape[0], -1, -1).unflatten(2, split)
        k, v = self.kv(tokens).unflatten(2, (2, *split)).unbind(2)  # each [R, N, H, d]
        seen = None if valid is None else valid[:, None, None]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # each [R, H, 1 or N, d]
        x = self.proj(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
