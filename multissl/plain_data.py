"""JSON and YAML of unknown origin as plain values: no tags, no code, bounded in depth and in what aliases repeat.

A few kilobytes of YAML can stand for a billion values, and brackets can be nested deeper than any reader's stack.
"""

from __future__ import annotations

import json
from typing import Any

MOST_VALUES = 1_000_000
"""Values of a document, those that an alias repeats counted each time."""
DEEPEST = 100
"""Levels of lists and mappings within one another."""


def parse_json(text: str | bytes, name: str, most: int = MOST_VALUES) -> Any:
    """Return what a JSON document holds; raise a ValueError of one line that names it where it cannot be read.

    `most` values are read: a document of JSON repeats nothing, so that one that is a table may have more.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deep: want at most {DEEPEST} levels") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{name} is no JSON ({error})") from None
    _check(value, name, most)
    return value


def parse_yaml(text: str, name: str) -> Any:
    """Return the plain values of a YAML document; raise a ValueError as `parse_json` does."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deep: want at most {DEEPEST} levels") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
    ) as error:  # dates and keys that make no sense raise the latter
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be read as YAML ({reason})") from None
    _check(value, name)
    return value


def _check(value: Any, name: str, most: int = MOST_VALUES) -> None:
    """Refuse what is nested too deep or is too much when it is written out."""
    sizes: dict[int, int] = {}
    if _count(value, sizes, name, 0) > most:
        raise ValueError(f"{name} stands for more than {most:,} values: write out what aliases repeat")


def _count(value: Any, sizes: dict[int, int], name: str, depth: int) -> int:
    """Return the number of values in one, each container counted once and its repetitions multiplied."""
    if not isinstance(value, dict | list):
        return 1
    if depth > DEEPEST:  # also what holds itself
        raise ValueError(f"{name} is nested too deep: want at most {DEEPEST} levels")
    if id(value) not in sizes:
        members = list(value.values()) if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_count(member, sizes, name, depth + 1) for member in members)
    return sizes[id(value)]
