"""Residual networks over pictures: torchvision's, with a stem for small images and a free width.

He et al., CVPR 2016, arXiv 1512.03385; the small stem (a 3x3 convolution of stride 1, no pooling) is that of SimCLR's
CIFAR experiments (arXiv 2002.05709, appendix B.9). Weights carry torchvision's names behind `net.`.
Views of one size go through in one call, so batch norm takes its statistics from all of them together. Over several
ranks they span the ranks on CUDA (SyncBatchNorm, put in when the learner is made parallel); on the CPU each rank
normalizes by its own rows, so n ranks are not exactly 1 rank with all rows, and the first rank's running statistics
are the ones kept.
Shapes: R rows, C channels, H*W places of the last map, D width of the last stage (8 x width, 50: 32 x width).
State: the running statistics of batch norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.wrapped import by_size, mean_of, picture_only, tokens_of

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage by depth; 50 has bottleneck blocks."""


class ResNetEncoder(Encoder):
    """A torchvision ResNet; pooled is the mean of its last map, tokens are the map."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of a ResNet."""

        depth: Literal[10, 18, 34, 50] = 18
        """Layers, as the published networks are called."""
        width: int = 64
        """Channels of the first stage; each later stage doubles them."""
        stem: Literal["imagenet", "small"] = "imagenet"
        """imagenet: 7x7 convolution of stride 2 and max pooling, for 96 pixels and more; small: one 3x3 convolution."""
        zero_init_residual: bool = False
        """Start every block as the identity: the last batch norm of its branch begins with 0."""

        def __post_init__(self) -> None:
            if self.width < 1:
                raise ValueError(f"width={self.width}: want 1 channel or more; 64 is the published width")

    net: Any
    any_size = True
    gives_blocks = False

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        picture_only("resnet", spec)
        self.cfg = cfg
        self.net = resnet(cfg.depth, cfg.width, cfg.stem, spec.shape[0], cfg.zero_init_residual)
        self.dim, self.depth = self.net.num_features, 4

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of one size share one call."""
        assert masking == "none", masking
        if inner:
            raise ValueError(
                "a resnet has no blocks of one width to read targets from: use transformer as the encoder"
            )
        return by_size(views, lambda v: self._features(v.x))

    def _features(self, x: Tensor) -> Features:
        """x [R, C, H', W'] to pooled [R, D] and tokens [R, H*W, D]."""
        net = self.net
        # Channels last is a quarter faster on the CPU too; weights follow in the convolution (FSDP2 wants them plain).
        # On CPUs without AVX-512, oneDNN 3.7's gradient of such a convolution writes beyond its memory where the
        # channels do not fill a vector of 8.
        last = x.is_cuda or net.conv1.out_channels % 8 == 0
        x = x.to(
            net.conv1.weight.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
        )
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in self.shard_units():
            x = stage(x)  # [R, D, H, W] in the end
        tokens = tokens_of(x)  # [R, H*W, D]
        return Features(pooled=mean_of(tokens), tokens=tokens)

    def shard_units(self) -> list[nn.Module]:
        """The four stages."""
        return [self.net.get_submodule(f"layer{i}") for i in range(1, 5)]

    def layer_id(self, name: str) -> int:
        """0 for the stem, i for stage i."""
        _, found, rest = name.partition("layer")
        return int(rest[0]) if found else 0


def resnet(
    depth: int, width: int, stem: Literal["imagenet", "small"], channels: int, zero_init_residual: bool
) -> nn.Module:
    """torchvision's ResNet without its classifier; `num_features` is the width D of its last map."""
    from torchvision.models import resnet as tv

    class Narrow(tv.ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            if planes == 64:  # the first stage: torchvision fixes the channels that enter it
                self.inplanes = width
            return super()._make_layer(block, planes // 64 * width, *args, **kwargs)

    block = tv.Bottleneck if depth == 50 else tv.BasicBlock
    net: Any = Narrow(block, list(BLOCKS[depth]), zero_init_residual=zero_init_residual)
    kernel, stride = (3, 1) if stem == "small" else (7, 2)
    net.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    net.bn1 = nn.BatchNorm2d(width)
    if stem == "small":
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    net.num_features = 8 * width * block.expansion
    return net
