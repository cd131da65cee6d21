"""Code that data names: what may run, decided here alone, and the one place that imports by such a name.

A recipe file or a run's folder may name code, as the `kind` `module:Class` of a component or in an option such as a
network's `factory`. Whoever wrote the file would choose what runs. So a name that was read is admitted where

- the user said so (`--trust`, `trust=True`), or typed it, or passed it in Python;
- this process has used it already, in a recipe of the user's own;
- its source has the SHA-256 of one that the user trained with this name: `trusted.json` in the user's configuration.

Everything else is refused before anything is imported. A law keeps other imports by name out of the package.
State: names that this process used; importers of copies that were admitted.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multissl import code_files
from multissl.code_files import CopyImporter, Sources
from multissl.files import make_folder, replace_text

log = logging.getLogger("multissl")


class UntrustedError(ValueError):
    """A recipe names code that may not run."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What code may run that a recipe names which is being read."""

    everything: bool = False
    """Whether the user vouches for it."""
    copies: Path | None = None
    """The folder with a run's copies of source files; modules in it come before installed ones."""


NOTHING = Trust()
"""For data of unknown origin: what the user has not trained with is refused."""
TYPED = Trust(everything=True)
"""For what the user types or passes in Python."""
_used: set[str] = set()


def check_trusted(name: str, where: str, trust: Trust) -> None:
    """Raise an `UntrustedError` unless the code behind `module:attribute` may run; `where` is the option that names it.

    What is admitted from a run's copies can be imported from then on.
    """
    if name in _used:
        return
    module = name.partition(":")[0]
    copies = code_files.read_copies(trust.copies) if trust.copies else {}
    copied = code_files.has_module(copies, module)
    sources = copies if copied else code_files.collect(module)
    if not trust.everything and name not in read_list().get(code_files.digest(sources), ()):
        raise UntrustedError(
            f"{where}={name!r} names code, which is not run: it is none that you have trained with. Read it first; "
            "then --trust (in Python trust=True) runs it"
        )
    if copied:
        assert trust.copies
        _install(copies, trust.copies)


def use(names: Iterable[str]) -> None:
    """Note names of a recipe that the user runs: this process may run them from now on."""
    _used.update(names)


def import_named(name: str) -> Any:
    """Return what an admitted `module:attribute` points at."""
    module, _, attribute = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


def run_file(path: Path) -> dict[str, Any]:
    """Run a Python file that the user typed; return its public names."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))  # so that worker processes find its classes
    spec.loader.exec_module(module)
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


# ------------------------------------------------------------------------------- what the user trained with


def list_path() -> Path:
    """Return the user's own list of code that they trained with."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "multissl" / "trusted.json"


def read_list() -> dict[str, list[str]]:
    """Return the names that the user trained with, by the SHA-256 of their source; nothing where there is no list."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        code = json.loads(list_path().read_text(encoding="utf-8"))["code"]
        return {str(key): [str(name) for name in names] for key, names in code.items()}
    return {}


def sources_of(names: Iterable[str], file: Path | None = None) -> Sources:
    """Return the source files that a run keeps copies of: of a recipe's file and of named modules, installed ones not.

    Raises a ValueError where two of them have the same place.
    """
    parts = [code_files.collect_file(file)] if file else []
    for module in sorted({name.partition(":")[0] for name in names}):
        place = code_files.locate(module)
        if place and not code_files.is_installed(place[0] / place[1]):
            parts.append(code_files.collect(module))
    sources: Sources = {}
    for part in parts:
        for name, content in part.items():
            if sources.setdefault(name, content) != content:
                raise ValueError(f"two source files of the recipe are called {name}: rename one")
    return sources


def remember(names: Iterable[str], copies: Mapping[str, bytes]) -> None:
    """Add names that the user trains with to the list, under their own sources and under those that the run copies."""
    code = read_list()
    before = json.dumps(code)
    for name in names:
        module = name.partition(":")[0]
        for sources in (code_files.collect(module), copies if code_files.has_module(copies, module) else {}):
            if sources:
                known = code.setdefault(code_files.digest(sources), [])
                known += [name] * (name not in known)
    if json.dumps(code) == before:
        return
    try:
        make_folder(list_path().parent)
        replace_text(list_path(), json.dumps({"format": 1, "code": code}, indent=1))
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): reading the run will want --trust",
            list_path(),
            error.strerror or error,
        )


def _install(copies: Sources, folder: Path) -> None:
    """Let modules be imported from a run's copies; refuse where this process has others of the same names."""
    if any(isinstance(f, CopyImporter) and f.sources == copies for f in sys.meta_path):
        return
    other = next(code_files.conflicts(copies), None)
    if other:
        raise ValueError(
            f"{folder} holds a copy of {other}, and this process has loaded another {other}: "
            "read the run in a process of its own"
        )
    sys.meta_path.insert(0, CopyImporter(copies, folder))
