"""What an objective asks of a modality, and what encoders have to know of a stream.

Shapes: N tokens of a global view, C channels or columns, L symbols of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from multissl.contract.data import Role

Masking = Literal["none", "replace", "drop", "causal"]
"""What an encoder does with a view's mask: ignore it; put the mask token on hidden tokens (iBOT, BERT); leave
hidden tokens out (MAE); or ignore it and let every token see only those before it (next-token prediction)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPlan:
    """What an objective asks of one stream; declared once, checked before the first batch."""

    num_clean: int = 0
    """Canonical views without augmentation, for pairs and for evaluation."""
    num_global: int = 0
    num_local: int = 0
    size: tuple[int, ...] = ()
    """Space of clean and global views, such as (448, 448) pixels, instead of the modality's own; empty leaves that."""
    mask_ratio: tuple[float, float] | None = None
    """Range of the hidden share of a global view; a fixed ratio is (r, r)."""
    mask_share: float = 1.0
    """Share of the global views that are masked at all."""
    num_masks: int = 1
    """Masks for each view, for objectives that make several predictions from one pass."""
    context_ratio: tuple[float, float] | None = None
    """Range of the share of tokens that a context shows. Where it is given, a view has one mask more, the first, which
    hides all but the context, and the context holds no token that a target's mask hides (I-JEPA)."""
    num_contexts: int = 1
    """Contexts of a view, where there are any. Each has a mask, before those of the targets."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Range of a target's height over its width, where there is a context and targets are blocks."""
    corrupt: bool = False
    """Replace the hidden values by other plausible values; the mask then tells where (VIME, denoising)."""
    target: bool = False
    larger: tuple[int, ...] = ()
    """Space in which global views are shown once more, without changes of color (`Views.larger`); empty: not at all."""
    coords: bool = False
    """Tell where the tokens of global and local views lie in the sample (`Views.coords`)."""
    inner: int = 0
    """How many last blocks' outputs the objective reads."""

    def __post_init__(self) -> None:
        low, high = self.mask_ratio or (0.0, 0.0)
        if not 0 <= low <= high < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio}: want 0 <= low <= high < 1")
        if not 0 <= self.mask_share <= 1:
            raise ValueError(f"mask_share={self.mask_share}: want a share between 0 and 1")

    @property
    def all_masks(self) -> int:
        """Return how many masks a global view has, those of contexts included."""
        return self.num_masks + (self.num_contexts if self.context_ratio is not None else 0)

    def count(self, role: Role) -> int:
        """Return how many views of a role are asked for."""
        return {"clean": self.num_clean, "global": self.num_global, "local": self.num_local}[role]


Plans = Mapping[str, ViewPlan]
"""By stream."""
CLEAN = ViewPlan(num_clean=1)
"""The plan of every evaluator: one canonical view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSpec:
    """What encoders and decoders must know of a stream to be built for it."""

    kind: Literal["grid", "sequence", "columns"]
    shape: tuple[int, ...]
    """(C, *space) of a global view | (L,) | (C,)"""
    num_tokens: int
    """Tokens of a global view."""
    patch: tuple[int, ...] = ()
    """Token size along each space axis of a grid."""
    stride: tuple[int, ...] = ()
    """Steps from one token to the next along these axes, where tokens overlap; empty: their size."""
    vocab: int = 0
    """Symbols of a sequence."""
    cardinalities: tuple[int, ...] = ()
    """Levels of each column, 0 for a number."""
    condition_dim: int = 0
    target_dim: int = 0
    """T: floats, classes or cells to predict for a token."""
    target_tokens: int = 0
    """N' where the target is not as long as the view, else 0."""
    target_kind: Literal["values", "classes", "cells"] = "values"
    channels: tuple[str, ...] = ()
    """Names of the channels or columns, where they have any."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Return how many tokens of a global view lie along each space axis of a grid."""
        return tokens_along(self.shape[1:], self.patch, self.stride)


def tokens_along(space: Sequence[int], patch: Sequence[int], stride: Sequence[int] = ()) -> tuple[int, ...]:
    """Return how many tokens of a size fit along each axis, one every `stride`; what is left at the end is in none."""
    return tuple((n - p) // s + 1 for n, p, s in zip(space, patch, stride or patch, strict=True))
