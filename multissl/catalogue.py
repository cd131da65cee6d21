"""The catalogue of recipes: what each is, how large, and whether it was measured, read from the source.

Nothing here imports torch: a recipe's module is parsed, not run, until the recipe is wanted.
"""

from __future__ import annotations

import ast
import difflib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multissl import registry
from multissl.registry import suggest
from multissl.trust import NOTHING, Trust, import_named, run_file

if TYPE_CHECKING:
    from multissl.recipe import Recipe

UNMEASURED = "unmeasured"
"""What the `Measured:` line of a recipe says when nobody has measured it."""
FOLDER = Path(__file__).parent / "configs"
MOST_NAMES = 6
"""Recipes that one message names."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the docstring of a recipe says; the recipe of an installed package says nothing without being imported."""

    name: str
    """As typed: `image/simclr_cifar`."""
    line: str
    """The first line of its docstring."""
    target: str = ""
    """`module:function`; empty for the recipe of an installed package."""
    command: str = ""
    size: str = ""
    """Steps, samples per step, encoder; hardware and time."""
    measured: str = ""
    """The measured result, or the word "unmeasured"."""

    @property
    def is_measured(self) -> bool:
        """Return whether somebody measured what the recipe reaches."""
        return self.measured not in ("", UNMEASURED)


@functools.cache
def entries() -> dict[str, Entry]:
    """Return every recipe by its name: ours in the registry's order, then those of installed packages."""
    found: dict[str, Entry] = {}
    for part, modules in registry.RECIPES.items():
        for module in modules:
            for function, docstring in functions(module):
                name = f"{part}/{function}"
                found[name] = _entry(name, f"multissl.configs.{module}:{function}", docstring)
    for name in registry.recipe_entry_points():
        found.setdefault(name, Entry(name, "(installed)"))
    return found


def functions(module: str) -> Iterator[tuple[str, str]]:
    """Yield the public functions of a module of `configs`, each with its docstring."""
    source = FOLDER.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) or ""


def _entry(name: str, target: str, docstring: str) -> Entry:
    marked = dict(re.findall(r"^(Command|Size|Measured): (.*)$", docstring, re.MULTILINE))
    return Entry(
        name,
        docstring.partition("\n")[0],
        target,
        command=marked.get("Command", ""),
        size=marked.get("Size", ""),
        measured=marked.get("Measured", ""),
    )


def matching(words: list[str]) -> list[Entry]:
    """Return the recipes that match every word: those of a part, or whose name, first line or size contains it.

    Case and punctuation do not count.
    """
    return [e for e in entries().values() if all(_matches(e, word) for word in words)]


def _matches(recipe: Entry, word: str) -> bool:
    if word in registry.RECIPES:
        return recipe.name.startswith(f"{word}/")
    return _plain(word) in _plain(f"{recipe.name} {recipe.line} {recipe.size}")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", text.lower())


def lines(words: list[str]) -> list[str]:
    """Return the lines of `multissl list WORD ...`: the recipes that match, below each what was measured."""
    found = matching(words)
    if not found:
        if len(words) == 1 and (components := components_of(words[0])):
            return components
        known = [*registry.RECIPES, *(word for each in entries() for word in _methods(each))]
        raise ValueError(f"no recipe matches {' '.join(words)!r}{_suggest_word(words[-1], known)}")
    text: list[str] = []
    for each in found:
        size, _, hardware = each.size.partition("; ")
        said = "measured" if each.is_measured else UNMEASURED
        text.append(f"  {each.name:<28} {size:<42} {said if each.size else '':<11} {each.line}")
        if each.is_measured:
            text.append(f"  {'':<28} {hardware.rstrip('.'):<42} {each.measured}")
    return text


def overview() -> list[str]:
    """Return the lines of `multissl list`: every part with its recipes counted and its default, then components."""
    counts = Counter(name.partition("/")[0] for name in entries())
    text = ["recipes (multissl list image names those of image, multissl list simclr those of a method)"]
    for part, count in counts.items():
        default = entry(part)
        many = f"{count} recipe{'s' * (count > 1)}"
        text.append(f"  {part:<18} {many:<11} default {default.name}: {default.line}")
    text.append(
        "components (--objective NAME, --encoders.STREAM NAME ...; multissl list NAME finds one's group)"
    )
    return text + [f"{group}: {', '.join(registry.names(group))}" for group in registry.GROUPS]


def components_of(word: str) -> list[str]:
    """Return a line for the group of components that a word names, or for each group that has one of that name."""
    if word in registry.GROUPS:
        return [f"{word}: {', '.join(registry.names(word))}"]
    return [f"{group}: {word}" for group in registry.GROUPS if word in registry.names(group)]


def _suggest_word(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "; multissl list names them all"


def recipes_of_method(name: str) -> list[str]:
    """Return the recipes of a method ("simclr", "image/simclr"): by name, else by first line."""
    part, _, method = name.rpartition("/")
    method = method.lower().replace("-", "_")
    if len(method) < 2 or not method.isidentifier():
        return []
    known = [e for e in entries().values() if not part or e.name.startswith(f"{part}/")]
    same = [e.name for e in known if method in _methods(e.name)]
    begins = [e.name for e in known if any(word.startswith(method) for word in _methods(e.name))]
    word = re.compile(rf"\b{re.escape(method)}\b")
    by_line = [e.name for e in known if word.search(e.line.lower().replace("-", "_"))]
    return list(dict.fromkeys([*same, *begins])) or by_line


def _methods(name: str) -> list[str]:
    """Return what a recipe's own name may be looked up by: `byol_a_resnet50` by byol_a_resnet50, byol, a, resnet50."""
    own = name.rpartition("/")[2]
    return [own, *own.split("_")]


def find(name: str, trust: Trust = NOTHING) -> Callable[[], Recipe]:
    """Return what makes the recipe of a name or file; a wrong name is refused without importing torch.

    `trust` says which code a .json or .yaml file may name; a .py file is the user's own, who typed its name.
    """
    path, _, function = name.partition(":")
    if path.endswith((".json", ".yaml", ".yml")):
        return functools.partial(_read, _existing(path), trust)
    if path.endswith(".py"):
        return functools.partial(_run_file, _existing(path), function or "recipe")
    return functools.partial(_make, entry(name))


def entry(name: str) -> Entry:
    """Return the recipe of a name: its own, or that of a part, whose `default` or first recipe it is."""
    known = entries()
    if name in known:
        return known[name]
    if "/" not in name:
        of_part = [n for n in known if n.startswith(f"{name}/")]
        if of_part:
            return known[f"{name}/default" if f"{name}/default" in of_part else of_part[0]]
    there = "; a folder is, but it holds no run" if Path(name).is_dir() else ""
    raise ValueError(f"no recipe is called {name!r}{there}{_nearest(name)}")


def _nearest(name: str) -> str:
    same = recipes_of_method(name)
    hint = (
        f"an objective, which a recipe takes by --objective {name}"
        if name in registry.GROUPS["objectives"]
        else ""
    )
    if same:
        more = f" and {len(same) - MOST_NAMES} more" if len(same) > MOST_NAMES else ""
        named = (
            f"; take one of {', '.join(same[:MOST_NAMES])}{more} (multissl list {name.rpartition('/')[2]})"
        )
        return f"{named}; it is {hint}, too" if hint else named
    if hint:
        return f"; it is {hint}"
    # parts, methods and full names are what a mistyped word may have meant; a full name wins
    meant: dict[str, str] = {}
    for known in entries():
        for word in (known.partition("/")[0], *_methods(known)):
            meant.setdefault(word, known)
    for part in registry.RECIPES:
        meant[part] = entry(part).name
    meant |= {known: known for known in entries()}
    near = difflib.get_close_matches(name, meant, n=1, cutoff=0.6)
    return f"; did you mean {meant[near[0]]}?" if near else "; see multissl list"


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return Path(path)


def _make(made: Entry) -> Recipe:
    if made.target:
        return import_named(made.target)()
    return registry.installed_recipe(made.name)()


def _read(path: Path, trust: Trust) -> Recipe:
    from multissl.recipe import read_recipe

    return read_recipe(path, trust)


def _run_file(path: Path, function: str) -> Recipe:
    """Run a Python file and call its function, which returns the recipe."""
    known = run_file(path)
    if function not in known:
        raise ValueError(f"{path} has no function {function!r}{suggest(function, known)}")
    return known[function]()
