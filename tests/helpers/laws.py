"""The laws of the architecture as functions from a package's folder to the places that break them.

Every law reads the tree recursively, so that a file in a new folder is held to it unasked. A law is an import or a
call, never a word or a count of lines. `test_laws.py` applies each law to the package and to a planted violation.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

NAME = "multissl"
"""Of the package, whatever its folder is called."""


def files(package: Path) -> list[Path]:
    """Return all source files of a package."""
    return sorted(p for p in package.rglob("*.py") if "__pycache__" not in p.parts)


def module_of(path: Path, package: Path) -> str:
    """Return the dotted name of a file inside the package: "modalities.image", "" for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"relative import of {node.module or '.'}"


def dotted(node: ast.AST) -> str:
    """Return a chain of attributes as text: `torch.nn.Linear`; "" for other expressions."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def aliases(path: Path) -> dict[str, str]:
    """Return what the names of a file stand for: `nn` -> `torch.nn`, `Linear` -> `torch.nn.Linear`."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def uses(path: Path) -> Iterator[tuple[int, str, ast.AST]]:
    """Yield line, full dotted name and node of every name and attribute chain, import aliases written out."""
    known = aliases(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute | ast.Name) and (chain := dotted(node)):
            first, _, rest = chain.partition(".")
            full = known.get(first, first)
            yield node.lineno, f"{full}.{rest}" if rest else full, node


def arrows(package: Path, allowed: Mapping[str, Iterable[str]]) -> list[str]:
    """Return imports that leave a room for one that `allowed` does not name.

    A key is a room: a file or folder below the package, such as "engine" or "modalities.video"; the longest key that
    fits a file counts. A value names files and folders that it may import besides itself; "*" stands for all.
    """
    broken = []
    for path in files(package):
        module = module_of(path, package)
        rooms = [room for room in allowed if module == room or module.startswith(f"{room}.")]
        if not rooms:
            if module:
                broken.append(f"{module}: stands in no room of the table")
            continue
        room = max(rooms, key=len)
        may = (room, *allowed[room])
        for line, name in imported(path):
            if name.startswith("relative import"):
                broken.append(f"{module}:{line} has a {name}: write it out")
            if not name.startswith(f"{NAME}.") or "*" in may:
                continue
            inner = name.removeprefix(f"{NAME}.")
            if not any(inner == each or inner.startswith(f"{each}.") for each in may):
                broken.append(f"{module}:{line} imports {name}")
    return broken


def circles(package: Path) -> list[str]:
    """Return groups of files that import each other in a circle."""
    paths = {module_of(p, package): p for p in files(package)}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        targets = set()
        for _, name in imported(path):
            if name == NAME or name.startswith(f"{NAME}."):
                inner = name.removeprefix(NAME).removeprefix(".")
                targets.add(inner if inner in paths else inner.rpartition(".")[0])
        graph[module] = (targets & set(paths)) - {module}
    return [" <-> ".join(sorted(group)) for group in _strong(graph) if len(group) > 1]


def _strong(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected parts of a graph (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    parts: list[list[str]] = []
    count = itertools.count()

    def visit(node: str) -> None:
        order[node] = low[node] = next(count)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            at = stack.index(node)
            parts.append(stack[at:])
            del stack[at:]

    for node in graph:
        if node not in order:
            visit(node)
    return parts


def ranks(package: Path, room: str) -> list[str]:
    """Return uses of `torch.distributed` outside the one room that knows of ranks."""
    return sorted(
        {
            f"{module_of(path, package)}:{line} uses torch.distributed"
            for path in files(package)
            if not f"{module_of(path, package)}.".startswith(f"{room}.")
            for line, name in [*imported(path), *((at, use) for at, use, _ in uses(path))]
            if name == "torch.distributed" or name.startswith("torch.distributed.")
        }
    )


def parameters(package: Path, room: str) -> list[str]:
    """Return uses of `torch.nn` in a room that holds no parameters; `torch.nn.functional` has none."""
    return sorted(
        {
            f"{module_of(path, package)}:{line} uses {name}"
            for path in files(package / room.replace(".", "/"))
            for line, name in [*imported(path), *((at, use) for at, use, _ in uses(path))]
            if name.startswith("torch.nn.") and not name.startswith("torch.nn.functional")
        }
    )


DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal",
         "multinomial", "poisson"}  # fmt: skip
"""torch's functions that draw from the global generator where they are given none."""
OWN_GENERATORS = {
    "default_rng",
    "SeedSequence",
    "Generator",
    "RandomState",
    "PCG64",
    "Random",
    "SystemRandom",
}
"""What numpy's and Python's random modules hold besides functions of a global generator."""


def global_draws(package: Path, rooms: Iterable[str]) -> list[str]:
    """Return draws from a global generator: torch's, numpy's or Python's."""
    broken = set()
    for path in (p for room in rooms for p in files(package / room.replace(".", "/"))):
        known = aliases(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            first, _, rest = dotted(node.func).partition(".")
            name = f"{known.get(first, first)}.{rest}".rstrip(".")
            head, _, last = name.rpartition(".")
            drawing = head == "torch" and last in DRAWS and all(k.arg != "generator" for k in node.keywords)
            drawing |= head in ("numpy.random", "random") and last not in OWN_GENERATORS
            drawing |= name in ("torch.manual_seed", "torch.seed")
            if drawing:
                broken.add(f"{module_of(path, package)}:{node.lineno} calls {name}")
    return sorted(broken)


def _guesses(package: Path, known: Iterable[str]) -> list[tuple[str | None, str]]:
    """Return every `hasattr` and `getattr` with a literal: which of the known rooms it lies in, and where."""
    guesses: list[tuple[str | None, str]] = []
    for path in files(package):
        module = module_of(path, package)
        room = next((key for key in known if f"{module}.".startswith(f"{key}.")), None)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            if dotted(node.func) in ("hasattr", "getattr") and isinstance(
                node.args[1], ast.Constant | ast.JoinedStr
            ):
                guesses.append((room, f"{module}:{node.lineno} guesses at .{ast.unparse(node.args[1])}"))
    return guesses


def guessed_attributes(package: Path, allowed: Mapping[str, str]) -> list[str]:
    """Return `hasattr` and `getattr` with a literal: what our own objects have, their class declares.

    A key of `allowed` is a room or file whose objects are of other libraries; its value says of which.
    """
    return [where for room, where in _guesses(package, allowed) if room is None]


def idle_guesses(package: Path, allowed: Mapping[str, str]) -> list[str]:
    """Return the keys of `allowed` that are needed no more."""
    return sorted(set(allowed) - {room for room, _ in _guesses(package, allowed)})


def unchecked_casts(package: Path, limit: int) -> list[str]:
    """Return the casts to `Any`, which switch the type checker off, where there are more than `limit`."""
    casts = []
    for path in files(package):
        known = aliases(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                names = [_written_out(dotted(each), known) for each in (node.func, node.args[0])]
                if names == ["typing.cast", "typing.Any"]:
                    casts.append(f"{module_of(path, package)}:{node.lineno} casts to Any")
    return casts if len(casts) > limit else []


def _written_out(name: str, known: Mapping[str, str]) -> str:
    first, _, rest = name.partition(".")
    return f"{known.get(first, first)}.{rest}".rstrip(".")


RUN_FILES = {"recipe.json", "metrics.jsonl", "summary.json", "report.html", "encoder.safetensors", "modality.json",
             "checkpoints", "nonfinite", "recipe_code", "data.json", "sessions.jsonl", "evaluations.jsonl",
             "lock.json", "trace.bin", "README.md"}  # fmt: skip
"""What the files and folders of a run are called."""


def run_files(package: Path, owner: str) -> list[str]:
    """Return file names of a run that are spelt outside the one file that knows them; prose may name them."""
    broken = set()
    for path in files(package):
        if module_of(path, package) == owner:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            text = node.value
            if Path(text).name in RUN_FILES and not any(letter.isspace() for letter in text):
                broken.add(f"{module_of(path, package)}:{node.lineno} spells {text!r}")
    return sorted(broken)


WRITES = {
    "write_text",
    "write_bytes",
    "touch",
    "unlink",
    "rename",
    "mkdir",
    "rmdir",
    "chmod",
    "symlink_to",
    "truncate",
}
"""Methods of paths that change what lies on a disk; `replace`, which strings have too, is left out."""
WRITERS = {"safetensors.torch.save_file", "torch.save", "numpy.save", "numpy.savez", "numpy.savez_compressed"}
"""Functions that write a file by themselves, beside some of `shutil` and `os`."""
SHELL = {("shutil", f) for f in ("rmtree", "move", "copy", "copy2", "copyfile", "copyfileobj", "copytree")}
OS_WRITES = {
    "rename",
    "replace",
    "remove",
    "unlink",
    "mkdir",
    "makedirs",
    "rmdir",
    "truncate",
    "link",
    "symlink",
    "chmod",
}


def writes(package: Path, owner: str, allowed: Mapping[str, str]) -> list[str]:
    """Return where something is written to a disk but by the file that may; `allowed` writes elsewhere than in runs."""
    broken = set()
    for path in files(package):
        module, known = module_of(path, package), aliases(path)
        if module == owner or module in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _is_write(node, known):
                broken.add(f"{module}:{node.lineno} writes to the disk: {ast.unparse(node.func)}")
    return sorted(broken)


def _is_write(node: ast.Call, known: Mapping[str, str]) -> bool:
    name = _written_out(dotted(node.func), known)
    room, _, function = name.rpartition(".")
    if name in WRITERS or (room, function) in SHELL or (room == "os" and function in OS_WRITES):
        return True
    if isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
        return True
    if not (name == "open" or (isinstance(node.func, ast.Attribute) and node.func.attr == "open")):
        return False
    words = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
    return any(isinstance(w, str) and re.fullmatch(r"[rbt]*[wax+][rbt+]*", w) for w in words)


RUNS_CODE = (
    "importlib.import_module", "importlib.__import__", "importlib.reload", "importlib.util.spec_from_file_location",
    "importlib.util.module_from_spec", "imp", "runpy", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "torch.load", "torch.jit.load", "torch.hub.load", "torch.package", "pandas.read_pickle", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "multissl.trust.import_named", "multissl.trust.run_file",
    "__import__", "exec", "eval", "compile",
)  # fmt: skip
"""What runs code that a value names or holds; of a module all functions."""
SWITCHES = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}
"""Arguments that let other packages run code out of data, and the one value that they may have."""
ASKS_FIRST = {
    "registry.resolve": "of names: `config` admits what was read, options are typed",
    "catalogue._make": "entries of the package's own recipes",
    "catalogue._run_file": "a file whose name the user typed",
    "encoders.module.make": "a factory, which its config declares in `code_names`",
    "engine.pickled._Outline": "names mean what a table says, and nothing is imported",
}
"""Functions that call `trust` for a name that somebody has admitted before, and a class that needs none."""


def foreign_code(package: Path, decides: str, allowed: Iterable[str]) -> list[str]:
    """Return calls that run code by a name or from a value outside the module that decides, and switches left open.

    Classes that derive from such a function are among them.
    """
    broken = []
    for path in files(package):
        module, names = module_of(path, package), aliases(path)
        if module == decides or module == "code_files":
            continue
        broken += [
            f"{path.name}:{node.lineno} derives from {base}: only multissl.trust may run what a value names"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef) and f"{module}.{node.name}" not in ASKS_FIRST
            for base in (_written_out(dotted(b), names) for b in node.bases)
            if any(base.startswith(f"{name}.") for name in RUNS_CODE)
        ]
        for where, node in _calls(path):
            place = f"{module}.{where}".strip(".")
            if place in allowed or place in ASKS_FIRST:
                continue
            called = _written_out(dotted(node.func), names)
            line = f"{path.name}:{node.lineno}"
            if called == "torch.load" and any(k.arg == "weights_only" for k in node.keywords):
                pass  # torch's restricted reader, if that switch is on, which is asked below
            elif any(called == name or called.startswith(f"{name}.") for name in RUNS_CODE):
                broken.append(f"{line} calls {called}: only multissl.trust may run what a value names")
            if called.endswith("registry.require") and not isinstance(node.args[0], ast.Constant):
                broken.append(f"{line} imports a package by a value, want a constant")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in SWITCHES and value is not SWITCHES[keyword.arg]:
                    broken.append(f"{line} {keyword.arg}: want {SWITCHES[keyword.arg]}, written out")
    return broken


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call of a file with the top-level function or class that it lies in, "" for none."""
    for top in ast.parse(path.read_text()).body:
        where = top.name if isinstance(top, ast.FunctionDef | ast.ClassDef) else ""
        yield from ((where, node) for node in ast.walk(top) if isinstance(node, ast.Call))
