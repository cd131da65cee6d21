"""Which recipe suits data, and the command that runs it.

State: none.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from multissl.doctor.examination import Examination

SMALL_SIDE = 64
"""Pixels of the usual short side up to which pictures are small."""
MANY = 10_000
"""Pictures from which DINOv2's objective for small data sets is worth its time on a GPU."""
SHORT = 2.0
"""Seconds of usual recordings up to which they are words rather than scenes."""


def recipe_of(part: str, examination: Examination) -> tuple[str, str]:
    """Return the recipe for data of a part, and why."""
    extents = {unit: sorted(values)[len(values) // 2] for unit, values in examination.extents().items()}
    count = len(examination.readings["train"].samples)
    if part == "image":
        side = min(extents.get("width", 0), extents.get("height", 0))
        if 0 < side <= SMALL_SIDE:
            return "image/simclr_cifar", f"pictures of {side:g} pixels are small"
        if count >= MANY:
            return "image/dinov2_small_data", f"{count:,} pictures of usual size; it wants a GPU"
        return (
            "image/dinov2_cpu",
            f"{count:,} pictures are few; on a processor, --modality.size 32 takes half an hour",
        )
    if part == "audio" and "seconds" in extents:
        if extents["seconds"] <= SHORT:
            return "audio/words", f"recordings of {extents['seconds']:.2g} s are words or calls"
        return "audio/scenes", f"recordings of {extents['seconds']:.2g} s are scenes"
    return f"{part}/default", "the recipe to begin with"


def advise(
    part: str, data: str, examination: Examination, options: Sequence[str] = (), pairs: str = ""
) -> list[str]:
    """Return what to do next: the command that trains, with the options of the modality that were typed.

    `pairs` is the modality that reads the texts beside the samples, too, where there are some.
    """
    recipe, why = recipe_of(part, examination)
    command = shlex.join(["multissl", "train", recipe, "--data", data, *options])
    lines = [f"next: {command}", f"      {why}; multissl list {part} names the others"]
    if pairs:
        lines.append(f"or:   {shlex.join(['multissl', 'data', data, '--as', pairs])}")
        lines.append("      the table holds a text for each, too: read as pairs")
    return lines
