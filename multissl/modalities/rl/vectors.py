"""Observations that are numbers: what they are called, how they become a row, and how rows are standardized.

A row is what gymnasium's `flatten` makes of an observation: boxes and bits as they are, choices one-hot. A state, which
probes look for, says a choice by its number instead. Pictures have no part in either.
Shapes: T observations, n numbers of a row, m of a state.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multissl import registry
from multissl.registry import suggest


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A number, or numbers, or a choice of a row, which lie from `first` on."""

    name: str
    first: int
    width: int
    low: int | None = None
    """The first choice; None where it is no choice."""

    @property
    def columns(self) -> list[str]:
        """Return a name for each number of the row."""
        if self.low is not None:
            return [f"{self.name}={self.low + i}" for i in range(self.width)]
        return numbered(self.name, self.width)


class Numbers:
    """The parts of an observation space that are numbers."""

    def __init__(self, space: Any, without: Sequence[Any] | None = None, entry: str = "") -> None:
        """Take a space, and the name of the only entry that counts.

        `without` is the path of the picture that is observed: with it, boxes of several axes are left out too.
        """
        leaves = dict(_leaves(space))
        if without is not None:
            leaves = {p: s for p, s in leaves.items() if p != without and len(s.shape or ()) < 2}
        if entry:
            named = {p: leaf for p, leaf in leaves.items() if f"{_name(p)}.".startswith(f"{entry}.")}
            if not named:
                raise ValueError(
                    f"modality.entry={entry!r} is none of {space}{suggest(entry, map(_name, leaves))}"
                )
            leaves = named
        self.leaves = {path: leaf for path, leaf in leaves.items() if leaf.is_np_flattenable}
        self.unread = [f"{_name(p) or 'it'} ({leaf})" for p, leaf in leaves.items() if p not in self.leaves]
        self.parts: list[Part] = []
        for path, leaf in self.leaves.items():
            self.parts += _parts(leaf, _name(path) or "state", sum(part.width for part in self.parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """Return a name for each number of a row."""
        return tuple(column for part in self.parts for column in part.columns)

    def row(self, observation: Any) -> np.ndarray:
        """Return the numbers of an observation, float32 [n]."""
        flatten = registry.require("gymnasium").spaces.utils.flatten
        rows = [flatten(leaf, _at(observation, path)) for path, leaf in self.leaves.items()]
        return np.concatenate([np.zeros(0), *rows]).astype(np.float32)

    def rows(self, observations: Any, count: int) -> np.ndarray:
        """Return the numbers of observations in one array [T, ...] per entry, float32 [T, n]."""
        spaces, parts = registry.require("gymnasium").spaces, [np.zeros((count, 0), np.float32)]
        for path, leaf in self.leaves.items():
            values = _at(observations, path)
            if not isinstance(leaf, spaces.Box | spaces.MultiBinary):
                values = [spaces.utils.flatten(leaf, value) for value in values]
            parts.append(np.asarray(values).reshape(count, -1).astype(np.float32))
        return np.concatenate(parts, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name for each number of a state."""
        parts = [[p.name] if p.low is not None else p.columns for p in self.parts]
        return tuple(name for part in parts for name in part)

    def states(self, rows: np.ndarray) -> np.ndarray:
        """Return the states [T, m] of rows [T, n]: choices as one number each."""
        states = [np.zeros((len(rows), 0), np.float32)]
        for part in self.parts:
            values = rows[:, part.first : part.first + part.width]
            states.append(values if part.low is None else part.low + values.argmax(1, keepdims=True))
        return np.concatenate(states, 1).astype(np.float32)


def numbered(name: str, width: int) -> list[str]:
    """Return a name for each of so many numbers: the name itself for a single one."""
    stem = f"{name}_" if name[-1:].isdigit() else name
    return [name] if width == 1 else [f"{stem}{i}" for i in range(width)]


def check_rows(rows: np.ndarray, columns: Sequence[str], start: np.ndarray) -> None:
    """Refuse observations [T, n] that are not finite; `start` [E+1] is where episodes begin."""
    if np.isfinite(rows).all():
        return
    row, column = (int(place[0]) for place in np.nonzero(~np.isfinite(rows)))
    episode = int(np.searchsorted(start, row, side="right")) - 1
    raise ValueError(
        f"{columns[column]} is {rows[row, column]} at step {row - start[episode]} of episode {episode}: want finite"
        " numbers that 32 bits can hold; mend or drop such steps"
    )


def measured(rows: np.ndarray) -> dict[str, list[float]]:
    """Return mean and deviation of each number of rows [T, n]; one that never changes has deviation 1."""
    mean = rows.mean(0, dtype=np.float64)
    std = (rows - mean).std(0, dtype=np.float64)
    std = np.where(std > 1e-6 * (1e-6 + np.abs(mean)), std, 1.0)
    return {"mean": mean.tolist(), "std": std.tolist()}


def _leaves(space: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the spaces inside Dict and Tuple spaces, each with the keys that lead to it."""
    spaces = registry.require("gymnasium").spaces
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _leaves(part, (*path, key))
    else:
        yield path, space


def _name(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _at(observation: Any, path: Iterable[Any]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _parts(space: Any, name: str, first: int) -> list[Part]:
    """Return the parts of a space without others inside, the first of which lies at `first`."""
    spaces = registry.require("gymnasium").spaces
    if isinstance(space, spaces.Discrete):
        return [Part(name=name, first=first, width=int(space.n), low=int(space.start))]
    if not isinstance(space, spaces.MultiDiscrete):
        return [Part(name=name, first=first, width=spaces.utils.flatdim(space))]
    counts, starts = space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist()
    parts = []
    for label, count, start in zip(numbered(name, len(counts)), counts, starts, strict=True):
        parts.append(Part(name=label, first=first, width=count, low=start))
        first += count
    return parts
