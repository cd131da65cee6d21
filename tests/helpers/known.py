"""Numbers that are known from before: what the same code gave when they were written down.

Of a tensor its root mean square is kept, and one sum with weights that differ from place to place, so that a value, a
swap of two and a shift are seen. `MULTISSL_WRITE_NUMBERS=1 pytest tests/numbers` writes them down anew, after a change
that is meant to change them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "numbers" / "known"
WRITE = "MULTISSL_WRITE_NUMBERS"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
NAN = 1e3
"""What a NaN, which marks an empty slot or a figure without an interval, is taken for."""

Numbers = dict[str, list[float]]
Cases = dict[str, Numbers]


def numbers_of(tensors: Mapping[str, Tensor]) -> Numbers:
    """Return, of each tensor, how many values it has, their root mean square and their weighted sum."""
    numbers: Numbers = {}
    for name, tensor in tensors.items():
        values = tensor.detach().double().flatten().nan_to_num(NAN, posinf=2 * NAN, neginf=-2 * NAN)
        count = max(len(values), 1)
        weights = torch.cos(torch.arange(len(values), dtype=torch.float64) ** 1.5)
        rms = values.square().sum().div(count).sqrt().item()
        numbers[name] = [len(values), rounded(rms), rounded((values @ weights).item() / math.sqrt(count))]
    return numbers


def words_of(text: str) -> Tensor:
    """Return the letters of a text as numbers; a number in it, which may round elsewhere, stands for itself."""
    words = [ord(letter) for letter in NUMBER.sub("0", text)]
    return torch.tensor([*words, *map(float, NUMBER.findall(text))], dtype=torch.float64)


def rounded(value: float) -> float:
    return float(f"{value:.7g}")


def differences(cases: Cases, known: Cases, limit: float) -> list[str]:
    """Return a line for each case, tensor or number that is not known, or not that; `limit` is a share of the size."""
    wrong = [f"{case}: on one side only" for case in cases.keys() ^ known.keys()]
    for case in cases.keys() & known.keys():
        ours, theirs = cases[case], known[case]
        wrong += [f"{case}: {name} on one side only" for name in ours.keys() ^ theirs.keys()]
        for name in ours.keys() & theirs.keys():
            size = max(abs(theirs[name][1]), 1e-9)
            if any(not abs(a - b) <= limit * size for a, b in zip(ours[name], theirs[name], strict=True)):
                wrong.append(f"{case}: {name} is {ours[name]}, was {theirs[name]}")
    return sorted(wrong)


def check_known(name: str, cases: Cases, limit: float) -> None:
    """Compare cases with those written down under a name; cases that equal the first one are kept as its name alone."""
    path = FOLDER / f"{name}.json"
    if os.environ.get(WRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written(cases))
        return
    wrong = differences(cases, read(path), limit)
    assert not wrong, "\n".join([f"{len(wrong)} differ from tests/numbers/known/{path.name}:", *wrong[:20]])


def written(cases: Cases) -> str:
    """Return cases as text, a line for each; what a case has in common with the first one is left out."""
    first = next(iter(cases.values()))
    lines: list[str] = []
    for case, numbers in cases.items():
        own: dict[str, Any] = {n: v for n, v in numbers.items() if numbers is first or first.get(n) != v}
        own |= {n: None for n in first if n not in numbers}
        lines.append(f"{json.dumps(case)}: {json.dumps(own)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> Cases:
    """Return the cases of a file."""
    data: dict[str, dict[str, list[float] | None]] = json.loads(path.read_text())
    first = next(iter(data.values()))
    return {case: {n: v for n, v in {**first, **own}.items() if v is not None} for case, own in data.items()}
