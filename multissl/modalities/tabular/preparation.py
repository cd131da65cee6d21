"""Rows of numbers as clean views: scores of numbers, levels of categories, parts of dates, by the run's schema.

What `Schema.encode` does on a table, on a tensor: a column of the table in its own units stands in a column of the
tensor, NaN where it is missing. Quantiles are found by bisection, and normal scores by Wichura's rational functions
(algorithm AS 241, Applied Statistics 37, 1988), so that programs in other runtimes need neither a search nor an inverse
error function.
Shapes: B rows, S columns of the table, C columns of the encoder, n of one kind, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl.contract.preparation import Constants, Preparation
from multissl.modalities.tabular.schema import (
    CYCLES,
    EDGE,
    EPOCH,
    FAR,
    GONE,
    Column,
    Schema,
    numbers,
    words,
)
from multissl.modalities.tabular.source import as_column
from multissl.modalities.tabular.tables import texts
from multissl.sources.dates import seconds_of

CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
"""Numerator and denominator within 0.425 of the middle, highest power first."""
OUTER = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
"""The same beyond it, as far as ranks come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A column of the table that the encoder reads something of."""

    name: str
    kind: str
    """number, date (seconds since 1970 in UTC) or category (the place of its level in `levels`)."""
    levels: tuple[str, ...] = ()


def inputs_of(schema: Schema) -> tuple[Input, ...]:
    """Return the columns of a table that a schema reads, in the order in which it first reads them."""
    inputs: dict[str, Input] = {}
    for column in schema.columns:
        kind = "category" if column.kind == "category" else "date" if column.part else "number"
        inputs.setdefault(column.source, Input(name=column.source, kind=kind, levels=tuple(column.levels)))
        if column.kind == "flag" and inputs[column.source].levels:  # its levels are no category's
            inputs[column.source] = Input(name=column.source, kind=kind)
    return tuple(inputs.values())


def preparation_of(schema: Schema) -> TablePreparation:
    """Return the preparation of a schema."""
    inputs = inputs_of(schema)
    place = {each.name: i for i, each in enumerate(inputs)}
    kinds: dict[str, list[int]] = {"quantile": [], "standard": [], "flag": [], "category": []}
    for number, column in enumerate(schema.columns):
        form = "quantile" if len(column.knots) > 2 else "standard"
        kinds[form if column.kind == "number" else column.kind].append(number)
    order = [number for group in kinds.values() for number in group]
    constants = {"order": torch.tensor(order).argsort()}
    for kind, group in kinds.items():
        if group:
            columns = [schema.columns[number] for number in group]
            constants[f"{kind} source"] = torch.tensor([place[c.source] for c in columns])
            constants |= {f"{kind} {name}": t for name, t in _numbers_of(kind, columns).items()}
    return TablePreparation(
        reads=f"rows [B, {len(inputs)}] of numbers, NaN where missing, float64 best",
        constants=constants,
        inputs=inputs,
        kinds=tuple(kind for kind, group in kinds.items() if group),
        dated=any(c.part not in ("", EPOCH) for c in schema.columns),
    )


def _numbers_of(kind: str, columns: Sequence[Column]) -> dict[str, Tensor]:
    """Return what has to be known of columns of one kind, by name, each [n] or [n, Q]."""
    wide = torch.float64
    if kind == "quantile":
        knots = torch.tensor([c.knots for c in columns], dtype=wide)
        exponent = torch.frexp(knots.abs().amax(1))[1] + 1  # see `schema._scaled`
        scale = torch.ldexp(torch.ones(len(columns), dtype=wide), -exponent)
        scaled = torch.ldexp(knots, -exponent[:, None])
        return {"low": knots[:, 0], "high": knots[:, -1], "scale": scale, "knots": scaled}
    if kind == "standard":
        mean, std = torch.tensor([c.knots for c in columns], dtype=wide).unbind(1)
        cycle, wave = zip(*(_wave(c.part) for c in columns), strict=True)
        return {
            "mean": mean,
            "std": std,
            "cycle": torch.tensor(cycle, dtype=wide),
            "wave": torch.tensor(wave),
        }
    if kind == "category":
        gone = [c.levels.index(GONE) if GONE in c.levels else 0 for c in columns]
        return {"count": torch.tensor([len(c.levels) for c in columns]), "gone": torch.tensor(gone)}
    return {}


def _wave(part: str) -> tuple[float, int]:
    """Return the cycle of a part of a date in seconds and 1 for its sine, 2 for its cosine; 0 for plain numbers."""
    if part in ("", EPOCH):
        return 1.0, 0
    cycle, _, wave = part.partition(", ")
    return CYCLES[cycle], 1 if wave == "sine" else 2


@dataclass(kw_only=True)
class TablePreparation(Preparation):
    """Rows [B, S]."""

    inputs: tuple[Input, ...]
    kinds: tuple[str, ...]
    """Kinds of columns that there are, in the order in which they are made."""
    dated: bool
    """Whether a column tells where a date stands in a cycle."""

    def __call__(self, x: Tensor, mask: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
        """Return the cells that the encoder reads, float32 [B, C]."""
        if x.ndim != 2 or x.shape[1] != len(self.inputs):
            raise ValueError(f"a tensor of shape {tuple(x.shape)}: this module reads {self.reads}")
        x = x.double()
        made = {"quantile": self._scores, "standard": self._standard, "flag": _flags, "category": _levels}
        parts = []
        for kind in self.kinds:
            own = {name.removeprefix(f"{kind} "): t for name, t in constants.items() if name.startswith(kind)}
            parts.append(made[kind](x.index_select(1, own["source"]), own).float())
        return torch.cat(parts, 1).index_select(1, constants["order"]), None

    def _scores(self, x: Tensor, own: Constants) -> Tensor:
        """Return the normal scores of numbers [B, n]; 0 where they are missing."""
        known = ~x.isnan()
        value = torch.where(known, x, 0.0).clamp(own["low"], own["high"]) * own["scale"]
        score = normal_quantile(rank(value, own["knots"]).clamp(EDGE, 1 - EDGE))
        return torch.where(known, score, 0.0)

    def _standard(self, x: Tensor, own: Constants) -> Tensor:
        """Return standardized numbers [B, n], of dates those of their parts; 0 where they are missing."""
        known = ~x.isnan()
        value = torch.where(known, x, 0.0)
        if self.dated:
            angle = 2 * math.pi * (value - own["cycle"] * torch.floor(value / own["cycle"])) / own["cycle"]
            turned = torch.where(own["wave"] == 1, angle.sin(), angle.cos())
            value = torch.where(own["wave"] > 0, turned, value)
        return torch.where(known, ((value - own["mean"]) / own["std"]).clamp(-FAR, FAR), 0.0)

    def tensor(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return rows as the module reads them, float64 [B, S], from mappings of column to cell."""
        return torch.from_numpy(np.stack([_numbered(each, rows) for each in self.inputs], 1))

    def example(self, rows: int, other: bool = False) -> tuple[Tensor, ...]:
        """Return rows of usual values and levels, some missing."""
        at = torch.arange(rows * len(self.inputs), dtype=torch.float64).view(rows, -1)
        middle = torch.tensor([self._middle(i) for i in range(len(self.inputs))], dtype=torch.float64)
        x = middle[:, 0] + middle[:, 1] * (at * 0.61803398875 % 1)
        levels = torch.tensor([bool(each.levels) for each in self.inputs])
        x = torch.where(levels, x.floor(), x)
        return (x.masked_fill(at % 11 == 7, float("nan")),)

    def _middle(self, number: int) -> tuple[float, float]:
        """Return the least usual value of a column of the table and how far others lie above it."""
        if self.inputs[number].levels:
            return 0.0, float(len(self.inputs[number].levels))
        for kind, low, high in (("quantile", "low", "high"), ("standard", "mean", "std")):
            places = self.constants.get(f"{kind} source", torch.zeros(0)).tolist()
            if number in places:
                first, second = (
                    float(self.constants[f"{kind} {n}"][places.index(number)]) for n in (low, high)
                )
                return (first, second - first) if kind == "quantile" else (first, second)
        return 0.0, 1.0

    def describe(self) -> dict[str, Any]:
        """Return the columns, with what each number stands for."""
        columns = [
            {"name": c.name, "kind": c.kind, **({"levels": [*c.levels]} if c.levels else {})}
            for c in self.inputs
        ]
        return {"input": self.reads, "columns": columns}


def _flags(x: Tensor, own: Constants) -> Tensor:
    """Return 1 where a cell is missing."""
    return x.isnan()


def _levels(x: Tensor, own: Constants) -> Tensor:
    """Return the numbers of levels [B, n]: 0, unknown, for one that there is none of."""
    known = (x >= 0) & (x < own["count"])
    return torch.where(x.isnan(), own["gone"].to(x.dtype), torch.where(known, x, 0.0))


def _numbered(column: Input, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the cells of a column of rows as numbers, float64 [B]."""
    if any(column.name not in row for row in rows):
        raise ValueError(
            f"a row lacks column {column.name!r}: want {len(column.levels) or 'numbers of'} cells"
        )
    cells = as_column([row[column.name] for row in rows])
    if column.kind == "category":
        place = {level: float(number) for number, level in enumerate(column.levels)}
        return np.array([np.nan if w == GONE else place.get(w, -1.0) for w in words(cells)])
    values, odd = seconds_of(texts(cells).tolist()) if column.kind == "date" else numbers(cells)
    if odd.any():
        raise ValueError(f"column {column.name!r} holds {cells[int(odd.argmax())]!r}: want a {column.kind}")
    return values


def rank(x: Tensor, knots: Tensor) -> Tensor:
    """Return the share of the training rows that lie below values [B, n], mid-rank for ties, by knots [n, Q]."""
    values, last = x.mT.contiguous(), knots.shape[1] - 1  # [n, B]
    below = (_count(values, knots, inclusive=True) - 1).clamp(0, last - 1)
    above = _count(values, knots, inclusive=False).clamp(1, last)
    upper = below + _fraction(
        values - knots.gather(1, below), knots.gather(1, below + 1) - knots.gather(1, below)
    )
    lower = above - _fraction(
        knots.gather(1, above) - values, knots.gather(1, above) - knots.gather(1, above - 1)
    )
    return (upper + lower).mT / (2 * last)


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    """Return part of whole; all of it where the whole is nothing."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 1.0)


def _count(values: Tensor, knots: Tensor, inclusive: bool) -> Tensor:
    """Return how many knots [n, Q] lie below values [n, B], or at them too if inclusive; by bisection."""
    count, size = torch.zeros_like(values, dtype=torch.int64), knots.shape[1]
    for power in reversed(range(size.bit_length())):
        next_count = count + 2**power
        knot = knots.gather(1, (next_count - 1).clamp(max=size - 1))
        below = knot <= values if inclusive else knot < values
        count = torch.where(below & (next_count <= size), next_count, count)
    return count


def normal_quantile(share: Tensor) -> Tensor:
    """Return the values below which shares of a normal distribution lie, for shares of 1e-11 and more on both sides."""
    offset = share - 0.5
    near = offset.abs() <= 0.425
    inner = torch.where(near, 0.180625 - offset * offset, 0.0)
    tail = (-torch.where(near, 0.5, torch.minimum(share, 1 - share)).log()).sqrt() - 1.6
    outer = _ratio(tail, *OUTER)
    return torch.where(near, offset * _ratio(inner, *CENTRAL), torch.where(offset < 0, -outer, outer))


def _ratio(x: Tensor, above: Sequence[float], below: Sequence[float]) -> Tensor:
    return _polynomial(x, above) / _polynomial(x, below)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
