"""Transformer blocks and trunk on packed groups of rows, with stochastic depth over subsets of rows.

Pre-norm blocks after Dosovitskiy et al., arXiv 2010.11929, with LayerScale (arXiv 2103.17239), SwiGLU
(arXiv 2002.05202) and, as in DINOv2 (arXiv 2304.07193, section 4), a drop path that computes only the rows that it
keeps (`drop_path.py`). Parameter names are those of the released DINOv2 models.
Shapes: R_i rows of N_i tokens in group i, T = sum of R_i * N_i packed tokens, D width, S tokens of a subset.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import DropsRows
from multissl.layers.attention import Attention
from multissl.layers.drop_path import Subset, add_to, draw_subsets, rows_of_groups, select
from multissl.layers.init import init_linear
from multissl.layers.kernels.base import Layout, kernel, layout
from multissl.layers.rope import pack

FFN = Literal["mlp", "swiglu"]
Act = Literal["gelu", "tanh_gelu", "quick_gelu"]
"""GELU: exact; by tanh (SigLIP); or x sigmoid(1.702 x) (OpenAI's CLIP)."""
NormOrder = Literal["pre", "post"]
FinalNorm = Literal["tokens", "split", "pooled", "none"]
"""What the final norm is for: all tokens; the tokens before the patches by a norm of their own (DINOv3, untied); what
is pooled alone (timm's fc_norm, data2vec); nothing (VideoMAE, BERT)."""
DropPathShape = Literal["uniform", "linear"]
"""How drop path goes with depth: the same in every block, or from 0 in the first block to all of it in the last."""


def activate(x: Tensor, act: Act) -> Tensor:
    """Return a GELU of x, in the form that `act` names."""
    match act:
        case "gelu":
            return F.gelu(x)
        case "tanh_gelu":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, dim: int, hidden: int, act: Act = "gelu") -> None:
        super().__init__()
        self.act: Act = act
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        return self.fc2(activate(self.fc1(x), self.act))


class SwiGLU(nn.Module):
    """A gated feed-forward net; gate and value come from one linear, the gate first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def ffn_width(dim: int, kind: FFN, ratio: float = 4.0) -> int:
    """Hidden width of a feed-forward net; SwiGLU takes two thirds, rounded up to eights, as DINOv2 does."""
    hidden = int(dim * ratio)
    return hidden if kind == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and a feed-forward net, each normalized before and added to the stream, or added first."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        ffn: FFN,
        layerscale: float,
        eps: float,
        backend: str,
        *,
        act: Act = "gelu",
        key_bias: bool = True,
        norm_order: NormOrder = "pre",
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.post = norm_order == "post"
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads, backend, key_bias=key_bias, steps=steps)
        self.ls1 = LayerScale(dim, layerscale) if layerscale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim, hidden, act) if ffn == "mlp" else SwiGLU(dim, hidden)
        self.ls2 = LayerScale(dim, layerscale) if layerscale else nn.Identity()

    def forward(
        self, x: Tensor, layout: Layout, subsets: tuple[Subset, Subset] | None = None, look: bool = False
    ) -> Tensor:
        """Packed tokens [T, D] to [T, D]; with `look` the first tokens' attention weights [R, H, N] instead.

        Looking is a part of `forward` because a sharded block has its weights only inside it.
        """
        if look:
            return self.attn.first_token(x if self.post else self.norm1(x), layout)
        first, second = subsets or (None, None)
        if self.post:
            x = self.norm1(_add(x, layout, first, lambda part, packing: self.ls1(self.attn(part, packing))))
            return self.norm2(_add(x, layout, second, lambda part, _: self.ls2(self.mlp(part))))
        x = _add(x, layout, first, lambda part, packing: self.ls1(self.attn(self.norm1(part), packing)))
        return _add(x, layout, second, lambda part, _: self.ls2(self.mlp(self.norm2(part))))


def _add(
    x: Tensor, layout: Layout, subset: Subset | None, branch: Callable[[Tensor, Layout], Tensor]
) -> Tensor:
    """x plus a branch of it; of a subset of rows only, scaled so that the sum stays right on average."""
    if subset is None:
        return x + branch(x, layout)
    part = select(x, subset.tokens)
    return add_to(x, part, branch(part, subset.layout), subset)


class Form(TypedDict):
    """What differs between the blocks of published networks, see `Block`."""

    act: Act
    key_bias: bool
    norm_order: NormOrder
    steps: int


class Where(NamedTuple):
    """Where the tokens of every group lie, for blocks that ask."""

    angles: Sequence[Tensor] = ()
    """By group, float32 [R_i or 1, N_i, d], of rotary positions."""
    adjacent: bool = False
    """Which channels turn together, see `rope.Rotation`."""
    steps: Sequence[Tensor] = ()
    """By group, int64 [N_i, N_i], rows of the tables of relative positions."""


NOWHERE = Where()
"""Blocks know nothing of places."""


class Trunk(nn.Module, DropsRows):
    """Blocks and a final norm for groups of rows of different lengths in one packed pass."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        ffn: FFN = "mlp",
        hidden: int = 0,
        layerscale: float = 0.0,
        drop_path: float = 0.0,
        drop_path_shape: DropPathShape = "uniform",
        eps: float = 1e-6,
        backend: str = "sdpa",
        init_std: float = 0.02,
        act: Act = "gelu",
        key_bias: bool = True,
        norm_order: NormOrder = "pre",
        final_norm: FinalNorm = "tokens",
        prefix: int = 0,
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.depth, self.drop_path = depth, drop_path
        self.final_norm, self.prefix = final_norm, prefix
        self.drop_paths = [
            drop_path * (i / max(depth - 1, 1) if drop_path_shape == "linear" else 1.0) for i in range(depth)
        ]
        self.kernel = kernel(backend)
        hidden = hidden or ffn_width(dim, ffn)
        form: Form = {"act": act, "key_bias": key_bias, "norm_order": norm_order, "steps": steps}
        blocks = [Block(dim, heads, hidden, ffn, layerscale, eps, backend, **form) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Identity() if final_norm == "none" else nn.LayerNorm(dim, eps)
        self.prefix_norm = nn.LayerNorm(dim, eps) if final_norm == "split" else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, init_std)

    def forward(
        self,
        groups: Sequence[Tensor],
        valid: Sequence[Tensor | None] = (),
        causal: bool = False,
        inner: int = 0,
        places: Sequence[Tensor | None] = (),
        where: Where = NOWHERE,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Groups [R_i, N_i, D] to normed groups, and to the raw outputs of the last `inner` blocks, by block.

        `valid` holds bool [R_i, N_i], False on padding, or None, for every group; `places` int64 [B_i], where the
        samples of its rows stand in the batch of all ranks, or None for a batch that is whole; `where` tells where
        tokens lie, if blocks are to know it.
        """
        if inner > self.depth:
            raise ValueError(f"asked for the outputs of {inner} blocks, the encoder has depth={self.depth}")
        packing = self._layout(groups, valid, causal, where)
        x = torch.cat([g.flatten(0, 1) for g in groups])  # [T, D]
        subsets = self._subsets(packing, x.device, places) if self.training and self.drop_path else None
        taps: list[list[Tensor]] = []
        for i, block in enumerate(self.blocks):
            x = block(x, packing, subsets[i] if subsets else None)
            if i >= self.depth - inner:
                taps.append(_unpack(x, packing))
        if self.final_norm == "tokens":
            return _unpack(self.norm(x), packing), taps
        return [self.normalized(group) for group in _unpack(x, packing)], taps

    def normalized(self, group: Tensor) -> Tensor:
        """Return a group [R, N, D] after the final norm, as far as that is one of tokens."""
        if self.final_norm in ("pooled", "none"):
            return group
        if self.prefix_norm is None:
            return self.norm(group)
        return torch.cat(
            [self.prefix_norm(group[:, : self.prefix]), self.norm(group[:, self.prefix :])], dim=1
        )

    def use_kernel(self, name: str) -> None:
        """Attend by the kernel of that name from now on; weights are the same for all."""
        self.kernel = kernel(name)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.kernel = self.kernel

    def attention(self, group: Tensor, valid: Tensor | None = None, where: Where = NOWHERE) -> Tensor:
        """The last block's attention of the first token of [R, N, D]: softmax weights [R, H, N]."""
        packing = self._layout([group], [valid], False, where)
        x = group.flatten(0, 1)
        for block in self.blocks[:-1]:
            x = block(x, packing)
        return self.blocks[-1](x, packing, look=True)

    def _layout(
        self,
        groups: Sequence[Tensor],
        valid: Sequence[Tensor | None],
        causal: bool,
        where: Where = NOWHERE,
    ) -> Layout:
        packing = layout(
            [(g.shape[0], g.shape[1]) for g in groups], groups[0].device, self.kernel, causal, valid
        )
        if where is NOWHERE:
            return packing
        rotation = None
        if where.angles:
            rotation = pack(where.angles, [rows for rows, _ in packing.sizes], where.adjacent)
        return packing._replace(rotation=rotation, steps=tuple(where.steps))

    def _subsets(
        self, packing: Layout, device: torch.device, places: Sequence[Tensor | None]
    ) -> list[tuple[Subset, Subset] | None]:
        """Rows for both branches of every block, drawn here so that blocks have no random state.

        None where a block leaves no row out.
        """
        groups = rows_of_groups(packing.sizes, places, 2 * self.depth, device)
        drawn: list[tuple[Subset, Subset] | None] = []
        for rate, blocks in itertools.groupby(self.drop_paths):
            first, count = 2 * len(drawn), len([*blocks])
            if not rate:
                drawn += [None] * count
                continue
            subsets = draw_subsets(groups, slice(first, first + 2 * count), rate, packing, self.kernel)
            drawn += zip(subsets[::2], subsets[1::2], strict=True)
        return drawn


def _unpack(x: Tensor, packing: Layout) -> list[Tensor]:
    parts = x.split(packing.lengths)
    return [cast(Tensor, p.unflatten(0, size)) for p, size in zip(parts, packing.sizes, strict=True)]
