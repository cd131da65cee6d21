"""Heads: what turns an encoder's output into the space in which a loss is taken.

`MLPHead` projects or predicts (SimCLR, BYOL, VICReg); `PrototypeHead` scores prototypes (DINO, Caron et al. 2021,
arXiv 2104.14294; its parameter names are the official ones), `UnitHead` is the same without them (SimDINO);
`RankBatchNorm` is batch norm over all ranks.
Shapes: R rows, D input width, H hidden width, P output width, b bottleneck, K prototypes.
State: the running statistics of the batch norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.layers.init import init_linear
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


class RankBatchNorm(nn.Module):
    """Batch norm in fp32 whose statistics span all ranks, on any device, with gradient; names as in torch.

    x [R, width] -> [R, width] in x's dtype. All rows of the ranks count equally, also where R differs.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [R, width] normalized by the batch while training, by the running statistics otherwise.

        Rows outside `keep` (bool [R]) are normalized like the others and have no part in the statistics.
        """
        full = at_least_fp32(x)  # [R, width]
        if self.training and len(x) * world() < 2:
            raise ValueError(
                "batch norm needs 2 or more rows while training, got 1: raise batch_size, or norm=layer"
            )
        mean, var = self.moments(full, keep) if self.training else (self.running_mean, self.running_var)
        full = (full - mean) * (var + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            full = full * at_least_fp32(self.weight) + at_least_fp32(self.bias)
        return full.to(x.dtype)

    def moments(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over the (kept) rows of all ranks, each [width]; moves the running statistics."""
        here = None if keep is None else keep.to(x.dtype)[:, None]  # [R, 1]
        found = sum_ranks(x.new_full((1,), len(x)) if here is None else here.sum(0))  # [1]
        rows = found.clamp(min=1)
        mean = sum_ranks((x if here is None else x * here).sum(0)) / rows
        # Two passes: E[x^2] - E[x]^2 loses all digits where the mean is large.
        squares = (x - mean).pow(2)
        var = sum_ranks((squares if here is None else squares * here).sum(0)) / rows
        with torch.no_grad():
            unbiased = var * rows / (rows - 1).clamp(min=1)
            share = (found > 0).to(self.running_mean) * self.momentum  # nothing kept anywhere: stay
            self.running_mean.lerp_(mean.to(self.running_mean), share)
            self.running_var.lerp_(unbiased.to(self.running_var), share)
            self.num_batches_tracked += 1
        return mean, var


class Layers(nn.Sequential):
    """Layers one after the other; batch norms among them receive which rows count."""

    def forward(self, input: Tensor, keep: Tensor | None = None) -> Tensor:  # the argument's name is torch's
        """Rows [R, D] -> [R, P]; those outside `keep` (bool [R]) have no part in statistics."""
        x = input
        for layer in self:
            x = layer(x, keep) if isinstance(layer, RankBatchNorm) else layer(x)
        return x


Norm = Literal["none", "batch", "layer"]


def _norm(kind: Norm, width: int) -> list[nn.Module]:
    match kind:
        case "batch":
            return [RankBatchNorm(width)]
        case "layer":
            return [nn.LayerNorm(width)]
        case _:
            return []


class MLPHead(Component, nn.Module):
    """A projector or predictor: linear layers with a norm and a ReLU between them. x [R, D] -> [R, P]."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an MLP head."""

        hidden: int = 2048
        """Channels of the hidden layers, 1 or more."""
        out: int = 256
        """Channels of the output, 1 or more."""
        layers: int = 3
        """Linear layers; 1 is a single linear map."""
        norm: Norm = "batch"
        """After every hidden linear layer; batch spans all ranks."""
        last_norm: bool = False
        """The same norm after the last layer too, without scale and shift (SimCLR, MoCo v3, Barlow Twins)."""

        def __post_init__(self) -> None:
            for name in ("hidden", "out", "layers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"projector.{name}={getattr(self, name)}: want 1 or more")
            if self.last_norm and self.norm == "none":
                raise ValueError("projector.last_norm=True with projector.norm=none: choose batch or layer")

    def __init__(self, cfg: Config, dim: int) -> None:
        super().__init__()
        widths = [dim, *[cfg.hidden] * (cfg.layers - 1)]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            # A norm's shift makes a bias before it idle.
            steps += [nn.Linear(before, after, bias=cfg.norm == "none"), *_norm(cfg.norm, after), nn.ReLU()]
        steps.append(nn.Linear(widths[-1], cfg.out, bias=not cfg.last_norm))
        if cfg.last_norm:
            plain = RankBatchNorm(cfg.out, affine=False)
            steps.append(plain if cfg.norm == "batch" else nn.LayerNorm(cfg.out, elementwise_affine=False))
        self.mlp = Layers(*steps)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [R, D] -> [R, P]; rows outside `keep` (bool [R]) have no part in batch norm's statistics."""
        return self.mlp(x, keep)


class WeightNormLinear(nn.Module):
    """Linear without bias whose rows are unit vectors times a gain: W = g * v / |v|. x [R, b] -> [R, K]."""

    def __init__(self, dim: int, out: int, trainable_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1), requires_grad=trainable_gain)
        self.weight_v = nn.Parameter(nn.Linear(dim, out, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x [R, b] -> [R, K]."""
        v = self.weight_v  # [K, b]
        exact = torch.promote_types(v.dtype, torch.float32)
        size = torch.linalg.vector_norm(v, dim=1, keepdim=True, dtype=exact)  # [K, 1]
        return F.linear(x, v * (self.weight_g / size).to(v.dtype))


def _gelu_layers(dim: int, hidden: int, out: int, layers: int, norm: Norm, bias: bool) -> nn.Module:
    """Return linear layers with a norm and a GELU between them, as DINO has them; a single one is bare."""
    widths = [dim, *[hidden] * (layers - 1)]
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        steps += [nn.Linear(before, after, bias=bias), *_norm(norm, after), nn.GELU()]
    last = nn.Linear(widths[-1], out, bias=bias)
    return Layers(*steps, last) if layers > 1 else last


def _unit(x: Tensor) -> Tensor:
    """Return the rows x [R, b] as unit vectors in fp32, or wider: 1e-12 vanishes in half precision.

    fp16 keeps the larger one of the official code.
    """
    return F.normalize(at_least_fp32(x), dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)


class UnitHead(Component, nn.Module):
    """DINO's head without its prototypes: an MLP and an L2 norm (SimDINO). x [R, D] -> unit vectors [R, P], in fp32."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a head onto the unit sphere."""

        out: int = 256
        """Channels of the output, 1 or more."""
        hidden: int = 2048
        """Channels of the hidden layers, 1 or more."""
        layers: int = 3
        """Linear layers; 1 is a single linear map."""
        norm: Literal["none", "batch"] = "none"
        """Norm after every hidden linear layer; batch spans all ranks."""
        init_std: float = 0.02
        """Deviation of the initial weights; 0: 1/sqrt(inputs), which narrow heads need."""

        def __post_init__(self) -> None:
            for name in ("out", "hidden", "layers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"objective.head.{name}={getattr(self, name)}: want 1 or more")

    def __init__(self, cfg: Config, dim: int) -> None:
        super().__init__()
        self.mlp = _gelu_layers(dim, cfg.hidden, cfg.out, cfg.layers, cfg.norm, bias=True)
        for linear in [m for m in self.modules() if isinstance(m, nn.Linear)]:
            init_linear(linear, cfg.init_std)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [R, D] -> [R, P]; rows outside `keep` (bool [R]) have no part in batch norm's statistics."""
        return _unit(self.mlp(x, keep) if isinstance(self.mlp, Layers) else self.mlp(x))


class PrototypeHead(Component, nn.Module):
    """DINO's head: MLP to a bottleneck, L2 norm, scores against K prototypes. x [R, D] -> logits [R, K]."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a prototype head."""

        prototypes: int = 4096
        """K; 1 to 4 thousand for small batches, 65,536 and more from a thousand samples per step."""
        bottleneck: int = 256
        """Channels between the layers and the prototypes, 1 or more."""
        hidden: int = 2048
        """Channels of the hidden layers, 1 or more."""
        layers: int = 3
        """Linear layers before the prototypes."""
        gain: Literal["trainable", "fixed", "none"] = "trainable"
        """Of the prototypes' weight norm: trainable (DINOv2), fixed at 1 (DINO), or no weight norm (DINOv3)."""
        norm: Literal["none", "batch"] = "none"
        """Norm after every hidden linear layer; batch spans all ranks."""
        bias: bool = True
        """Give the linear layers a bias."""
        init_std: float = 0.02
        """Deviation of the initial weights; 0: 1/sqrt(inputs), which narrow heads need."""

        def __post_init__(self) -> None:
            for name in ("prototypes", "bottleneck", "hidden", "layers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"objective.head.{name}={getattr(self, name)}: want 1 or more")

    def __init__(self, cfg: Config, dim: int) -> None:
        super().__init__()
        self.mlp = _gelu_layers(dim, cfg.hidden, cfg.bottleneck, cfg.layers, cfg.norm, cfg.bias)
        for linear in [m for m in self.modules() if isinstance(m, nn.Linear)]:
            init_linear(linear, cfg.init_std)
        if cfg.gain == "none":
            self.last_layer: nn.Module = nn.Linear(cfg.bottleneck, cfg.prototypes, bias=False)
            nn.init.trunc_normal_(cast(nn.Linear, self.last_layer).weight, std=0.02)
        else:
            self.last_layer = WeightNormLinear(cfg.bottleneck, cfg.prototypes, cfg.gain == "trainable")

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [R, D] -> logits [R, K]; rows outside `keep` (bool [R]) have no part in batch norm's statistics."""
        x = self.mlp(x, keep) if isinstance(self.mlp, Layers) else self.mlp(x)  # [R, b]
        return self.last_layer(_unit(x).to(x.dtype))
