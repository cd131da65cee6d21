"""Tokenizers: from the input of a stream to tokens with positions, built from its `StreamSpec`.

Grids are cut into patches (Dosovitskiy et al., arXiv 2010.11929) or pass a convolutional stem (Xiao et al.,
arXiv 2106.14881), ids are embedded, and columns become a token each (Gorishniy et al., arXiv 2106.11959).
Token order: class, registers, then the N tokens of the input. The mask token replaces an embedding before its
position is added; registers carry no position.
Shapes: R rows, C channels or columns, N tokens, P = registers + 1 for the class token where there is one, D width,
d width of an attention head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import DeclaresParameters
from multissl.contract.data import Mask, Views
from multissl.contract.plans import Masking, StreamSpec, tokens_along
from multissl.layers.patches import CONVOLUTIONS, ConvStem, Patches
from multissl.layers.positions import Position, resample, sincos
from multissl.layers.relative import count_steps, index_steps
from multissl.layers.rope import axial_angles, axial_periods, clip_angles


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenForm:
    """What differs between published networks in the tokens that enter their blocks."""

    class_token: bool = True
    """Whether a class token, and a row of positions for it, comes first."""
    norm_pre: bool = False
    """Whether tokens are normalized before the first block (CLIP, BERT)."""
    norm_eps: float = 1e-6
    """Number added to the variance there."""
    head_width: int = 0
    """d, for rotary positions."""


PLAIN = TokenForm()
"""That of ViT and DINOv2."""


class Tokenizer(DeclaresParameters, nn.Module, ABC):
    """What all tokenizers share: class, register and mask tokens, and positions over a grid of tokens."""

    pos_embed: Tensor | None
    """[1, 1+N, D] over `self.grid`, or [1, N, D] without a class token: learned, fixed, or None."""
    conv: nn.Conv1d | None
    """Over neighboring tokens, of sequences that ask for it; what is hidden must go before it."""
    rope_periods: Tensor | None
    """[d/4] of rotary positions in 2-D. A buffer that is saved: DINOv3's files hold theirs rounded to bfloat16."""

    def __init__(
        self,
        dim: int,
        grid: Sequence[int],
        registers: int,
        position: Position,
        form: TokenForm = PLAIN,
    ) -> None:
        super().__init__()
        self.dim, self.grid, self.position, self.form = dim, tuple(grid), position, form
        self.class_rows = 1 if form.class_token else 0
        self.prefix, self.conv = self.class_rows + registers, None
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if form.class_token else None
        self.register_tokens = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if position.kind == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, self.class_rows + math.prod(self.grid), dim))
            nn.init.trunc_normal_(self.pos_embed, std=position.std)
        else:
            table = None
            if position.kind == "sincos":
                table = sincos(self.grid, dim, position.column_first, position.uniform)
                table = table[:, 1 - self.class_rows :]
            self.register_buffer("pos_embed", table, persistent=False)
        rotary = position.kind == "rope" and len(self.grid) == 2
        self.register_buffer(
            "rope_periods", axial_periods(form.head_width, position.base) if rotary else None
        )
        self.norm_pre = nn.LayerNorm(dim, form.norm_eps) if form.norm_pre else None

    def token_parameters(self) -> Iterable[Tensor]:
        """Return the tokens and the positions, as far as they are learned."""
        owned = (self.cls_token, self.register_tokens, self.mask_token, self.pos_embed)
        return [p for p in owned if isinstance(p, nn.Parameter)]

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return the input of a stream as tokens on their grid, [R, *grid, D]."""

    def place(self, grid: tuple[int, ...]) -> Tensor | None:
        """Positions, the class token's first, for a grid of tokens; fewer than the table holds take its first ones."""
        if self.pos_embed is None:
            return None
        if grid[0] > self.grid[0]:
            raise ValueError(
                f"{grid[0]} tokens are more than the {self.grid[0]} that the encoder was built for"
            )
        return self.pos_embed[:, : self.class_rows + grid[0]]

    def angles(self, views: Views, masking: Masking = "none") -> Tensor | None:
        """Return rotary angles [R or 1, P+N, d] of the tokens that `forward` gives; None for other positions."""
        return None

    def steps(self, views: Views) -> Tensor | None:
        """Return rows of tables of relative positions [P+N, P+N] for the tokens; None for other positions."""
        return None

    def count_steps(self) -> int:
        """Return the rows of a table of relative positions, 0 where there is none."""
        return 0

    def forward(self, views: Views, masking: Masking = "none") -> tuple[Tensor, Tensor | None]:
        """Tokens [R, P+N, D] and which of them are real, bool [R, P+N], or None if all are."""
        x = self.embed(views.x)
        rows, grid = x.shape[0], tuple(x.shape[1:-1])
        x, valid = x.flatten(1, -2), views.valid  # [R, N, D]
        mask = views.mask if masking in ("replace", "drop") else None
        if mask is not None and mask.hidden.shape != x.shape[:2]:
            raise ValueError(
                f"a mask of {tuple(mask.hidden.shape)} rows and tokens for {tuple(x.shape[:2])} in the views"
            )
        if mask is not None and (masking == "replace" or self.conv is not None):
            x = torch.where(mask.hidden[:, :, None], self.mask_token.to(x.dtype), x)
        first, table = self.cls_token, self.place(grid)
        if table is not None:
            table = table.to(x.dtype)
            x = x + table[:, self.class_rows :]
            first = None if first is None else first + table[:, :1]
        if self.conv is not None:
            real = x if valid is None else x * valid[:, :, None]
            x = x + F.gelu(self.conv(real.mT).mT)
        if mask is not None and masking == "drop":
            seen = visible(mask)  # [R, N - hidden]
            x = x.gather(1, seen[:, :, None].expand(-1, -1, self.dim))
            valid = None if valid is None else valid.gather(1, seen)
        before = [token for token in (first, self.register_tokens) if token is not None]
        x = torch.cat([*(token.to(x.dtype).expand(rows, -1, -1) for token in before), x], dim=1)
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        return x, None if valid is None else F.pad(valid, (self.prefix, 0), value=True)


def visible(mask: Mask) -> Tensor:
    """The places of the tokens that are not hidden, in order, int64 [R, N - hidden]."""
    if mask.num_hidden is None:
        raise ValueError(
            "masking=drop needs equally many hidden tokens in every row: use a fixed mask_ratio (r, r)"
        )
    order = mask.hidden.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.hidden.shape[1] - mask.num_hidden]


class GridTokenizer(Tokenizer):
    """Patches of sounds, images and videos."""

    step_index: Tensor | None
    """int64 [P+N, P+N], of relative positions."""

    def __init__(
        self,
        spec: StreamSpec,
        dim: int,
        registers: int,
        position: Position,
        conv_stem: bool = False,
        freeze_patches: bool = False,
        form: TokenForm = PLAIN,
    ) -> None:
        axes = len(spec.patch)
        if not 1 <= axes <= len(CONVOLUTIONS) or len(spec.shape) != 1 + axes:
            raise ValueError(
                f"a grid of shape {spec.shape} and patch {spec.patch}: want (C, *space) with 1 to 3 axes"
            )
        if position.grid and len(position.grid) != axes:
            raise ValueError(f"position.grid={position.grid}: this stream has {axes} axes")
        if position.antialias and axes != 2:
            raise ValueError(
                f"position.antialias=True works on 2-D grids, this stream has {axes} axes: switch it off"
            )
        if conv_stem and spec.stride:
            raise ValueError(
                f"conv_stem=True makes tokens without overlap, this stream's have stride {spec.stride}: leave it off"
            )
        check_places(position, axes, registers, form)
        self.patch, self.stride = tuple(spec.patch), tuple(spec.stride)
        super().__init__(dim, position.grid or self._cut(spec.shape[1:]), registers, position, form)
        relative = position.kind == "relative"
        steps = index_steps(self.grid, self.prefix) if relative else None
        self.register_buffer("step_index", steps, persistent=False)
        self.patch_embed = (
            ConvStem(spec.shape[0], dim, spec.patch)
            if conv_stem
            else Patches(spec.shape[0], dim, spec.patch, spec.stride)
        )
        if freeze_patches:
            self.patch_embed.requires_grad_(False)

    def patch_parameters(self) -> Iterable[Tensor]:
        """Return the patch embedding, or the convolutional stem in its place."""
        return self.patch_embed.parameters()

    def _cut(self, space: Sequence[int]) -> tuple[int, ...]:
        cut = zip(space, self.patch, strict=True)
        if any(n < p or (n % p and not self.stride) for n, p in cut):
            size, patch = "x".join(map(str, space)), "x".join(map(str, self.patch))
            raise ValueError(f"views of {size} do not divide into patches of {patch}: choose a multiple")
        return tokens_along(space, self.patch, self.stride)

    def embed(self, x: Tensor) -> Tensor:
        """[R, C, *space] to [R, *grid, D]."""
        self._cut(x.shape[2:])
        return self.patch_embed(x.to(self.patch_embed.proj.weight.dtype))

    def place(self, grid: tuple[int, ...]) -> Tensor | None:
        """Positions, the class token's first, resampled where the grid is not the table's."""
        if self.pos_embed is None:
            return None
        how = self.position
        return resample(
            self.pos_embed,
            self.grid,
            grid,
            how.offset,
            how.antialias,
            prefix=self.class_rows,
            interpolation=how.interpolation,
        )

    def angles(self, views: Views, masking: Masking = "none") -> Tensor | None:
        """Return rotary angles [R or 1, P+N, d], 0 for the tokens before the patches."""
        if self.position.kind != "rope":
            return None
        grid, device = self._cut(views.x.shape[2:]), views.x.device
        if self.rope_periods is not None:
            angles = axial_angles(grid, self.rope_periods)
        else:
            angles = clip_angles(grid, self.form.head_width, self.position.base, device)
        angles = angles[None]  # [1, N, d]
        if masking == "drop" and views.mask is not None:
            angles = angles[0][visible(views.mask)]  # [R, N - hidden, d]
        return F.pad(angles, (0, 0, self.prefix, 0))

    def steps(self, views: Views) -> Tensor | None:
        """Return rows of tables of relative positions [P+N, P+N], of the grid that they were made for alone."""
        if self.position.kind != "relative":
            return None
        grid = self._cut(views.x.shape[2:])
        if grid != self.grid:
            raise ValueError(
                f"position.kind=relative knows the steps of {self.grid} tokens, this view has {grid}: give views of "
                "one size, without local ones"
            )
        return self.step_index

    def count_steps(self) -> int:
        """Return the rows of a table of relative positions, 0 where there is none."""
        return count_steps(self.grid) if self.position.kind == "relative" else 0


def check_places(position: Position, axes: int, registers: int, form: TokenForm) -> None:
    """Refuse rotary and relative positions where their grids, heads or tokens are others."""
    if position.kind == "rope" and axes not in (2, 3):
        raise ValueError(f"position.kind=rope knows grids of 2 and 3 axes, this one has {axes}: use sincos")
    if position.kind == "rope" and (form.head_width % 4 if axes == 2 else form.head_width < 6):
        need = "a multiple of 4" if axes == 2 else "6 or more"
        raise ValueError(
            f"position.kind=rope turns {need} channels of a head, dim / heads is {form.head_width}: change heads"
        )
    if position.kind == "relative" and (axes != 2 or registers):
        raise ValueError(
            f"position.kind=relative knows 2-D grids without registers, this one has {axes} axes and "
            f"registers={registers}: use learned"
        )


class SequenceTokenizer(Tokenizer):
    """An embedding of ids, and, if asked, a convolution over neighboring tokens.

    The convolution tells where tokens stand to each other (wav2vec 2.0, Baevski et al. 2020, arXiv 2006.11477,
    section 2); one filter per channel, GELU, added to the tokens. It sees no padding and nothing that is hidden.
    """

    def __init__(
        self,
        spec: StreamSpec,
        dim: int,
        registers: int,
        position: Position,
        embedding_std: float = 0.02,
        token_conv: int = 0,
        form: TokenForm = PLAIN,
    ) -> None:
        super().__init__(dim, spec.shape[-1:], registers, position, form)
        self.embedding = nn.Embedding(spec.vocab, dim)
        nn.init.trunc_normal_(self.embedding.weight, std=embedding_std)
        if token_conv:
            self.conv = nn.Conv1d(dim, dim, token_conv, padding=token_conv // 2, groups=dim)

    def embed(self, x: Tensor) -> Tensor:
        """int64 [R, L] to [R, L, D]."""
        return self.embedding(x)


class ColumnTokenizer(Tokenizer):
    """One token per column: a linear of its own for a number, an embedding of its own for a category."""

    order: Tensor
    shift: Tensor

    def __init__(
        self,
        spec: StreamSpec,
        dim: int,
        registers: int,
        position: Position,
        form: TokenForm = PLAIN,
    ) -> None:
        super().__init__(dim, spec.shape[-1:], registers, position, form)
        levels = spec.cardinalities or (0,) * spec.shape[-1]
        self.numbers = [i for i, n in enumerate(levels) if n == 0]
        self.categories = [i for i, n in enumerate(levels) if n > 0]
        counts = [levels[i] for i in self.categories]
        # From (numbers, categories) back to columns, and where each category's levels start in the one table.
        self.register_buffer(
            "order", torch.tensor(self.numbers + self.categories).argsort(), persistent=False
        )
        self.register_buffer("shift", torch.tensor([0, *counts]).cumsum(0)[:-1], persistent=False)
        own: list[Tensor] = []
        if self.numbers:
            self.scale = nn.Parameter(torch.empty(len(self.numbers), dim))
            self.bias = nn.Parameter(torch.empty(len(self.numbers), dim))
            own += [self.scale, self.bias]
        if self.categories:
            self.levels = nn.Embedding(sum(counts), dim)
            own += [self.levels.weight]
        for parameter in own:
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def embed(self, x: Tensor) -> Tensor:
        """[R, C] to [R, C, D]."""
        parts: list[Tensor] = []
        if self.numbers:
            values = x[:, self.numbers].to(self.scale.dtype)
            parts.append(values[:, :, None] * self.scale + self.bias)
        if self.categories:
            parts.append(self.levels(x[:, self.categories].long() + self.shift))
        return torch.cat(parts, dim=1).index_select(1, self.order)


def tokenizer_for(
    spec: StreamSpec,
    dim: int,
    registers: int,
    position: Position,
    conv_stem: bool = False,
    freeze_patches: bool = False,
    embedding_std: float = 0.02,
    token_conv: int = 0,
    form: TokenForm = PLAIN,
) -> Tokenizer:
    """The tokenizer that a stream asks for."""
    if spec.kind != "sequence" and token_conv:
        raise ValueError(f"token_conv={token_conv} is for sequences, this stream is a {spec.kind}: set 0")
    if spec.kind == "grid":
        return GridTokenizer(spec, dim, registers, position, conv_stem, freeze_patches, form)
    if conv_stem or freeze_patches:
        raise ValueError(
            f"conv_stem and freeze_patches are for grids, this stream is a {spec.kind}: leave them off"
        )
    if position.grid:
        raise ValueError(
            f"position.grid={position.grid} is for grids, this stream is a {spec.kind}: leave it empty"
        )
    if position.kind in ("rope", "relative"):
        raise ValueError(
            f"position.kind={position.kind} is for grids, this stream is a {spec.kind}: use learned"
        )
    if spec.kind == "sequence":
        return SequenceTokenizer(spec, dim, registers, position, embedding_std, token_conv, form)
    return ColumnTokenizer(spec, dim, registers, position, form)
