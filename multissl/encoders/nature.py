"""The convolutions of the DQN in Nature and one linear layer over all places: a small encoder that knows where.

Mnih et al., Nature 518, 2015 (32, 64 and 64 channels, kernels 8, 4, 3, strides 4, 2, 1), as CURL (arXiv 2004.04136)
and ATC (arXiv 2009.08319) end it: a linear map to a narrow code and a layer norm. The linear map is kept as one matrix
a place, so that a token is what its place adds to the code; pooled is their sum, normalized. Observations that are
numbers have no places: linear layers with ReLU stand for the convolutions there, and there is one token.
Shapes: R rows, C channels or columns, H*W = N places of the last map, D width of the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.wrapped import by_size, picture_only


class NatureEncoder(Encoder):
    """Three convolutions and a linear code of the whole map; reads views of one size."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of the Nature network."""

        dim: int = 256
        """Width of the code (CURL, and comparisons at equal width: 50)."""
        channels: tuple[int, ...] = (32, 64, 64)
        """Output channels of each convolution."""
        kernels: tuple[int, ...] = (8, 4, 3)
        """Kernel side of each convolution, in pixels."""
        strides: tuple[int, ...] = (4, 2, 1)
        """Stride of each convolution, in pixels."""
        hidden: tuple[int, ...] = (256, 256)
        """Widths of the layers that stand for the convolutions where observations are numbers, not pictures."""

        def __post_init__(self) -> None:
            counts = {len(self.channels), len(self.kernels), len(self.strides)}
            if len(counts) != 1 or counts == {0}:
                raise ValueError(
                    f"channels={self.channels} kernels={self.kernels} strides={self.strides}: want as many of each"
                )
            if min(self.dim, *self.channels, *self.kernels, *self.strides, *self.hidden) < 1:
                raise ValueError("dim, channels, kernels, strides and hidden: want 1 or more of each")

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        numeric = spec.kind == "columns" and not any(spec.cardinalities)
        if not numeric:
            picture_only("nature", spec)
        self.dim, self.size = cfg.dim, tuple(spec.shape[1:])
        if numeric:
            places, width = 1, self._add_linears(cfg, spec.shape[0])
        else:
            places, width = self._add_convolutions(cfg, spec.shape[0])
        self.weight = nn.Parameter(torch.empty(places, width, cfg.dim))
        self.bias = nn.Parameter(torch.zeros(cfg.dim))
        nn.init.normal_(self.weight, std=(places * width) ** -0.5)
        self.norm = nn.LayerNorm(cfg.dim)

    def _add_convolutions(self, cfg: Config, width: int) -> tuple[int, int]:
        """Build the convolutions; return the places of their map, and its channels."""
        self.convolutions, side = nn.Sequential(), list(self.size)
        for i, (out, kernel, stride) in enumerate(zip(cfg.channels, cfg.kernels, cfg.strides, strict=True)):
            side = [(n - kernel) // stride + 1 for n in side]
            if min(side) < 1:
                raise ValueError(
                    f"kernels={cfg.kernels} strides={cfg.strides}: pictures of {self.size} pixels are too small, "
                    "give fewer or smaller kernels"
                )
            self.convolutions.add_module(f"conv{i}", nn.Conv2d(width, out, kernel, stride))
            self.convolutions.add_module(f"relu{i}", nn.ReLU())
            width = out
        return side[0] * side[1], width

    def _add_linears(self, cfg: Config, width: int) -> int:
        """Build the layers of numbers in the place of convolutions; return the width of the last one."""
        self.convolutions = nn.Sequential()
        for i, out in enumerate(cfg.hidden):
            self.convolutions.add_module(f"linear{i}", nn.Linear(width, out))
            self.convolutions.add_module(f"relu{i}", nn.ReLU())
            width = out
        return width

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of one size share one call."""
        assert masking == "none", masking
        if inner:
            raise ValueError(
                "nature has no blocks of one width to read targets from: use transformer as the encoder"
            )
        return by_size(views, lambda v: self._features(v.x))

    def _features(self, x: Tensor) -> Features:
        """x [R, C, *size] or [R, C] to pooled [R, D] and tokens [R, N, D]."""
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"nature was built for {self.size} pixels and reads {tuple(x.shape[2:])}: its linear layer knows one"
                " size; set the number of local views to 0, or use transformer as the encoder"
            )
        map_ = self.convolutions(x.to(self.weight.dtype))
        map_ = map_.flatten(2) if self.size else map_[..., None]  # [R, C', N]
        tokens = torch.einsum("rcn,ncd->rnd", map_, self.weight)  # [R, N, D]
        return Features(pooled=self.norm(tokens.sum(1) + self.bias), tokens=tokens)
