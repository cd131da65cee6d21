"""Attentive probes: classifiers with learned queries that look at frozen tokens.

`CrossAttentionClassifier` is V-JEPA's (Bardes et al. 2024, arXiv 2404.08471) and V-JEPA 2's (Assran et al. 2025, arXiv
2506.09985), `PlainAttentiveClassifier` CAPI's (Darcet et al. 2025, arXiv 2502.08769), `MeanAttentiveClassifier` AIM's
(El-Nouby et al. 2024, arXiv 2401.08541). Parameter names are those of their code, so that published probes load.
Shapes: R rows, N tokens, D width, H heads of width d, Q queries, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.layers.init import init_linear
from multissl.layers.kernels.base import kernel, layout
from multissl.layers.transformer import MLP, Block

BlockOrder = Literal["query", "tokens"]
"""What the self-attention blocks act on: the query after it has looked (V-JEPA), or the tokens before (V-JEPA 2)."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, valid: Tensor | None) -> Tensor:
    """Return what queries [R, Q, D] see of keys and values [R, N, D], of which `valid` [R, N] count: [R, Q, D]."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # each [R, H, Q or N, d]
    seen = None if valid is None else valid[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Attention of queries to tokens; V-JEPA's files hold a projection of its output, which its code never uses."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Queries [R, Q, D] and tokens [R, N, D], of which `valid` [R, N] are real, to [R, Q, D]."""
        k, v = self.kv(tokens).chunk(2, dim=2)
        return attend(self.q(queries), k, v, self.heads, valid)


class CrossAttentionBlock(nn.Module):
    """Cross-attention on normed tokens and a feed-forward net, each added to the query."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.xattn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, queries: Tensor, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Queries [R, Q, D] and tokens [R, N, D] to [R, Q, D]."""
        queries = queries + self.xattn(queries, self.norm1(tokens), valid)
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """A query that looks at tokens, with self-attention blocks on one of the two."""

    def __init__(self, dim: int, heads: int, depth: int, order: BlockOrder) -> None:
        super().__init__()
        self.order: BlockOrder = order
        self.query_tokens = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        self.cross_attention_block = CrossAttentionBlock(dim, heads)
        blocks = [Block(dim, heads, 4 * dim, "mlp", 0.0, 1e-5, "sdpa") for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D], of which `valid` [R, N] are real, to [R, D]."""
        query = self.query_tokens.expand(len(tokens), -1, -1)
        if self.order == "tokens":
            tokens = self._mixed(tokens, valid)
            return self.cross_attention_block(query, tokens, valid)[:, 0]
        return self._mixed(self.cross_attention_block(query, tokens, valid), None)[:, 0]

    def _mixed(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return [R, N, D] after the self-attention blocks."""
        if not len(self.blocks):
            return x
        rows, count, _ = x.shape
        packing = layout([(rows, count)], x.device, kernel("sdpa"), False, [valid])
        flat = x.flatten(0, 1)
        for block in self.blocks:
            flat = block(flat, packing)
        return flat.unflatten(0, (rows, count))


class CrossAttentionClassifier(nn.Module):
    """V-JEPA's attentive probe; with blocks on the tokens V-JEPA 2's."""

    def __init__(
        self, dim: int, classes: int, *, heads: int, depth: int = 1, order: BlockOrder = "query"
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(dim, heads, depth, order)
        self.linear = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, 0.02)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D], of which `valid` [R, N] are real, to scores [R, C]."""
        return self.linear(self.pooler(tokens, valid))


class PlainAttentiveClassifier(nn.Module):
    """CAPI's attentive probe: one query and no projection of it, heads of 64 channels, no norm."""

    def __init__(self, dim: int, classes: int, *, heads: int = 0) -> None:
        super().__init__()
        if not heads and dim % 64:
            raise ValueError(
                f"a width of {dim} is no multiple of 64, the width of CAPI's heads: name a number of heads"
            )
        self.heads = heads or dim // 64
        self.query_token = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.query_token, std=0.02)
        self.kv = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, classes)
        for module in (self.kv, self.linear):
            init_linear(module, 0.02)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D], of which `valid` [R, N] are real, to scores [R, C]."""
        k, v = self.kv(tokens).chunk(2, dim=2)
        query = self.query_token.expand(len(tokens), 1, -1)
        return self.linear(attend(query, k, v, self.heads, valid)[:, 0])


class MeanAttentiveClassifier(nn.Module):
    """AIM's attentive probe: batch norm without scale, several queries whose mean is classified, no bias."""

    def __init__(self, dim: int, classes: int, *, heads: int, queries: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.bn = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.linear = nn.Linear(dim, classes, bias=False)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [R, N, D], of which `valid` [R, N] are real, to scores [R, C]."""
        real = tokens.flatten(0, 1) if valid is None else tokens[valid]
        normed = self.bn(real)
        x = (
            normed.view_as(tokens)
            if valid is None
            else torch.zeros_like(tokens).masked_scatter(valid[..., None], normed)
        )
        query = self.cls_token.expand(len(tokens), -1, -1)
        return self.linear(attend(query, self.k(x), self.v(x), self.heads, valid).mean(1))
