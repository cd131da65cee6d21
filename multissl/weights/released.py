"""Models that were released: what they are called, whose layout they are in, their licence, sizes and input constants.

`released.json` holds a row for each. It is data for messages and for what no file tells, such as the number of heads;
nothing is fetched.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from multissl.plain_data import parse_json
from multissl.weights.unwrapping import State


class Released(NamedTuple):
    """A released model."""

    name: str
    """How its file is called, without its ending; a star stands for anything."""
    layout: str
    licence: str
    """SPDX identifier, or the name of a licence of its own."""
    dim: int
    depth: int
    heads: int
    patch: int
    size: int
    """Pixels of the side of a picture or frame that it was trained on."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Input constants of red, green and blue, of values from 0 to 1."""


@functools.cache
def released() -> list[Released]:
    """Return all rows of the table."""
    path = Path(__file__).with_name("released.json")
    data: Any = parse_json(path.read_text(encoding="utf-8"), str(path))
    constants = {name: (tuple(mean), tuple(std)) for name, (mean, std) in data["inputs"].items()}
    return [Released._make([*row[:-1], *constants[row[-1]]]) for row in data["models"]]


def released_heads(layout: str, official: State) -> int | None:
    """Return the number of heads of a network, where all released ones of its layout and sizes have as many."""
    blocks = [int(m[1]) for name in official if (m := re.match(r"blocks\.(\d+)\.", name))]
    if not blocks or "patch_embed.proj.weight" not in official:
        return None
    sizes = (len(official["patch_embed.proj.weight"]), 1 + max(blocks))
    counts = {r.heads for r in released() if r.layout == layout and (r.dim, r.depth) == sizes}
    return counts.pop() if len(counts) == 1 else None
