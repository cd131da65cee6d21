"""Every command and option that documents, recipes and messages name exists: commands parse, options are fields."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multissl import catalogue, commands, options, registry
from multissl.cli import CALLS
from multissl.config import Config
from multissl.layers.frozen import FrozenTeacher
from multissl.recipe import Recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "multissl").rglob("README.md")),
]
SOURCES = sorted((ROOT / "multissl").rglob("*.py"))
OTHERS = {
    "--nproc-per-node", "--standalone", "--shm-size", "--porcelain", "--logdir", "--locked", "--extra", "--all-extras",
    "--upgrade", "--s0", "--s5", "--line", "--ink", "--soft", "--a", "--l2", "--option",
}  # fmt: skip
"""Options of other programs, variables of style sheets, and names in examples of how options are typed."""
NOT_OURS = {"accelerometer", "mine.py:recipe", "image/mine", "NAME", "RECIPE", "FILE", "M"}
"""Recipes of examples: a package of one's own, a file of one's own, a name to fill in."""
NAMES = "|".join(CALLS)
PARTS = ("modality", "objective", "optim", "data", "parallel", "save", "schedules")
"""Parts of a recipe whose options are named behind a dot."""


def commands_of(text: str) -> Iterator[str]:
    """Yield the command lines of a document: in blocks, and between single backticks."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(rf"(?:^|\s|-m )multissl ((?:{NAMES})\b.*)", line):
                yield found[1]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for words in re.findall(rf"`multissl ((?:{NAMES})\b[^`]*)`", plain):
        yield " ".join(words.split())


def words_of(command: str) -> list[str]:
    """Return the words of a command, without a comment, what a shell does with it, and dots that stand for more."""
    words = []
    for word in shlex.split(command, comments=True):
        if word in ("||", "&&", "|", ">", ";"):
            break
        words.append(word)
    return [word for word in words if word not in ("...", "[...]")]


def problem_of(command: str) -> str:
    """Return why a command cannot be understood, "" where it can."""
    try:
        name, *rest = words_of(command)
        known, left = commands.parse(name, rest)
        recipe = known.part if name == "data" else known.name if name in commands.OF_RECIPES else ""
        if recipe in NOT_OURS or not recipe or (name == "encode" and recipe not in catalogue.entries()):
            return ""
        options.open_recipe(recipe, left)
    except (ValueError, ImportError) as error:
        if "no such file or folder" in str(error):  # epochs are counted in the data at hand
            return ""
        return f"multissl {command}: {error}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_documents_are_understood(document: Path) -> None:
    problems = [problem_of(command) for command in commands_of(document.read_text())]
    assert not [problem for problem in problems if problem]


def test_commands_of_recipes_are_understood() -> None:
    entries = [entry for entry in catalogue.entries().values() if entry.command]
    assert len(entries) > 50
    problems = [problem_of(c) for entry in entries for c in commands_of(f"`{entry.command.strip('`')}`")]
    assert not [problem for problem in problems if problem]


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert "did you mean" in problem_of("train image --modality.sise 3")
    assert problem_of("report runs/a --speed 3")
    assert "no recipe" in problem_of("train imag/none") or problem_of("train imag/none")
    assert [*commands_of("```\nsrun multissl train image || code=$?\n```\nand `multissl list image`")] == [
        "train image || code=$?",
        "list image",
    ]


def fields_of(cls: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of a config's options, those of nested ones behind a dot."""
    for each in dataclasses.fields(cls):
        yield f"{prefix}{each.name}"
        for nested in nested_of(cls, each.name):
            yield from fields_of(nested, f"{prefix}{each.name}.")


def nested_of(cls: Any, name: str) -> list[Any]:
    """Return the configs that an option holds by default, where it holds some."""
    try:
        value = getattr(cls(), name)
    except (TypeError, ValueError):
        return []
    return [type(value)] if dataclasses.is_dataclass(value) else []


def options_of(group: str) -> set[str]:
    """Return the options of every component of a group that can be imported here."""
    names: set[str] = set()
    for name in registry.GROUPS[group]:
        cls = registry.resolve_or_warn(name, group)
        if cls is not None and issubclass(cls.Config, Config):
            names |= set(fields_of(cls.Config))
    return names


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Options by the part of a recipe that has them; "" has those of the recipe itself."""
    recipe = catalogue.find("image")()
    parts = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    plain = {
        name: set(fields_of(type(part))) for name, part in parts.items() if dataclasses.is_dataclass(part)
    }
    groups = {
        "modality": "modalities",
        "objective": "objectives",
        "optim": "optimizers",
        "encoders": "encoders",
    }
    groups |= {"evals": "evaluators", "loggers": "loggers"}
    return plain | {part: options_of(group) for part, group in groups.items()} | {"": {*parts, "epochs"}}


FLAGS = {
    name for _, _, arguments in commands.COMMANDS.values() for name in arguments if name.startswith("--")
}
SHORT = {f"--{name}" for name in ("label", "column", "delimiter", "missing", "help", "version", "words")}
"""Flags of every command, and options of a modality that need not be named in full."""


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a source, the parts of an f-string with {} between them; a pattern is no text."""
    tree = ast.parse(path.read_text())
    inside = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def unknown_options(text: str, known: dict[str, set[str]]) -> list[str]:
    """Return the options that a text names and that do not exist."""
    wrong = []
    for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w.{}-]*[\w}]", text):
        if flag not in FLAGS | SHORT | OTHERS and "{" not in flag.split(".")[0] and not exists(flag, known):
            wrong.append(flag)
    for part, name in re.findall(rf"\b({'|'.join(PARTS)})\.([a-z_0-9]+)=", text):
        if name not in {option.split(".")[0] for option in known[part]}:
            wrong.append(f"{part}.{name}")
    return wrong


def exists(flag: str, known: dict[str, set[str]]) -> bool:
    """Return whether an option of a recipe exists; what a message fills in may be anything."""
    part, *rest = flag.removeprefix("--").replace("-", "_").split(".")
    if part == "a" or not rest:
        return part == "a" or part in known[""]
    if part in ("encoders", "evals", "loggers"):
        rest = rest[1:]
    if part in ("modality", "objective") and rest[:1] in (["members"], ["terms"]):
        return True
    if part == "objective" and rest[:1] == ["teachers"]:
        return rest[2:3] == [] or rest[2] in {*fields_of(FrozenTeacher.Config)}
    name = ".".join(rest)
    if not rest or "{}" in name or name.isupper():  # a name to fill in
        return True
    return part not in known or name in known[part]


def test_options_that_messages_name_exist(known: dict[str, set[str]]) -> None:
    wrong = {
        source.relative_to(ROOT).as_posix(): names
        for source in SOURCES
        if (names := [name for text in texts_of(source) for name in unknown_options(text, known)])
    }
    assert not wrong


def test_options_of_recipes_that_documents_name_exist(known: dict[str, set[str]]) -> None:
    wrong = {
        document.name: names
        for document in DOCUMENTS
        if (
            names := [
                n for n in unknown_options(document.read_text(), known) if "." in n and n.startswith("--")
            ]
        )
    }
    assert not wrong


def test_an_option_that_does_not_exist_is_noticed(known: dict[str, set[str]]) -> None:
    assert unknown_options("set --modality.sise 3 or modality.sise=3", known) == [
        "--modality.sise",
        "modality.sise",
    ]
    assert unknown_options("--stepz 3", known) == ["--stepz"]
    assert not unknown_options("--modality.size 3, modality.size=3, --encoders.{} resnet, --steps 9", known)
