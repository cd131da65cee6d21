"""Self-attention over groups of rows of different lengths, packed into one tensor.

Linears run once on all packed tokens; the attention itself is a kernel's business (layers/kernels), chosen by name.
Shapes: R_i rows of N_i tokens in group i, T = sum of R_i * N_i packed tokens, H heads of width d, D = H*d.
"""

from __future__ import annotations

from torch import Tensor, nn

from multissl.layers.kernels.base import Layout, kernel


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values."""

    def __init__(self, dim: int, heads: int, backend: str = "sdpa") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.kernel = heads, kernel(backend)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens [T, D] to [T, D]; each row attends to itself alone."""
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1))  # [T, 3, H, d]
        return self.proj(self.kernel(qkv, layout).flatten(1))

    def first_token(self, x: Tensor, layout: Layout) -> Tensor:
        """How the first token of each row of the only group looks at all: softmax weights [R, H, N]."""
        ((rows, tokens),) = layout.sizes
        q, k, _ = (
            self.qkv(x).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).float()
        )  # each [R, H, N, d]
        scores = (q[:, :, :1] @ k.mT)[:, :, 0] / q.shape[-1] ** 0.5  # [R, H, N]
        mask = layout.masks[0] if layout.masks else None
        return (scores if mask is None else scores.masked_fill(~mask[:, :, 0], float("-inf"))).softmax(-1)
