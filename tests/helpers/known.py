"""Numbers that are known from before: what the same code gave when they were written down.

Of a tensor its root mean square is kept, and one sum with weights that differ from place to place, so that a value, a
swap of two and a shift are seen. `MULTISSL_WRITE_NUMBERS=1 pytest tests/numbers` writes them down anew, after a change
that is meant to change them.

Processors round differently, and some numbers hang on that: gradients where two embeddings are nearly equal, a sample
between two classes. So numbers that differ are made again under other roundings (`tests/helpers/rounding.py`), and what
moves there by a third of the difference or more says nothing about the code.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.rounding import AnotherRounding

FOLDER = Path(__file__).parents[1] / "numbers" / "known"
WRITE = "MULTISSL_WRITE_NUMBERS"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ROUNDINGS, ROOM = 4, 3.0
"""How often numbers that differ are made again, and how many times the largest move among these they may differ."""
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


def differences(cases: Cases, known: Cases, limit: float, others: Sequence[Cases] = ()) -> list[str]:
    """Return a line for each case, tensor or number that is not known, or not that.

    `limit` is a share of the size; `others` are the cases under other roundings, whose moves are allowed for.
    """
    wrong = [f"{case}: on one side only" for case in cases.keys() ^ known.keys()]
    for case in cases.keys() & known.keys():
        ours, theirs = cases[case], known[case]
        wrong += [f"{case}: {name} on one side only" for name in ours.keys() ^ theirs.keys()]
        for name in ours.keys() & theirs.keys():
            allowed = limit * max(abs(theirs[name][1]), 1e-9)
            moves = [moved(ours[name], other.get(case, {}).get(name)) for other in others]
            allowed = max([allowed, *(ROOM * move for move in moves)])
            if any(not abs(a - b) <= allowed for a, b in zip(ours[name], theirs[name], strict=True)):
                wrong.append(f"{case}: {name} is {ours[name]}, was {theirs[name]}")
    return sorted(wrong)


def moved(numbers: list[float], other: list[float] | None) -> float:
    """Return how far one of the numbers of a tensor moved at most; 0 where it has another size or is not there."""
    if other is None or other[0] != numbers[0]:
        return 0.0
    return max(abs(a - b) for a, b in zip(numbers, other, strict=True))


def check_known(name: str, make: Callable[[], Cases], limit: float) -> None:
    """Compare the cases that `make` gives with those written down under a name.

    Cases that equal the first one are kept as its name alone.
    """
    path, cases = FOLDER / f"{name}.json", make()
    if os.environ.get(WRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written(cases))
        return
    wrong = differences(cases, read(path), limit)
    if wrong:
        wrong = differences(cases, read(path), limit, [otherwise(make, seed) for seed in range(ROUNDINGS)])
    assert not wrong, "\n".join([f"{len(wrong)} differ from tests/numbers/known/{path.name}:", *wrong[:20]])


def otherwise(make: Callable[[], Cases], seed: int) -> Cases:
    """Return cases as another processor may have them."""
    with AnotherRounding(seed):
        return make()


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
