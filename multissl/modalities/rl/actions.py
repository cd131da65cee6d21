"""Actions of any space: drawn at random for an environment, and written as the numbers that objectives read.

A choice (Discrete) is counted from 0 wherever its space starts; choices inside other spaces, and those of a
MultiDiscrete, become one-hot numbers; bits and bounded boxes are their own numbers; the parts of a Dict or a Tuple lie
one after the other. Actions are uniform, and each is kept for some steps.
Shapes: T steps, A numbers of an action.  State: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multissl import registry

KEEP = 0.75
"""Chance that an action is kept for another step."""


def policy(rng: np.random.Generator, choices: int, steps: int) -> np.ndarray:
    """Uniform actions, each kept for 1 / (1 - KEEP) steps on average: int64 [T]."""
    fresh, drawn = rng.random(steps) >= KEEP, rng.integers(choices, size=steps)
    fresh[:1] = True
    return drawn[np.maximum.accumulate(np.where(fresh, np.arange(steps), 0))]


def num_choices(space: Any) -> int:
    """Return how many actions there are to choose from; 0 where an action is several numbers."""
    return int(space.n) if isinstance(space, registry.require("gymnasium").spaces.Discrete) else 0


def draw_actions(space: Any, rng: np.random.Generator, steps: int) -> Any:
    """Return T random actions, nested as their space is, in one array [T, ...] per part."""
    if choices := num_choices(space):
        return int(space.start) + policy(rng, choices, steps)
    return _draw(space, rng, policy(rng, steps, steps))


def _draw(space: Any, rng: np.random.Generator, kept: np.ndarray) -> Any:
    """Draw T actions and repeat them as `kept` says: int64 [T], the number of the draw in force at each step."""
    spaces, size = registry.require("gymnasium").spaces, (len(kept), *(space.shape or ()))
    if isinstance(space, spaces.Dict):
        return {key: _draw(part, rng, kept) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_draw(part, rng, kept) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return space.start + rng.integers(space.n, size=size)[kept]
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + rng.integers(space.nvec, size=size)[kept]).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=size)[kept].astype(space.dtype)
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        if space.dtype.kind == "f":
            return rng.uniform(space.low, space.high, size).astype(space.dtype)[kept]
        low, high = space.low.astype(np.int64), space.high.astype(np.int64)
        return rng.integers(low, high, size, endpoint=True)[kept].astype(space.dtype)
    raise ValueError(
        f"actions are {space}: want a choice (Discrete) or a bounded box, MultiDiscrete, MultiBinary, or a Dict or"
        " Tuple of these"
    )


def action_at(space: Any, actions: Any, t: int) -> Any:
    """Return one of T actions as an environment takes it."""
    spaces = registry.require("gymnasium").spaces
    if isinstance(space, spaces.Dict):
        return {key: action_at(part, actions[key], t) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(action_at(part, actions[i], t) for i, part in enumerate(space.spaces))
    return int(actions[t]) if isinstance(space, spaces.Discrete) else np.asarray(actions[t])


def encode_actions(space: Any, actions: Any) -> np.ndarray:
    """Return T actions, nested as their space is, as int64 [T] of a Discrete, else as float32 [T, A]."""
    if num_choices(space):
        return np.asarray(actions).reshape(-1).astype(np.int64) - int(space.start)
    return _encode(space, actions).astype(np.float32)


def _encode(space: Any, actions: Any) -> np.ndarray:
    spaces = registry.require("gymnasium").spaces
    if isinstance(space, spaces.Dict):
        return np.concatenate([_encode(part, actions[key]) for key, part in space.spaces.items()], 1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([_encode(part, actions[i]) for i, part in enumerate(space.spaces)], 1)
    values = np.asarray(actions)
    values = values.reshape(len(values), -1)
    if isinstance(space, spaces.Discrete):
        return one_hot(values, [int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return one_hot(values, space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist())
    return values


def one_hot(values: np.ndarray, counts: Sequence[int], starts: Sequence[int]) -> np.ndarray:
    """Return choices [T, n], counted from `starts`, as one-hot numbers [T, sum of counts]."""
    columns = zip(values.T, counts, starts, strict=True)
    return np.concatenate([np.eye(count)[column - start] for column, count, start in columns], 1)
