"""The table of objectives and modalities: which pairs run. The tests write it and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("matrix.json")
WORDS = {"ok": "yes", "experimental": "exp", "untested": "?"}


def read() -> dict[str, Any]:
    """Return `encoder`, and `cells` by modality and objective: "ok", "experimental", or why they do not fit."""
    return json.loads(PATH.read_text())


def as_text() -> str:
    """Return the table as text: objectives down, modalities across, reasons as footnotes."""
    table = read()
    cells: dict[str, dict[str, str]] = table["cells"]
    objectives = list(dict.fromkeys(o for row in cells.values() for o in row))
    said = [row.get(o, "ok") for o in objectives for row in cells.values()]
    reasons = list(dict.fromkeys(reason for reason in said if reason not in WORDS))

    def cell(row: dict[str, str], objective: str) -> str:
        value = row.get(objective, "untested")
        return WORDS.get(value) or f"- [{reasons.index(value) + 1}]"

    width = max(len(o) for o in objectives) + 2
    lines = [
        f"objectives x modalities, each trained for a few steps by the tests; encoder: {table['encoder']}",
        "yes: published for that kind of data, or close to what is; exp: experimental, trains, no reference known",
        "",
        " " * width + "".join(f"{modality:<12}" for modality in cells),
    ]
    lines += [f"{o:<{width}}" + "".join(f"{cell(row, o):<12}" for row in cells.values()) for o in objectives]
    if reasons:
        lines += ["", *(f"[{i + 1}] {reason}" for i, reason in enumerate(reasons))]
    return "\n".join(line.rstrip() for line in lines)
