"""Any network of one's own as an encoder: named by where it is made, or handed over in Python.

    encoders={"image": ModuleEncoder.Config(factory="mynets.small:make")}  # anywhere; make(spec) gives the network
    encoders={"image": holding(MyNet(), dim=256)}                          # in Python

Its attributes are called what their author likes, so weight decay is decided by kind: biases, torch's norms,
vectors, and parameters registered as cls_token, mask_token, register_tokens, pos_embed or pos_embedding. A network that
derives from `multissl.abilities.DeclaresParameters` says more.
A network in memory cannot be written into a recipe file. The file says `memory:` and its class instead; it can be
resumed and read by the Python program that made it, and is refused elsewhere with that reason.
Shapes: R rows, N tokens, D width, H*W places of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.wrapped import TOKENS, Wrapped, by_size, mean_of, tokens_of
from multissl.trust import import_named

MEMORY: dict[str, nn.Module | Callable[[StreamSpec], nn.Module]] = {}
"""What this process was handed, by the name that stands for it in a recipe file."""


class ModuleEncoder(Wrapped):
    """A network that turns rows into [R, D], a map [R, D, H, W] or tokens [R, N, D]; pooled is the mean."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of one's own network."""

        factory: str = ""
        """`package.module:function`, called with the stream's spec; or what `holding` gives."""
        dim: int = 0
        """Width D; 0: the network's `dim` or `num_features`, else found by trying it on zeros."""

        def __post_init__(self) -> None:
            if self.dim < 0:
                raise ValueError(f"dim={self.dim}: want the width of the network, or 0 to have it found")

        def code_names(self) -> Iterable[str]:
            """Return the factory, unless it is a network in memory."""
            return (self.factory,) if ":" in self.factory and not self.factory.startswith("memory:") else ()

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.wrap(make(cfg.factory, spec), ())
        known = [cfg.dim, getattr(self.net, "dim", 0), getattr(self.net, "num_features", 0)]
        self.dim = next((d for d in known if isinstance(d, int) and d > 0), 0) or self._measured(spec)

    def token_parameters(self) -> Iterable[Tensor]:
        """Return the parameters that are registered under the field's names for tokens and positions."""
        own = {*TOKENS, "pos_embedding"}
        return [p for name, p in self.net.named_parameters() if name.rpartition(".")[2] in own]

    def patch_parameters(self) -> Iterable[Tensor]:
        """Return none: a network without known blocks has one learning rate."""
        return ()

    def undecayed_parameters(self) -> Iterable[Tensor]:
        """Return none: the kinds of its modules tell."""
        return ()

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of one size share one call."""
        assert masking == "none", masking
        if inner:
            raise ValueError(f"the blocks of {type(self.net).__name__} are unknown: use transformer")
        return by_size(views, lambda v: self._features(v.x))

    def _features(self, x: Tensor) -> Features:
        tokens = self._tokens(x)
        if tokens.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self.net).__name__} gives features of width {tokens.shape[-1]}, not {self.dim}: correct "
                "dim (the option, or the network's own attribute)"
            )
        return Features(pooled=mean_of(tokens), tokens=tokens)

    def _tokens(self, x: Tensor) -> Tensor:
        out = self.net(self.input(x))
        if not isinstance(out, Tensor):
            raise ValueError(f"{type(self.net).__name__} gives a {type(out).__name__}: want one tensor")
        return tokens_of(out)

    @torch.no_grad()
    def _measured(self, spec: StreamSpec) -> int:
        """The width of what the network makes of zeros."""
        was_training = {m: m.training for m in self.net.modules()}
        self.net.eval()  # statistics and drops stay out of it
        x = torch.zeros(1, *spec.shape, dtype=torch.long if spec.kind == "sequence" else torch.float32)
        width = self._tokens(x).shape[-1]
        for module, mode in was_training.items():
            module.training = mode
        return width


def holding(network: nn.Module | Callable[[StreamSpec], nn.Module], dim: int = 0) -> ModuleEncoder.Config:
    """The config of a network in memory, copied wherever it is built, or of a function that makes one from a spec."""
    kind = network if hasattr(network, "__qualname__") else type(network)
    path = f"memory:{kind.__module__}.{getattr(kind, '__qualname__', '')}"
    number = 1
    while MEMORY.setdefault(f"{path}#{number}", network) is not network:
        number += 1
    return ModuleEncoder.Config(factory=f"{path}#{number}", dim=dim)


def make(factory: str, spec: StreamSpec) -> nn.Module:
    """The network behind a factory's name."""
    if factory.startswith("memory:"):
        if factory not in MEMORY:
            raise ValueError(
                f"factory={factory}: this encoder was a network in the memory of a Python program, which a recipe "
                "file cannot hold: resume or read the run from that program, or train with "
                "factory=package.module:function"
            )
        held = MEMORY[factory]
        return copy.deepcopy(held) if isinstance(held, nn.Module) else held(spec)
    if ":" not in factory:
        raise ValueError(
            f"factory={factory!r}: want package.module:function, or in Python holding(network) as the config"
        )
    try:
        found: Any = import_named(factory)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"factory={factory}: {error}; want package.module:function") from error
    made = found(spec)
    if not isinstance(made, nn.Module):
        raise ValueError(f"factory={factory} gives a {type(made).__name__}: want a torch.nn.Module")
    return made
