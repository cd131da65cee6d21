"""Words of the command line as values of an option's type; what does not fit is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multissl.config import Config, alternatives, from_dict
from multissl.trust import TYPED

ONE_OR_TWO = (int, tuple[int, int])
"""The type of an option that is one whole number for two of a kind, or both."""


def parsed(hint: Any, words: list[str], flag: str) -> Any:
    """Return the value that words mean for an option of a type; `flag` is how messages call the option."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if types.NoneType in alternatives(hint):
        if [word.lower() for word in words] == ["none"]:
            return None
        return parsed(next(a for a in args if a is not types.NoneType), words, flag)
    if alternatives(hint) == ONE_OR_TWO:
        return parsed(int if len(words) == 1 and "," not in words[0] else ONE_OR_TWO[1], words, flag)
    if origin in (tuple, list):
        return _several(hint, args, words, flag)
    if not words:
        raise ValueError(f"{flag} wants a value")
    if len(words) > 1:
        raise ValueError(f"{flag} takes one value, got {' and '.join(map(repr, words))}")
    text = words[0]
    if origin is typing.Literal:
        by_text = {str(choice): choice for choice in args}
        if text not in by_text:
            raise ValueError(f"{flag} {text}: want {_one_of(by_text)}")
        return by_text[text]
    if hint in READERS:
        wanted, reader = READERS[hint]
        try:
            return reader(text)
        except ValueError:
            raise ValueError(f"{flag} {text}: want {wanted}") from None
    raise ValueError(f"{flag}: this option cannot be typed; set it in Python or in a recipe file")


def _several(hint: Any, args: tuple[Any, ...], words: list[str], flag: str) -> Any:
    if len(words) == 1 and words[0].startswith("["):
        return from_json(hint, words, flag)
    if isinstance(args[0], type) and issubclass(args[0], Config):
        names = ", ".join(f'"{f.name}": ...' for f in dataclasses.fields(args[0]))
        raise ValueError(f"{flag} {' '.join(words)}: want a list in JSON, '[{{{names}}}]', or a recipe file")
    variadic = args[-1] is Ellipsis or typing.get_origin(hint) is list
    if len(words) == 1 and args[0] is not str and "," in words[0]:
        words = words[0].strip("()").split(",")
    if not variadic and len(words) != len(args):
        raise ValueError(
            f"{flag} wants {len(args)} values, got {len(words)}{': ' if words else ''}{' '.join(words)}"
        )
    kinds = [args[0]] * len(words) if variadic else args
    return typing.get_origin(hint)(
        parsed(kind, [word.strip()], flag) for kind, word in zip(kinds, words, strict=True)
    )


def from_json(hint: Any, words: list[str], flag: str) -> Any:
    """Return the value that JSON on the command line means for an option of a type."""
    text = " ".join(words)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text}: want JSON, or values one after another ({error})") from None
    return from_dict(hint, data, flag, trust=TYPED)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _anything(text: str) -> Any:
    """Return JSON where the text is some, else the text."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", _truth),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a text", str),
    Path: ("a path", Path),
    Any: ("a value", _anything),
}


def _one_of(texts: Mapping[str, Any]) -> str:
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last
