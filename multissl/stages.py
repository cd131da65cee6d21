"""Stages of a run: changes of its recipe after so many steps, which keep what was learned so far.

A run is a chain. Each stage has the recipe of the one before with some options changed; steps and the order of the data
go on, schedules are laid out anew over the stage's own steps, and encoders, heads, teachers and centers are taken over,
positions and patches resampled where sizes change. DINOv2's high resolution (arXiv 2304.07193, section 4), DINOv3's
Gram anchoring (arXiv 2508.10104, section 4) and cool-downs are such stages.
State: none.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from multissl.config import Config, from_dict, hints_of, no_option, replaced, to_dict, vars_of
from multissl.registry import suggest

Changed = TypeVar("Changed", bound=Config)

FIRST = "first"
"""The name of what a run trains before its stages."""
FIXED = {
    "steps": "give them as the stage's own steps",
    "stages": "a stage has none of its own",
    "seed": "the order of the data goes on with it",
    "init": "a stage begins with what the one before it learned",
    "fit": "the modality stays as the first stage fitted it",
}
"""Options of a recipe that no stage changes, and why or what to do instead."""


@dataclass(kw_only=True, slots=True)
class Stage(Config):
    """What changes in a run, and for how long."""

    name: str
    """How checkpoints, the report and messages call it."""
    steps: int
    """Steps of the stage; they are counted on over the run."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Options by their path in the recipe, such as {"modality.size": 64, "optim.lr": 1e-4}."""
    optimizer: Literal["keep", "reset"] = "keep"
    """Whether the optimizer's moments go on; those of tensors that are resampled begin anew in any case."""

    def __post_init__(self) -> None:
        if not self.name or self.name == FIRST:
            raise ValueError(f"stages.name={self.name!r}: want a name of its own, such as 'high_resolution'")
        if self.steps < 1:
            raise ValueError(f"stages.{self.name}.steps={self.steps}: want 1 or more")
        self.changes = to_dict(self.changes)


def changed(config: Changed, changes: Mapping[str, Any]) -> Changed:
    """Return a config with options changed by their paths, all at once, as limits hold between options.

    Raises a ValueError that names an option which is not there, or a value that it does not take.
    """
    return _replaced(config, _tree(changes), "")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value that an option gets."""

    value: Any


def _tree(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes by path as nested mappings with a `_Leaf` at each end."""
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        *parents, last = path.split(".")
        here: Any = tree
        for parent in parents:
            here = here.setdefault(parent, {})
            if isinstance(here, _Leaf):
                break
        if isinstance(here, _Leaf) or last in here:
            raise ValueError(f"changes of {path} and of what it is a part of: give one of the two")
        here[last] = _Leaf(value)
    return tree


def _replaced(config: Any, tree: Mapping[str, Any], path: str) -> Any:
    hints, values = hints_of(type(config)), vars_of(config)
    made: dict[str, Any] = {}
    for name, node in tree.items():
        if name not in values:
            raise ValueError(no_option(path.rstrip(".") or "the recipe", type(config), name))
        made[name] = _value(hints[name], values[name], node, f"{path}{name}")
    return replaced(config, made, path)


def _value(hint: Any, value: Any, node: Any, path: str) -> Any:
    if isinstance(node, _Leaf):
        return from_dict(hint, node.value, path)
    if isinstance(value, Config):
        return _replaced(value, node, f"{path}.")
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}={value!r} has no options: {path}.{next(iter(node))} is none")
    members = dict(value)
    kind = typing.get_args(hint)[1]
    for key, below in node.items():
        if key not in value and not isinstance(below, _Leaf):
            raise ValueError(f"{path} has no {key!r}{suggest(key, value)}")
        members[key] = _value(kind, value.get(key), below, f"{path}.{key}")
    return members
