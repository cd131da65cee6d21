"""Actions of any space: drawn at random for an environment, and written as the numbers that objectives read.

A choice (Discrete) is counted from 0 wherever its space starts. All else is flattened as gymnasium does: choices inside
other spaces, and those of a MultiDiscrete, become one-hot numbers; bits and boxes are their own numbers; the parts of a
Dict or a Tuple lie one after the other. Actions are uniform (gymnasium's own draw where a box has no bounds), and each
is kept for some steps.
Shapes: T steps, A numbers of an action.  State: none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
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


def draw_actions(space: Any, rng: np.random.Generator, steps: int) -> list[Any]:
    """Return T random actions as an environment takes them."""
    if choices := num_choices(space):
        return (int(space.start) + policy(rng, choices, steps)).tolist()
    if not space.is_np_flattenable:
        raise ValueError(
            f"actions are {space}, which no row of numbers can say: want a Discrete, a box, MultiDiscrete, MultiBinary,"
            " or a Dict or Tuple of these"
        )
    kept = policy(rng, steps, steps)  # the number of the draw in force at each step
    drawing = copy.deepcopy(space)  # the environment's own generator stays as it is
    drawing.seed(int(rng.integers(2**31)))
    drawn = [drawing.sample() for _ in range(steps)]
    return [drawn[place] for place in kept.tolist()]


def encode_actions(space: Any, actions: Iterable[Any]) -> np.ndarray:
    """Return T actions as int64 [T] of a Discrete, else as float32 [T, A]."""
    if num_choices(space):
        return np.array([int(action) - int(space.start) for action in actions], np.int64)
    flatten = registry.require("gymnasium").spaces.utils.flatten
    return np.stack([flatten(space, action) for action in actions]).astype(np.float32)


def each(space: Any, batched: Any, count: int) -> Iterable[Any]:
    """Yield what lies in one array [count, ...] per part of a space, nested as the space is, one at a time."""
    utils = registry.require("gymnasium").vector.utils
    return utils.iterate(utils.batch_space(space, count), batched)
