"""Configs with one option turned away from its default: the other ways that a component offers."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from multissl.config import Config, alternatives, hints_of


def turned(cfg: Config, leave: tuple[str, ...] = (), numbers: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield, by what is changed, the config with each other value of a choice, each flag turned, each number moved.

    A number that is 0, which mostly switches a part off, is turned on. What the config itself refuses is left out, and
    so are the options named in `leave`, and numbers where `numbers` is False.
    """
    for field in dataclasses.fields(cfg):
        if field.name in leave:
            continue
        for value in others(hints_of(type(cfg))[field.name], getattr(cfg, field.name)):
            if not (numbers or isinstance(value, bool | str)):
                continue
            try:
                yield f"{field.name}={value}", cfg.replace(**{field.name: value})
            except ValueError:
                continue


def others(hint: Any, value: Any) -> list[Any]:
    """Return other values of an option of some type."""
    for one in alternatives(hint):
        if typing.get_origin(one) is typing.Literal:
            return [other for other in typing.get_args(one) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [] if value else [2]
    if isinstance(value, float):
        return [round(0.6 * value, 10) or 0.5]
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float) for v in value)
    return [(round(0.7 * value[0], 10), round(0.9 * value[1], 10))] if pair else []
