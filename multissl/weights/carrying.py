"""What a learner takes over from one of other sizes: everything of its shape, positions and patches resampled.

A table of positions is resampled as its encoder resamples it for views of other sizes, so that the first pass at the
new size is that which the old encoder would have made. Kernels of patches are resampled by FlexiViT's pseudo-inverse.
Copies of encoders, such as teachers, are treated like the encoders.
Shapes: as in `weights.resampling`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from multissl.layers.patches import Patches
from multissl.layers.positions import resample
from multissl.layers.tokenizers import GridTokenizer
from multissl.weights.resampling import fit_patches

ENCODERS = "encoders."
"""What the names of a learner's own encoders begin with."""


@dataclass(kw_only=True, slots=True)
class Carrying:
    """How the state of a learner becomes that of another one, by the names of its tensors."""

    resampled: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """What is resampled, in words, with the names of its tensors."""
    fresh: list[str] = field(default_factory=list)
    """Tensors that the old learner lacks, which stay as they were built."""
    dropped: list[str] = field(default_factory=list)
    """Tensors that the new learner lacks."""

    def carried(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole state of the new learner, of that of the old one and its own fresh tensors."""
        state = dict(new)
        for name in state.keys() & old.keys():
            resampled = self.resampled.get(name)
            state[name] = resampled(old[name]) if resampled else old[name]
        return state


def carrying(old: nn.Module, new: nn.Module) -> Carrying:
    """Return how the state of one learner becomes that of another; neither needs to hold numbers.

    Raises a ValueError where encoders lose or gain tensors, or tensors that no rule resamples have another shape.
    """
    plan, before, after = Carrying(), old.state_dict(), new.state_dict()
    modules = dict(old.named_modules(remove_duplicate=False))
    for name, module in new.named_modules():
        if isinstance(module, GridTokenizer):
            _plan_tokenizer(plan, f"{name}.", modules.get(name), module)
    plan.fresh = [n for n in after if n not in before]
    plan.dropped = [n for n in before if n not in after]
    problems = [
        f"{n} is {tuple(before[n].shape)}, it would be {tuple(t.shape)}"
        for n, t in after.items()
        if n in before and n not in plan.resampled and before[n].shape != t.shape
    ]
    problems += [f"{n} would come in" for n in plan.fresh if n.startswith(ENCODERS)]
    problems += [f"{n} would go" for n in plan.dropped if n.startswith(ENCODERS)]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{'; '.join(problems[:3])}{more}")
    return plan


def _plan_tokenizer(plan: Carrying, prefix: str, old: nn.Module | None, new: GridTokenizer) -> None:
    """Add to a plan how the positions and patches of a tokenizer are resampled, if they are."""
    if not isinstance(old, GridTokenizer) or len(old.grid) != len(new.grid):
        return
    learned = isinstance(new.pos_embed, nn.Parameter) and isinstance(old.pos_embed, nn.Parameter)
    if learned and old.grid != new.grid and old.class_rows == new.class_rows:
        how, name = new.position, f"{prefix}pos_embed"
        plan.resampled[name] = functools.partial(
            resample, old=old.grid, new=new.grid, offset=how.offset, antialias=how.antialias,
            prefix=new.class_rows, interpolation=how.interpolation,
        )  # fmt: skip
        plan.said[name] = f"positions {_sides(old.grid)} -> {_sides(new.grid)}"
    if isinstance(old.patch_embed, Patches) and isinstance(new.patch_embed, Patches):
        weight, name = new.patch_embed.proj.weight, f"{prefix}patch_embed.proj.weight"
        alike = old.patch_embed.proj.weight.shape[:2] == weight.shape[:2]  # width and channels
        if old.patch != new.patch and len(new.patch) == 2 and alike:
            plan.resampled[name] = functools.partial(_patches, shape=weight.shape)
            plan.said[name] = f"patches {_sides(old.patch)} -> {_sides(new.patch)}"


def _patches(weight: Tensor, shape: torch.Size) -> Tensor:
    return fit_patches(weight, shape)[0]


def _sides(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
