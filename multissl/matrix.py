"""The tables of objectives by modalities and by backbones: which pairs run. The tests write them and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("matrix.json")
WORDS = {"ok": "yes", "experimental": "exp", "untested": "?"}


def read() -> dict[str, Any]:
    """Return `encoder`, `cells` by modality and objective, and `backbones` by network and objective.

    A cell is "ok", "experimental", or why the two do not fit.
    """
    return json.loads(PATH.read_text())


def as_text() -> str:
    """Return the tables as text: objectives down, modalities or backbones across, reasons as footnotes."""
    table = read()
    modalities = [
        f"objectives x modalities, each trained for a few steps by the tests; encoder: {table['encoder']}",
        "yes: published for that kind of data, or close to what is; exp: experimental, trains, no reference known",
    ]
    backbones = ["objectives x backbones, on pictures, each trained for a step by the tests"]
    return f"{_text(modalities, table['cells'])}\n\n{_text(backbones, table['backbones'])}"


def _text(title: list[str], cells: dict[str, dict[str, str]]) -> str:
    """Return a table under its title."""
    objectives = list(dict.fromkeys(o for row in cells.values() for o in row))
    said = [row.get(o, "ok") for o in objectives for row in cells.values()]
    reasons = list(dict.fromkeys(reason for reason in said if reason not in WORDS))

    def cell(row: dict[str, str], objective: str) -> str:
        value = row.get(objective, "untested")
        return WORDS.get(value) or f"- [{reasons.index(value) + 1}]"

    width, column = max(len(o) for o in objectives) + 2, max(12, *(len(name) + 2 for name in cells))
    lines = [*title, "", " " * width + "".join(f"{name:<{column}}" for name in cells)]
    lines += [
        f"{o:<{width}}" + "".join(f"{cell(row, o):<{column}}" for row in cells.values()) for o in objectives
    ]
    if reasons:
        lines += ["", *(f"[{i + 1}] {reason}" for i, reason in enumerate(reasons))]
    return "\n".join(line.rstrip() for line in lines)
