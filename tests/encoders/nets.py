"""Networks that stand for a user's own."""

from __future__ import annotations

from torch import Tensor, nn

from multissl.contract.plans import StreamSpec


class Maps(nn.Module):
    """Gives a map [R, 6, H, W]; tells no width."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Rows(nn.Linear):
    """Gives rows [R, 5] and tells so."""

    dim = 5

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 5)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))


class Pairs(nn.Module):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def make(spec: StreamSpec) -> nn.Module:
    return Maps(spec.shape[0])


def no_module(spec: StreamSpec) -> int:
    return 1
