"""LoRA: a frozen encoder learns by small additions to some of its linear layers, which are merged into them on export.

Hu et al. 2021, arXiv 2106.09685, section 4.1: W x + (alpha / r) B A x, with A drawn and B at 0, so that the encoder
begins as it is. All else of the encoder rests, but for a mask token that the objective asks for. What a run ships has
the plain names and shapes; its checkpoints hold the factors.
Shapes: r rank, D inputs, E outputs of a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.config import Config
from multissl.contract.encoder import Encoder
from multissl.registry import suggest


@dataclass(kw_only=True, slots=True)
class LoRA(Config):
    """Options of low-rank adaptation."""

    rank: int = 0
    """Rank of the additions; 0: none, and encoders learn as a whole."""
    alpha: float = 16.0
    """Strength of the additions, which are multiplied by alpha / rank."""
    layers: tuple[str, ...] = ("qkv", "proj")
    """Linear layers of the blocks that get one, by the last part of their names; more of them: fc1 fc2. Hugging Face's
    encoders call them query, key, value and dense."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank}: want 0 (none) or a rank, 4 to 64 are usual")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha}: want more than 0, 16 is usual")
        if self.rank and not self.layers:
            raise ValueError("lora.layers is empty: name linear layers, such as qkv proj, or set lora.rank=0")
        if not self.rank and self.layers != ("qkv", "proj"):
            raise ValueError(
                f"lora.layers={' '.join(self.layers)} with lora.rank=0 adds nothing to them: give a rank, lora.rank=8"
            )


class LowRank(nn.Module):
    """A frozen linear layer and a learned addition of low rank."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        # as linear layers begin, and the authors' code does
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] to [*, E]."""
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down), self.up)

    @staticmethod
    def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        """Return the weight [E, D] of a linear layer that does the same."""
        return (weight.double() + scale * up.double() @ down.double()).to(weight.dtype)


def adapt(encoder: Encoder, cfg: LoRA, stream: str) -> None:
    """Freeze an encoder, give its linear layers of these names an addition; raise a ValueError for a name of none."""
    places = [place for unit in encoder.shard_units() for place in linears(unit)]
    known = sorted({name for _, name in places})
    for name in cfg.layers:
        if name not in known:
            there = suggest(name, known) if known else "; its blocks hold none"
            raise ValueError(f"lora.layers={name}: no linear layer of encoders.{stream} is called so{there}")
    encoder.requires_grad_(False)
    for parent, name in places:
        if name in cfg.layers:
            base = parent.get_submodule(name)
            assert isinstance(base, nn.Linear)
            if cfg.rank > min(base.weight.shape):
                raise ValueError(
                    f"lora.rank={cfg.rank}: {name} of encoders.{stream} has {base.in_features} inputs and "
                    f"{base.out_features} outputs, and no addition a higher rank than {min(base.weight.shape)}"
                )
            setattr(parent, name, LowRank(base, cfg.rank, cfg.alpha))


def linears(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the linear layers inside a module, each as the module that holds it and its name there."""
    for parent in module.modules():
        yield from ((parent, name) for name, child in parent.named_children() if isinstance(child, nn.Linear))


def merged_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a module, whole tensors by name, with each addition in the weight of its layer."""
    plain = dict(state)
    for name, each in module.named_modules(remove_duplicate=False):
        if isinstance(each, LowRank):
            down, up = plain.pop(f"{name}.down"), plain.pop(f"{name}.up")
            for part in each.base.state_dict():
                plain[f"{name}.{part}"] = plain.pop(f"{name}.base.{part}")
            plain[f"{name}.weight"] = LowRank.merged(plain[f"{name}.weight"], down, up, each.scale)
    return plain


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Put the additions inside a module into their layers, for good."""
    places = [
        (parent, name, child)
        for parent in module.modules() for name, child in parent.named_children()
        if isinstance(child, LowRank)
    ]  # fmt: skip
    for parent, name, child in places:
        child.base.weight.copy_(LowRank.merged(child.base.weight, child.down, child.up, child.scale))
        setattr(parent, name, child.base)
