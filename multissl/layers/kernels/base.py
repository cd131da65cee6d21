"""What an attention kernel is handed, and what it says of itself.

Shapes: R_i rows of N_i tokens in group i, T = sum of R_i * N_i packed tokens, H heads of width d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from multissl import registry
from multissl.layers.rope import Rotation


class Layout(NamedTuple):
    """How packed tokens fall into groups, and who may look at whom; made once per pass for all blocks."""

    sizes: tuple[tuple[int, int], ...]
    """(R_i, N_i) of every group."""
    causal: bool = False
    masks: tuple[Tensor | None, ...] = ()
    """By group, bool [R_i, 1, 1 or N_i, N_i], True where a token may look, or numbers [R_i or 1, H, N_i, N_i] that are
    added to the scores; None: everywhere."""
    prepared: Any = None
    """What the kernel made of the sizes."""
    rotation: Rotation | None = None
    """How queries and keys are turned, where positions are rotary."""
    steps: tuple[Tensor, ...] = ()
    """By group, int64 [N_i, N_i], which row of a table of relative positions stands for two tokens."""

    @property
    def lengths(self) -> list[int]:
        """R_i * N_i of every group."""
        return [rows * tokens for rows, tokens in self.sizes]


class Kernel(ABC):
    """Base of attention kernels; made once per process, without options and without state."""

    name: ClassVar[str]
    """How it is registered, for messages."""
    takes_padding: ClassVar[bool] = False
    """Whether it can leave padded tokens out."""
    takes_causal: ClassVar[bool] = False
    """Whether it can let every token see only those before it."""

    def prepare(self, sizes: Sequence[tuple[int, int]], causal: bool, device: torch.device) -> Any:
        """Return what it needs to know of groups (R_i, N_i), once for all blocks of a pass."""
        return None

    @abstractmethod
    def __call__(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Attend: queries, keys and values [T, 3, H, d] to [T, H, d]; each row sees itself alone."""

    def check_half_on_cuda(self, x: Tensor) -> None:
        """Raise a ValueError where x is not in half precision on CUDA, for kernels that exist there alone."""
        if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"attention={self.name} runs on CUDA in half precision, found {x.device.type} and "
                f"{str(x.dtype).removeprefix('torch.')}: use attention=sdpa, or parallel.precision=bf16 on a GPU"
            )


def kernel(name: str) -> Kernel:
    """Return the kernel that is registered under a name."""
    return registry.resolve(name, "kernels")()


def layout(
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
    attend: Kernel,
    causal: bool = False,
    valid: Sequence[Tensor | None] = (),
) -> Layout:
    """Return the layout of groups (R_i, N_i) for a kernel; `valid` holds bool [R_i, N_i] of groups with padding."""
    sizes, real = tuple(sizes), tuple(valid) or (None,) * len(sizes)
    if not attend.takes_padding and any(v is not None for v in real):
        raise ValueError(
            f"attention={attend.name} knows no padding: use attention=sdpa for streams with padded tokens"
        )
    if not attend.takes_causal and causal:
        raise ValueError(f"attention={attend.name} is not causal: use attention=sdpa")
    masks = tuple(None if v is None else _mask(v, causal) for v in real)
    return Layout(sizes, causal, masks, attend.prepare(sizes, causal, device))


def _mask(valid: Tensor, causal: bool) -> Tensor:
    keys = valid[:, None, None, :]  # [R, 1, 1, N]
    if not causal:
        return keys
    n = valid.shape[1]
    return keys & torch.ones(n, n, dtype=torch.bool, device=valid.device).tril()
