"""Recipe files of earlier formats, brought to the current one by one table.

Format 2: classes moved into rooms, and options took the spelling of torchvision and of the papers' code
(`Config.renamed` of each component); loggers are named, where TensorBoard was on or off. Add what the next format
changes here, and a run folder of the format before to `tests/old_runs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 2
"""Of `recipe.json`."""
MOVED: dict[str, str] = {"multissl.layers.ema:Teacher": "teacher"}
"""The registry's name, or the new `module:Class`, of components that earlier formats stored by another path."""


def migrate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe of an earlier format with the components and options of the current one."""
    options = _walk(recipe)
    if options.pop("tensorboard", True) is False:  # on, it is what loggers are by default
        options["loggers"] = {}
    return options


def _walk(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            k: MOVED.get(v, v) if k == "kind" and isinstance(v, str) else _walk(v) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(v) for v in value]
    return value
