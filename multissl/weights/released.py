"""Models that were released: what their files are called, their layout, licence, sizes and input constants.

`released.json` holds a row for each, and the licence that weights of a layout were released under. It is data for
messages and for what no file tells, such as the number of heads; nothing is fetched. Licences are as their projects
stated them when the table was written: whoever uses weights reads the text that comes with them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from multissl.plain_data import parse_json
from multissl.weights.unwrapping import State

ENDINGS = re.compile(r"(\.safetensors|\.pth\.tar|\.pth|\.pt|\.bin|\.ckpt)$")
RESTRICTED = ("CC-BY-NC-4.0",)
"""Licences that forbid commercial use."""


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
    """Pixels of the side of a picture or frame that its positions are of; 0: of any."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Input constants of red, green and blue, of values from 0 to 1."""

    @property
    def view_size(self) -> int:
        """Return the side in pixels of the pictures that its authors measure on; of DINOv2 less than its positions."""
        return self.size if self.size and self.layout != "dinov2" else 224


@functools.cache
def _table() -> Mapping[str, Any]:
    path = Path(__file__).with_name("released.json")
    return parse_json(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def released() -> list[Released]:
    """Return all rows of the table."""
    constants = {name: (tuple(mean), tuple(std)) for name, (mean, std) in _table()["inputs"].items()}
    return [Released._make([*row[:-1], *constants[row[-1]]]) for row in _table()["models"]]


def released_as(path: Path | None) -> Released | None:
    """Return the released model that a file is called like."""
    stem = "" if path is None else ENDINGS.sub("", path.name)
    return next((model for model in released() if fnmatchcase(stem, model.name)), None)


def released_heads(layout: str, official: State) -> int | None:
    """Return the number of heads of a network, where all released ones of its layout and sizes have as many."""
    blocks = [int(m[1]) for name in official if (m := re.match(r"blocks\.(\d+)\.", name))]
    if not blocks or "patch_embed.proj.weight" not in official:
        return None
    sizes = (len(official["patch_embed.proj.weight"]), 1 + max(blocks))
    counts = {r.heads for r in released() if r.layout == layout and (r.dim, r.depth) == sizes}
    return counts.pop() if len(counts) == 1 else None


def licence_of(layout: str, path: Path | None, config: Mapping[str, Any]) -> str:
    """Return the licence that weights were released under, "" where the table does not know."""
    model = released_as(path)
    if model is not None and model.layout == layout:
        return model.licence
    licences = _table()["licences"]
    return licences.get(config.get("model_type", ""), licences.get(layout, ""))


def licence_line(stream: str, layout: str, path: Path | None, config: Mapping[str, Any]) -> str:
    """Return the line about the licence of weights; "" where none is known."""
    licence = licence_of(layout, path, config)
    if not licence:
        return f"the licence of the weights of {stream} is not known here: read what came with them"
    model = released_as(path)
    what = f"{model.name} was" if model is not None else f"weights of this kind ({layout}) were"
    limit = ": no commercial use, of what is trained from them neither" if licence in RESTRICTED else ""
    return f"{what} released under {licence}{limit}; read what came with them"
