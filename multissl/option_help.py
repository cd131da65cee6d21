"""Help on a recipe's options: the ten that most runs change, then all others by component, each with its sentence.

An option's sentence is the docstring below its field, read from the source of the class.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multissl import catalogue
from multissl.options import LEADING, vars_of, walk

if TYPE_CHECKING:
    from multissl.config import Config
    from multissl.recipe import Recipe

SENTENCES = {
    "data": "Where the data lies; empty takes what is built in. Short for --modality.data.",
    "out": "Folder of the run, runs/NAME unless given; the same command resumes it, --restart starts again.",
    "steps": "Steps to train.",
    "epochs": "Passes over the data, instead of --steps.",
    "batch_size": "Samples per step, over all ranks.",
    "optim.lr": "Learning rate at the end of the warm-up; --optim takes another optimizer.",
    "encoders.STREAM": "Another encoder for a stream, by name (multissl list), with its defaults.",
    "objective": "Another objective, by name, with its defaults.",
    "seed": "Seed of initial weights, views and order.",
    "init": "Weights to start from: a run, RUN@STEP, RUN@best, a file, hf:NAME or timm:NAME.",
    "evals": "`none` trains without evaluators; --evals.NAME none leaves one out.",
}
"""What the leading options do, as it is said before a recipe is known."""
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", Path: "PATH", Any: "VALUE"}


@functools.cache
def _classes(path: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a source file by qualified name."""
    found: dict[str, ast.ClassDef] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[f"{prefix}{node.name}"] = node
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(Path(path).read_text()).body, "")
    return found


def sentences(cls: type[Config]) -> dict[str, str]:
    """Return what the docstrings below a config's fields say, by field; inherited ones unless said anew."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        module = sys.modules.get(base.__module__)
        source = inspect.getsourcefile(module) if module and base is not object else None
        node = _classes(source).get(base.__qualname__) if source and Path(source).is_file() else None
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True) if node else ():
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                said[statement.target.id] = " ".join(str(following.value.value).split())
    return said


def metavar(hint: Any) -> str:
    """Return how the value of an option is shown: INT, a|b, NUMBER NUMBER, JSON."""
    from multissl.config import Config, alternatives

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if len(choices := alternatives(hint)) > 1:
        return "|".join("none" if a is types.NoneType else metavar(a) for a in choices)
    if origin in (tuple, list) and isinstance(args[0], type) and issubclass(args[0], Config):
        return "JSON"
    if origin in (tuple, list):
        return (
            f"{metavar(args[0])} ..."
            if args[-1] is Ellipsis or origin is list
            else " ".join(map(metavar, args))
        )
    if origin is dict:
        return f"NAME={metavar(args[1])} ..."
    if isinstance(hint, type) and issubclass(hint, Config):
        return "NAME"
    return METAVARS.get(hint, "VALUE")


def shown(value: Any) -> str:
    """Return a value as it would be typed."""
    from multissl.config import Config, to_dict

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        if any(isinstance(each, Config) for each in value):
            return f"'{json.dumps([to_dict(each) for each in value])}'"
        return " ".join(map(shown, value)) or "nothing"
    if isinstance(value, dict):
        return " ".join(f"{k}={shown(v)}" for k, v in value.items()) or "nothing"
    return "none" if value is None else str(value) or "nothing"


def _block(left: str, sentence: str, width: int) -> str:
    body = textwrap.wrap(sentence, max(width - 8, 30), initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([f"  {left}", *body])


def leading(recipe: Recipe | None, width: int) -> Iterator[str]:
    """Yield the options that most runs change, with the recipe's values where there is one."""
    from_recipe: dict[str, str] = {}
    if recipe is not None:
        from multissl.config import config_name, hints_of

        for path, config, each in walk(recipe):
            value = vars_of(config)[each.name]
            kind = metavar(hints_of(type(config))[each.name])
            from_recipe[path] = f"{kind} (now {shown(value)})" if not _has_options(value) else kind
        from_recipe["data"] = from_recipe.get("modality.data", "PATH")
        from_recipe["objective"] = f"NAME (now {config_name(type(recipe.objective))})"
        from_recipe["evals"] = f"none (now {', '.join(recipe.evals) or 'none'})"
        streams = {s: config_name(type(e)) for s, e in recipe.encoders.items()}
        for stream, name in streams.items():
            from_recipe[f"encoders.{stream}"] = f"NAME (now {name})"
    plain = {
        "data": "PATH",
        "out": "FOLDER",
        "optim.lr": "NUMBER",
        "epochs": "NUMBER",
        "evals": "none",
        "init": "PATH",
    }
    plain |= {name: "INT" for name in ("steps", "batch_size", "seed")}
    for option in LEADING:
        names = [option]
        if option == "encoders.STREAM" and recipe is not None:
            names = [f"encoders.{stream}" for stream in recipe.encoders]
        for name in names:
            yield _block(
                f"--{name} {from_recipe.get(name, plain.get(name, 'NAME'))}", SENTENCES[option], width
            )


def _has_options(value: Any) -> bool:
    from multissl.config import Config

    return isinstance(value, Config) or (
        isinstance(value, dict) and any(isinstance(v, Config) for v in value.values())
    )


def render(name: str, recipe: Recipe) -> str:
    """Return the help on a recipe's options as text."""
    from multissl.config import config_name, hints_of

    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    entry = catalogue.entries().get(name) or next(
        (e for e in catalogue.entries().values() if name == e.name.partition("/")[0]), None
    )
    lines = [f"multissl train {name} [--option VALUE ...]", ""]
    if entry is not None:
        lines += [
            entry.line,
            *([f"Size: {entry.size}", f"Measured: {entry.measured}"] if entry.size else []),
            "",
        ]
    lines += ["What most runs change", *leading(recipe, width), "  --restart"]
    lines += ["      Sets an old run in the folder aside and starts anew."]
    lines += ["", "All options, by component"]
    sections: dict[str, list[str]] = {"": ["", "training"]}
    for path, config, each in walk(recipe):
        value = vars_of(config)[each.name]
        if _has_options(value):
            continue
        where = path.rpartition(".")[0]
        section = sections.setdefault(where, ["", f"{where}: {config_name(type(config))}"])
        left = f"--{path} {metavar(hints_of(type(config))[each.name])} (now {shown(value)})"
        section.append(_block(left, sentences(type(config)).get(each.name, ""), width))
    lines += [line for section in sections.values() for line in section]
    return "\n".join(lines)


def without_sentence(cls: type[Config]) -> list[str]:
    """Return the options of a config that no sentence explains."""
    said = sentences(cls)
    return [
        each.name for each in dataclasses.fields(cls) if not said.get(each.name, "").endswith((".", ":", "?"))
    ]
