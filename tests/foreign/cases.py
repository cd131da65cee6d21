"""Inputs that broke other projects, each with the issue that reports it, what it is, and what happens to it here.

A case is a function that builds its input in a folder and asserts the result; `case` registers it. The table of them
is docs/foreign_inputs.md: `python -m tests.foreign.test_log` prints it.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

MODALITIES = ("image", "video", "audio", "text", "tabular", "rl", "pairs")


class Case(NamedTuple):
    """An input of somebody else."""

    modality: str
    source: str
    """The issue, as owner/name#number."""
    given: str
    result: str
    check: Callable[[Path], None]


CASES: dict[str, Case] = {}


def case(modality: str, source: str, given: str, result: str) -> Callable[[Callable[[Path], None]], None]:
    """Register a function that builds an input and checks what happens to it."""

    def register(check: Callable[[Path], None]) -> None:
        CASES[check.__name__.replace("_", " ")] = Case(modality, source, given, result, check)

    return register


def picture(level: int = 100, form: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    """The bytes of a grey picture."""
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(out, form)
    return out.getvalue()


def folder(root: Path, files: Mapping[str, bytes]) -> str:
    """A folder of files by name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def tar(path: Path, files: Mapping[str, bytes]) -> str:
    """A tar of members by name."""
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return str(path)


def packed(path: Path, files: Mapping[str, bytes]) -> str:
    """A zip of members by name."""
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
    return str(path)


def log() -> str:
    """Return the cases as a table."""
    lines = ["| modality | issue | input | what happens |", "|---|---|---|---|"]
    for each in CASES.values():
        cells = (text.replace("|", "\\|") for text in each[:4])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
