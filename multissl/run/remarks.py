"""What is said of the views at the start of a run: masks in smaller groups, and views that show little of a sample.

State: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from multissl.config import Config, vars_of
from multissl.contract.data import Unreadable
from multissl.contract.modality import Modality
from multissl.contract.plans import Plans
from multissl.recipe import Recipe

READ = 16
"""Training samples that are read for their sizes."""
LEAST = 0.5
"""Share of what a sample holds below which views are said to show little."""
PIXELS = ("width", "height")
"""Units that are counted together, as an area."""


def describe_mask_groups(recipe: Recipe, plans: Plans, ranks: int) -> list[str]:
    """Return a line for every option `mask_group` that is more than what divides a rank's samples of a step."""
    if all(plan.mask_ratio is None for plan in plans.values()):
        return []
    rows, lines = recipe.batch_size // ranks, []
    for option, wanted in _mask_groups(recipe.modality, "modality"):
        size = next(g for g in range(min(wanted, rows), 0, -1) if rows % g == 0)
        if size < wanted:
            of = f"batch_size={rows}" if ranks == 1 else f"the {rows} samples of each of {ranks} ranks"
            lines.append(f"{option}={wanted} is lowered to {size}, the largest divisor of {of} up to it")
    return lines


def _mask_groups(config: Config, path: str) -> Iterator[tuple[str, int]]:
    """Yield the options of this name in a modality's config, and in those of its members, with their values."""
    for name, value in vars_of(config).items():
        if name == "mask_group":
            yield f"{path}.{name}", value
        elif isinstance(value, dict):
            for key, member in value.items():
                if isinstance(member, Config):
                    yield from _mask_groups(member, f"{path}.{name}.{key}")


def describe_views(modality: Modality) -> str:
    """Return a line of the sizes that the data chose, or of what views show where it is less than half, or ""."""
    if modality.sizing:
        return modality.sizing
    shown = modality.shown()
    held = _medians(modality) if shown else {}
    known = {unit: (amount, held[unit], option) for unit, (amount, option) in shown.items() if held.get(unit)}
    together = [[unit] for unit in known if unit not in PIXELS]
    if all(unit in known for unit in PIXELS):
        together.append([*PIXELS])
    parts = []
    for units in together:
        amounts, medians, options = zip(*(known[unit] for unit in units), strict=True)
        share = math.prod(min(amount / median, 1.0) for amount, median in zip(amounts, medians, strict=True))
        if share < LEAST:
            view, sample = (" x ".join(f"{value:.4g}" for value in values) for values in (amounts, medians))
            unit = "pixels" if len(units) > 1 else units[0]
            flags = " ".join(f"--modality.{option}" for option in dict.fromkeys(options))
            parts.append(f"{view} {unit} of {sample} (median), {100 * share:.2g} % ({flags})")
    return f"views show {'; '.join(parts)}" if parts else ""


def _medians(modality: Modality) -> dict[str, float]:
    """Return the median of what some training samples hold, by unit; those that cannot be read are left out."""
    samples, values = modality.dataset("train"), {}
    count = min(READ, len(samples))
    for number in range(count):
        try:
            extent: dict[str, Any] = modality.extent(samples[number * len(samples) // count])
        except Unreadable:
            continue
        for unit, value in extent.items():
            values.setdefault(unit, []).append(value)
    return {unit: sorted(some)[len(some) // 2] for unit, some in values.items()}
