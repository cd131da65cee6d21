"""Sizes of views that suit the data: what samples usually hold, and the sides of views and tokens for pixels.

Views are as large as the short side of the usual picture, up to a limit, in whole tokens. Tokens are as large as leaves
enough of them along a side; pictures take DINOv2's 14 pixels first. Local views have three sevenths of the side, as 96
of 224, rounded up. What an option says stays, and the rest follows it.
State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from multissl.contract.data import Sample, Samples, Unreadable
from multissl.modalities.image.crops import pair

LOOKED_AT = 64
"""Samples whose sizes are read."""


class Rule(NamedTuple):
    """How sizes follow from a side in pixels."""

    largest: int = 224
    """The largest side of views that is chosen."""
    patches: tuple[int, ...] = (14, 16, 8, 4, 2)
    """Sides of tokens; the first that fits is taken."""
    least: int = 7
    """Tokens along a side that there should be."""
    multiple: int = 0
    """What tokens have to divide beside the sides of views; 0: nothing."""


def sides_for(side: int, cfg: Any, rule: Rule) -> dict[str, Any]:
    """Return size, local_size and patch for pictures of a short side, of which those that `cfg` says stay.

    Raises a ValueError where no token divides the sides that are given.
    """
    given = [n for size in (cfg.size, cfg.local_size) if size for n in pair(size)]
    size, patch, top = cfg.size, cfg.patch, min(pair(cfg.size)) if cfg.size else min(side, rule.largest)
    if not patch:
        fitting = [p for p in rule.patches if all(n % p == 0 for n in (*given, rule.multiple))]
        if not fitting:
            raise ValueError(
                f"modality.size={cfg.size} modality.local_size={cfg.local_size}: no token of "
                f"{', '.join(map(str, rule.patches))} pixels divides them; set modality.patch, or other sizes"
            )
        patch = next((p for p in fitting if top // p >= rule.least), fitting[-1])
    unit = rule.multiple or patch
    size = size or max(top // unit, 1) * unit
    local = tuple(-(-3 * n // (7 * patch)) * patch for n in pair(size))
    return {
        "size": size,
        "local_size": cfg.local_size or (local[0] if local[0] == local[1] else local),
        "patch": patch,
    }


def usual_extent(
    samples: Samples, read: Callable[[Sample], Sequence[float]], plural: str, option: str
) -> tuple[list[float], int]:
    """Return the medians of what `read` gives for up to 64 evenly spaced samples, and how many could be read.

    Raises a ValueError that names the option where none can.
    """
    found: list[Sequence[float]] = []
    count, reason = min(len(samples), LOOKED_AT), "there are none"
    for number in range(count):
        try:
            found.append(read(samples[number * len(samples) // count]))
        except Unreadable as bad:
            reason = reason if reason != "there are none" else bad.reason
    if not found:
        raise ValueError(
            f"modality.data: none of {count} {plural} that were looked at can be read, so none says what "
            f"modality.{option} should be: {reason}"
        )
    return [sorted(values)[len(values) // 2] for values in zip(*found, strict=True)], len(found)


def as_pixels(size: int | tuple[int, int]) -> str:
    """Return a size as messages have it, width first: 224 px, 48 x 32 px."""
    high, wide = pair(size)
    return f"{wide} px" if high == wide else f"{wide} x {high} px"
