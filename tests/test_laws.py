"""The five laws of the architecture, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "multissl"
FILES = sorted(PACKAGE.rglob("*.py"))
SIBLINGS = ("modalities", "encoders", "objectives", "evaluators")
FOUNDATION = ("types", "config", "registry", "schedules", "random", "distributed")
ALLOWED = {
    "layers": ("layers", *FOUNDATION),
    "modalities": ("modalities", *FOUNDATION),
    "encoders": ("encoders", "layers", *FOUNDATION),
    "objectives": ("objectives", "layers", *FOUNDATION),
    "evaluators": ("evaluators", "layers", *FOUNDATION),
    "engine": ("engine", *FOUNDATION),
}
"""Who may import whom inside the package; recipe, run, cli and configs stand above and may import all."""


def folder(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(path: Path) -> set[str]:
    """Identifiers and string constants, docstrings left out."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [n.body for n in ast.walk(tree) if isinstance(n, documented)]
    docs = {id(n.value) for body in bodies for n in body if isinstance(n, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.add(node.value)
    return found


ORDINARY = {"clip", "module", "text", "weighted"}
"""Names of components that are also everyday words of code; their classes' names still count."""


def registered(group: str) -> set[str]:
    from multissl.registry import GROUPS

    return ({*GROUPS[group]} - ORDINARY) | {t.rpartition(":")[2] for t in GROUPS[group].values()}


@pytest.mark.parametrize("path", [p for p in FILES if folder(p) in ALLOWED], ids=lambda p: p.stem)
def test_imports_follow_the_arrows(path: Path) -> None:
    allowed = ALLOWED[folder(path)]
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "multissl" and len(parts) > 1:
            shared = module.startswith("multissl.encoders.base")  # the set of encoders that others are handed
            assert shared or parts[1] in allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize("name", FOUNDATION)
def test_the_foundation_stands_on_nothing_of_ours_but_itself(name: str) -> None:
    for module in imports(PACKAGE / f"{name}.py"):
        parts = module.split(".")
        if parts[0] == "multissl" and len(parts) > 1:
            assert parts[1] in FOUNDATION, f"{name} imports {module}"


def test_modalities_hold_no_parameters_and_name_no_objective() -> None:
    for path in (PACKAGE / "modalities").glob("*.py"):
        found = names(path)
        assert not found & {"Parameter", "Module", "ModuleDict"}, path.name
        assert not found & registered("objectives"), path.name


def test_objectives_name_no_modality_and_encoders_no_objective() -> None:
    for path in (PACKAGE / "objectives").glob("*.py"):
        assert not names(path) & registered("modalities"), path.name
    for path in (PACKAGE / "encoders").glob("*.py"):
        assert not names(path) & (registered("objectives") | {"Losses", "Objective"}), path.name


def test_the_engine_names_no_component() -> None:
    ours = (
        registered("modalities")
        | registered("encoders")
        | registered("objectives")
        | registered("evaluators")
    )
    for path in (PACKAGE / "engine").glob("*.py"):
        assert not names(path) & ours, f"{path.name}: {names(path) & ours}"


def test_only_one_file_knows_of_ranks() -> None:
    for path in FILES:
        if path.name == "distributed.py":
            continue
        assert not any(m.startswith("torch.distributed") for m in imports(path)), path.name
        assert not names(path) & {"LOCAL_RANK", "WORLD_SIZE", "fully_shard", "FSDPModule"}, path.name


def test_slow_state_lives_in_objectives() -> None:
    """Teachers, queues and centres are part of an objective's state_dict, never of the loop's."""
    for path in (PACKAGE / "engine").glob("*.py"):
        assert not names(path) & {"teacher", "queue", "centre", "ema"}, path.name


def test_no_generator_is_saved_or_drawn_from_outside_a_step() -> None:
    """Data and views draw from `RowRandom` or a generator with an explicit seed, never from a global one."""
    for path in (PACKAGE / "modalities").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                drawing = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli"}
                owner = node.func.value
                if node.func.attr in drawing and isinstance(owner, ast.Name) and owner.id == "torch":
                    assert any(k.arg == "generator" for k in node.keywords), f"{path.name}:{node.lineno}"


PAIRS = {"Paired", "paired", "crossmodal"}
"""What names pairs of modalities, in code or in a path to it."""


def test_pairs_are_data_and_a_recipe() -> None:
    """Nobody but the modality itself, the recipes, the objectives and the evaluators knows that pairs exist."""
    may = {PACKAGE / "registry.py", PACKAGE / "configs" / "crossmodal.py"}  # the registry is where names are
    for path in FILES:
        own = path.parent.name == "modalities" and path.stem.startswith("paired")
        if own or path in may or folder(path) in ("objectives", "evaluators"):
            continue
        assert not names(path) & PAIRS, f"{path.name} names pairs"
        assert not any(part.startswith("paired") for m in imports(path) for part in m.split(".")), path.name


def test_no_file_is_two_files() -> None:
    for path in [*FILES, *Path(__file__).parent.rglob("*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= 400, path.name
        if path in FILES and folder(path) == "objectives":  # a method is read in one sitting
            assert lines < (300 if path.stem == "dino" else 180), path.name
