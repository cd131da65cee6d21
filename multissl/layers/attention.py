"""Self-attention over groups of rows of different lengths, packed into one tensor.

Linears run once on all packed tokens; only the attention itself is cut by group. Backends: `sdpa` (one
scaled_dot_product_attention a group, any device), `varlen` (torch.nn.attention.varlen) and `xformers` (a
block-diagonal mask), the latter two in one kernel for all groups, on CUDA in half precision.
Shapes: R_i rows of N_i tokens in group i, T = sum of R_i * N_i packed tokens, H heads of width d, D = H*d.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.registry import require

Backend = Literal["sdpa", "varlen", "xformers"]


class Layout(NamedTuple):
    """How packed tokens fall into groups, and who may look at whom; made once a pass for all blocks."""

    sizes: tuple[tuple[int, int], ...]
    """(R_i, N_i) of every group."""
    causal: bool = False
    masks: tuple[Tensor | None, ...] = ()
    """By group, bool [R_i, 1, 1 or N_i, N_i], True where a token may look; None: everywhere."""
    starts: Tensor | None = None
    """int32 [rows+1], where each row starts among the packed tokens (varlen)."""

    @property
    def lengths(self) -> list[int]:
        """R_i * N_i of every group."""
        return [rows * tokens for rows, tokens in self.sizes]


def layout(
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
    backend: Backend = "sdpa",
    causal: bool = False,
    valid: Sequence[Tensor | None] = (),
) -> Layout:
    """The layout of groups (R_i, N_i); `valid` holds bool [R_i, N_i] of the groups that carry padding."""
    sizes, given = tuple(sizes), tuple(valid) or (None,) * len(sizes)
    if backend != "sdpa" and any(v is not None for v in given):
        raise ValueError(
            f"attention={backend} knows no padding: use attention=sdpa for streams with padded tokens"
        )
    if backend == "varlen" and causal:
        raise ValueError("attention=varlen is not causal here: use attention=sdpa or attention=xformers")
    masks = tuple(None if v is None else _mask(v, causal) for v in given)
    starts = _starts(sizes, device) if backend == "varlen" else None
    return Layout(sizes, causal, masks, starts)


def _mask(valid: Tensor, causal: bool) -> Tensor:
    keys = valid[:, None, None, :]  # [R, 1, 1, N]
    if not causal:
        return keys
    n = valid.shape[1]
    return keys & torch.ones(n, n, dtype=torch.bool, device=valid.device).tril()


def _starts(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    parts, offset = [torch.zeros(1, dtype=torch.int32, device=device)], 0
    for rows, tokens in sizes:
        steps = torch.arange(1, rows + 1, dtype=torch.int32, device=device)
        parts.append(offset + tokens * steps)
        offset += rows * tokens
    return torch.cat(parts)


class Attention(nn.Module):
    """Multi-head self-attention with one linear for queries, keys and values."""

    def __init__(self, dim: int, heads: int, backend: Backend = "sdpa") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed tokens [T, D] to [T, D]; each row attends to itself alone."""
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1))  # [T, 3, H, d]
        return self.proj(BACKENDS[self.backend](qkv, layout).flatten(1))

    def first_token(self, x: Tensor, layout: Layout) -> Tensor:
        """How the first token of each row of the only group looks at all: softmax weights [R, H, N]."""
        ((rows, tokens),) = layout.sizes
        q, k, _ = (
            self.qkv(x).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).float()
        )  # each [R, H, N, d]
        scores = (q[:, :, :1] @ k.mT)[:, :, 0] / q.shape[-1] ** 0.5  # [R, H, N]
        mask = layout.masks[0] if layout.masks else None
        return (scores if mask is None else scores.masked_fill(~mask[:, :, 0], float("-inf"))).softmax(-1)


def sdpa(qkv: Tensor, layout: Layout) -> Tensor:
    """[T, 3, H, d] to [T, H, d], one call a group."""
    parts, masks = qkv.split(layout.lengths), layout.masks or (None,) * len(layout.sizes)
    out: list[Tensor] = []
    for part, (rows, tokens), mask in zip(parts, layout.sizes, masks, strict=True):
        q, k, v = part.view(rows, tokens, *part.shape[1:]).permute(2, 0, 3, 1, 4)  # each [R, H, N, d]
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=layout.causal and mask is None)
        out.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def varlen(qkv: Tensor, layout: Layout) -> Tensor:
    """[T, 3, H, d] to [T, H, d] in one flash call, rows told apart by where they start."""
    from torch.nn.attention.varlen import varlen_attn

    _half_on_cuda("varlen", qkv)
    assert layout.starts is not None, "this layout was made for another backend"
    longest = max(tokens for _, tokens in layout.sizes)
    q, k, v = qkv.unbind(1)
    # The tail of this signature changed between torch 2.10 and 2.12, so nothing is passed after the lengths.
    return varlen_attn(q, k, v, layout.starts, layout.starts, longest, longest)  # type: ignore[return-value]


def xformers(qkv: Tensor, layout: Layout) -> Tensor:
    """[T, 3, H, d] to [T, H, d] in one call under a block-diagonal mask."""
    _half_on_cuda("xformers", qkv)
    ops = require("xformers.ops")
    bias = _block_diagonal(layout.sizes, layout.causal, qkv.device)
    q, k, v = (t[None] for t in qkv.unbind(1))
    return ops.memory_efficient_attention(q, k, v, attn_bias=bias)[0]


@functools.lru_cache(maxsize=64)
def _block_diagonal(sizes: tuple[tuple[int, int], ...], causal: bool, device: torch.device) -> Any:
    kind = require("xformers.ops.fmha.attn_bias").BlockDiagonalMask
    bias = kind.from_seqlens([tokens for rows, tokens in sizes for _ in range(rows)], device=device)
    return bias.make_causal() if causal else bias


def _half_on_cuda(name: str, x: Tensor) -> None:
    if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attention={name} runs on CUDA in half precision, found {x.device.type} and "
            f"{str(x.dtype).removeprefix('torch.')}: use attention=sdpa, or parallel.precision=bf16 on a GPU"
        )


BACKENDS: dict[str, Callable[[Tensor, Layout], Tensor]] = {
    "sdpa": sdpa,
    "varlen": varlen,
    "xformers": xformers,
}
