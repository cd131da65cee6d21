"""What a `config.json` beside weights may say: fields that layouts read, by type and range, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from multissl.weights.conventions import Context


class Field(NamedTuple):
    """What values of a field make sense."""

    allows: Callable[[Any], bool]
    expected: str


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_size(value: Any) -> bool:
    """Return whether a value is a count, or one for the height and one for the width."""
    return is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_count, value)))


def is_between(value: Any, low: float, high: float) -> bool:
    """Return whether a value is a number between two others, neither of them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


COUNT = Field(is_count, "a whole number, 1 or more")
SIZE = Field(is_size, "a whole number, 1 or more, or two of them")
TEXT = Field(lambda value: isinstance(value, str), "a text")
MAPPING = Field(lambda value: isinstance(value, dict), "a mapping")
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
EPS = Field(lambda value: is_between(value, 0, 1), "a number between 0 and 1, such as 1e-6")
PERIOD = Field(lambda value: is_between(value, 0, math.inf), "a number above 0, such as 100")
FIELDS = {
    "architecture": TEXT,
    "frequency_stride": COUNT,
    "hidden_act": TEXT,
    "image_size": SIZE,
    "key_bias": FLAG,
    "layer_norm_eps": EPS,
    "max_length": COUNT,
    "model_type": TEXT,
    "norm_layer": TEXT,
    "num_attention_heads": COUNT,
    "num_channels": COUNT,
    "num_frames": COUNT,
    "num_heads": COUNT,
    "num_mel_bins": COUNT,
    "patch_size": SIZE,
    "rope_parameters": MAPPING,
    "rope_theta": PERIOD,
    "time_stride": COUNT,
    "tubelet_size": COUNT,
    "vision_config": MAPPING,
}
"""By name. Fields of other names are not read."""
OF_ALL = ("architecture", "model_type")
"""Fields that are read of every model, those of other libraries included, whose further fields mean what they like."""


def checked(
    config: Mapping[str, Any], names: tuple[str, ...] = (*FIELDS,), inside: str = ""
) -> dict[str, Any]:
    """Return a config without fields that are null; raise a ValueError where one of some names makes no sense."""
    said = {name: value for name, value in config.items() if value is not None}
    for name in names:
        if name in said and not FIELDS[name].allows(said[name]):
            value = " ".join(repr(said[name]).split())
            raise ValueError(
                f"config.json has {inside}{name}={value[:80]}: want {FIELDS[name].expected}; correct it, or leave the "
                "field out"
            )
    for name in ("vision_config", "rope_parameters"):
        if name in names and name in said:
            said[name] = checked(said[name], names, f"{name}.")
    return said


def context_of(config: Mapping[str, Any], grid: tuple[int, ...] = ()) -> Context:
    """Return what is known beside the tensors; raise a ValueError where a field of the config makes no sense."""
    return Context(checked(config), grid)
