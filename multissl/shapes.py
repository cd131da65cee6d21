"""What the values in a run's files are: a digest tells that a file is as it was written, not that it makes sense.

Somebody else may have made the folder, so every reader gets values of the kind that it counts on. Names that are not
listed here may hold anything, and those that are may be missing, as they are in files of older versions.
State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multissl.files import Damaged, read_json_lines

Shape = Callable[[Any], bool]
"""Tells whether a value is of a kind."""
MOST = 2**53
"""The largest whole number that every reader of JSON knows exactly."""
LARGEST = 1e300
"""Beyond any number that a run records; those that are not finite are recorded as null."""


def is_text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def is_hex(value: Any) -> bool:
    """Return whether a value is a digest in hexadecimal digits."""
    return isinstance(value, str) and bool(value) and set(value) <= set("0123456789abcdef")


def is_mapping(value: Any) -> bool:
    """Return whether a value is a mapping."""
    return isinstance(value, dict)


def maybe(shape: Shape) -> Shape:
    """Return a shape that null has, too."""
    return lambda value: value is None or shape(value)


def each(shape: Shape) -> Shape:
    """Return the shape of a mapping whose values have one."""
    return lambda value: isinstance(value, dict) and all(map(shape, value.values()))


def listed(shape: Shape) -> Shape:
    """Return the shape of a list whose values have one."""
    return lambda value: isinstance(value, list) and all(map(shape, value))


def fields(shapes: Mapping[str, Shape], required: tuple[str, ...] = ()) -> Shape:
    """Return the shape of a mapping whose values have those of their names."""
    return lambda value: (
        isinstance(value, dict) and all(n in value for n in required) and not odd(value, shapes)
    )


def odd(values: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    """Return the first name whose value has not its shape; "" where all have."""
    return next((name for name, shape in shapes.items() if name in values and not shape(values[name])), "")


def check(values: Mapping[str, Any], shapes: Mapping[str, Shape], name: str) -> None:
    """Raise a `Damaged` that names the file, as messages call it, and the value where one has not its shape."""
    if bad := odd(values, shapes):
        raise Damaged(f"{name} is damaged: {bad} is {str(values[bad])[:80]!r}, which no run writes there")


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


MARK = fields({"bytes": is_count, "sha256": is_hex}, ("bytes", "sha256"))
"""How far a file that grows had come."""
SESSION: Mapping[str, Shape] = {
    "steps": _is_span, "changed": is_mapping, "versions": is_mapping, "end": maybe(is_text), "stage": is_text,
}  # fmt: skip
_FIGURE = fields(
    {"value": maybe(is_number), "low": maybe(is_number), "high": maybe(is_number), "n": is_count}, ("value",)
)
EVALUATION: Mapping[str, Shape] = {"step": is_count, "figures": each(_FIGURE)}
SUMMARY: Mapping[str, Shape] = {
    "verdict": is_text, "alarm": is_text, "outcome": is_text, "learned": lambda value: isinstance(value, bool),
    "environment": is_mapping, "difference": listed(is_text),
    "finished": fields({"step": is_count, "record": maybe(MARK), "sha256": each(is_hex)}),
}  # fmt: skip
_SPLIT = fields(
    {"count": is_count, "sha256": is_hex, "sum": is_hex, "names": is_hex}, ("count", "sha256", "sum", "names")
)
DATA: Mapping[str, Shape] = {
    "entries": listed(
        fields({"from_step": is_count, "splits": each(_SPLIT), "start": is_hex}, ("from_step", "splits")),
    ),
}
CHECKPOINT: Mapping[str, Shape] = {
    "step": is_count, "stage": is_text, "record": maybe(MARK), "trace": maybe(MARK),
    "files": each(fields({"size": is_count, "sha256": is_hex}, ("size", "sha256"))),
}  # fmt: skip
STAGE = fields({"name": is_text, "steps": is_count, "changes": is_mapping}, ("name", "steps"))
"""Of the options of a run."""
_ESTIMATE = fields({"n": is_count, "low": maybe(is_number), "high": maybe(is_number)}, ("n", "low", "high"))
_VALUES: Mapping[str, Shape] = {
    "train": maybe(is_number), "eval": maybe(is_number), "estimates": _ESTIMATE,
}  # fmt: skip
"""What the values in a line of the record are, by the line's kind; notes and alarms have a text."""


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a record that are of a run; nothing where there is no file."""
    return [line for line in read_json_lines(path) if is_line(line)]


def is_line(line: Mapping[str, Any]) -> bool:
    """Return whether values are a line of a run's record."""
    kind = line.get("kind")
    if not (isinstance(kind, str) and is_count(line.get("step"))):
        return False
    if kind in ("note", "alarm"):
        return is_text(line.get("text"))
    if kind == "best":
        return is_text(line.get("figure")) and is_number(line.get("value"))
    shape = _VALUES.get(kind)
    return not shape or all(shape(v) for n, v in line.items() if n not in ("kind", "step"))
