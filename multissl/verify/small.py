"""Configs made small: every width in them, nothing switched off."""

from __future__ import annotations

import dataclasses
from typing import Any

from multissl.config import Config

SMALL = {
    "prototypes": 16, "bottleneck": 8, "hidden": 16, "out": 16, "koleo_group": 4, "num_local": 2, "queue": 16,
    "dim": 16, "depth": 1, "heads": 2, "top_k": 2, "group": 4, "matches": (3, 2), "steps": 2, "slices": 16,
}  # fmt: skip
"""Options by name and their small value; 0 and None, which switch a part off, stay."""
NARROW = {"group"}
"""Where an objective has one of these, its projector is narrower: groups are larger than the width they whiten."""


def shrunk(cfg: Config) -> Any:
    """The config with every width in it small."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if isinstance(value, Config):
            changes[field.name] = shrunk(value)
        elif isinstance(value, dict):
            changes[field.name] = {k: shrunk(v) if isinstance(v, Config) else v for k, v in value.items()}
        elif field.name in SMALL and value:
            changes[field.name] = SMALL[field.name]
    if changes.keys() & NARROW:
        changes["projector"] = changes["projector"].replace(out=2)
    return cfg.replace(**changes)
