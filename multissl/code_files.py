"""Source files that a recipe's names lead to: found without running them, digested, copied, loaded from copies.

A name is `module:attribute`. Its source is the file of the module and, where that file is no installed package's, the
files beside it that it imports, in any depth. What imports make of names at run time is not seen.
Copies are executed from the bytes that were digested, so that neither a later change of the folder nor compiled files
in it count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Sources = dict[str, bytes]
"""Python files by their place below the folder that modules are looked up in: "package/module.py"."""
MOST_FILES, MOST_BYTES = 1000, 16 << 20
"""Limits of a folder of copies."""


def collect(module: str) -> Sources:
    """Return the sources of a module, nothing where it has no file of its own (built in, compiled, `__main__`)."""
    place = locate(module)
    return _closure(*place) if place else {}


def collect_file(path: Path) -> Sources:
    """Return the sources of a Python file that is run by its path."""
    return _closure(path.parent.resolve(), path.name)


def locate(module: str) -> tuple[Path, str] | None:
    """Return the folder that a module is looked up in and its file below, without importing anything."""
    loaded = sys.modules.get(module)
    file = loaded.__spec__.origin if loaded and loaded.__spec__ else None
    depth = module.count(".")
    if file and file.endswith(".py") and Path(file).is_file():
        path = Path(file).resolve()
        root = path.parents[depth + (path.name == "__init__.py")]
        return root, path.relative_to(root).as_posix()
    stem = module.replace(".", "/")
    for folder in sys.path:
        for name in (f"{stem}/__init__.py", f"{stem}.py"):
            if (Path(folder or ".") / name).is_file():
                return Path(folder or ".").resolve(), name
    return None


def digest(sources: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of names and contents, in hexadecimal digits."""
    lines = (f"{hashlib.sha256(sources[name]).hexdigest()} {name}\n" for name in sorted(sources))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_copies(folder: Path) -> Sources:
    """Return the Python files below a folder, nothing where there is none."""
    sources: Sources = {}
    for path in sorted(folder.rglob("*.py")):
        if not path.is_file():
            continue
        if len(sources) == MOST_FILES or path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{folder}: want at most {MOST_FILES} source files of at most {MOST_BYTES >> 20} MiB each, "
                f"{path.name} is beyond that; take what is no source of the run out of the folder"
            )
        sources[path.relative_to(folder).as_posix()] = path.read_bytes()
    return sources


def _closure(root: Path, file: str) -> Sources:
    """Return a file and, if it is not installed, what it imports from the same folder of modules."""
    sources: Sources = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        sources[name] = (root / name).read_bytes()
        if not is_installed(root / name):
            waiting += _beside(root, name, sources[name])
    return sources


def is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python, to an installed package or to multissl itself."""
    path = path.resolve()
    packages = {"site-packages", "dist-packages"}
    return not _installed_folders().isdisjoint(path.parents) or not packages.isdisjoint(path.parts)


@functools.cache  # asked for every import of every file: finding it anew took seconds at the start of a run
def _installed_folders() -> frozenset[Path]:
    """Return the folders of Python's own and installed modules, and of multissl."""
    paths = sysconfig.get_paths()
    folders = {Path(folder).resolve() for folder in paths.values() if folder}
    # "data" is the root of the whole environment, below which anybody's code may lie
    return frozenset(folders - {Path(paths["data"]).resolve()} | {Path(__file__).resolve().parent})


def _beside(root: Path, name: str, source: bytes) -> Iterator[str]:
    """Yield the files below a folder that one of them imports, and the packages it lies in."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # said when it is run
        return
    package = name.split("/")[:-1]
    wanted = {".".join(package[:depth]) for depth in range(1, len(package) + 1)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module.split(".") if node.module else [])])
            wanted |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)}
    for module in wanted - {""}:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            stem = "/".join(parts[:depth])
            for file in (f"{stem}/__init__.py", f"{stem}.py"):
                if (root / file).is_file() and not is_installed(root / file):
                    yield file


class CopyImporter(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from sources in memory; `folder` is where they were read, for tracebacks."""

    def __init__(self, sources: Sources, folder: Path) -> None:
        self.sources, self.folder = sources, folder

    def file_of(self, module: str) -> str | None:
        """Return the name of a module's file, "" for a package without one, None where there is no such module."""
        stem = module.replace(".", "/")
        for name in (f"{stem}/__init__.py", f"{stem}.py"):
            if name in self.sources:
                return name
        return "" if any(name.startswith(f"{stem}/") for name in self.sources) else None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how a module is loaded, None where the copies do not have it."""
        file = self.file_of(fullname)
        if file is None:
            return None
        spec = importlib.util.spec_from_loader(fullname, self, is_package=self.is_package(fullname))
        assert spec
        spec.origin, spec.has_location = str(self.folder / file), True
        return spec

    def is_package(self, fullname: str) -> bool:
        """Return whether a module may hold others."""
        file = self.file_of(fullname)
        return file == "" or bool(file and file.endswith("/__init__.py"))

    def get_source(self, fullname: str) -> str:
        """Return the text of a module."""
        return importlib.util.decode_source(self.sources.get(self.file_of(fullname) or "", b""))

    def get_code(self, fullname: str) -> Any:
        """Return a module compiled; compiled files beside the copies are not read."""
        return self.source_to_code(
            self.get_source(fullname), str(self.folder / (self.file_of(fullname) or ""))
        )


def conflicts(sources: Sources) -> Iterator[str]:
    """Yield the modules of these sources that this process has loaded from other ones."""
    for file, source in sources.items():
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        loaded = sys.modules.get(module)
        if loaded is None:
            continue
        loader = loaded.__spec__.loader if loaded.__spec__ else None
        if isinstance(loader, CopyImporter):
            same = loader.sources.get(file) == source
        else:
            place = locate(module)
            same = place is not None and (place[0] / place[1]).read_bytes() == source
        if not same:
            yield module


def has_module(sources: Iterable[str], module: str) -> bool:
    """Return whether sources hold a module."""
    stem = module.replace(".", "/")
    return any(name in (f"{stem}.py", f"{stem}/__init__.py") for name in sources)
