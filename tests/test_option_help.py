"""Every option of every registered component has a sentence, and help shows it."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from multissl import option_help, registry
from multissl.config import Config, hints_of
from multissl.options import open_recipe
from multissl.recipe import Recipe
from tests.helpers import stubs


def with_nested(todo: list[type[Config]]) -> Iterator[type[Config]]:
    """Yield config classes and those of their options, each once."""
    done: set[type[Config]] = set()
    while todo:
        cls = todo.pop()
        if cls in done:
            continue
        done.add(cls)
        yield cls
        for hint in hints_of(cls).values():
            options = (hint, *typing.get_args(hint))
            todo += [h for h in options if isinstance(h, type) and issubclass(h, Config)]


def registered() -> list[type[Config]]:
    """Return the recipe's own class and that of every registered component that has options."""
    found: list[type[Config]] = [Recipe]
    for group in registry.GROUPS:
        for name in registry.GROUPS[group]:
            options = vars(registry.resolve(name, group)).get("Config")
            found += [options] if options else []
    return found


def test_every_option_has_a_sentence() -> None:
    classes = [*with_nested(registered())]
    assert len(classes) > 60
    silent = {f"{cls.__module__}: {name}" for cls in classes for name in option_help.without_sentence(cls)}
    assert not silent


@dataclass(kw_only=True, slots=True)
class Silent(Config):
    """Options of which one is not explained."""

    said: int = 0
    """This one is explained."""
    unsaid: int = 0


def test_an_option_without_a_sentence_is_noticed() -> None:
    assert option_help.without_sentence(Silent) == ["unsaid"]


def test_an_inherited_option_keeps_its_sentence_unless_said_anew() -> None:
    said = option_help.sentences(Recipe)
    assert said["steps"] == "Steps to train."
    assert said["init"].startswith("Weights that the encoder starts from")


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (int, "INT"),
        (tuple[float, float], "NUMBER NUMBER"),
        (tuple[str, ...], "TEXT ..."),
        (float | None, "NUMBER|none"),
        (typing.Literal["a", "b"], "a|b"),
        (dict[str, float], "NAME=NUMBER ..."),
        (Silent, "NAME"),
    ],
)
def test_values_are_shown_as_they_are_typed(hint: object, shown: str) -> None:
    assert option_help.metavar(hint) == shown


def test_help_prints_options_with_values_and_sentences() -> None:
    text = option_help.render("stub", stubs.recipe())
    assert "--objective.pull NUMBER (now 1.0)" in text
    assert "--steps INT (now 40)\n      Steps to train." in text


def test_stages_are_shown_as_they_are_typed() -> None:
    staged, _ = open_recipe("image/dinov2_stages", [])
    typed = shlex.split(option_help.shown(staged.stages))
    assert open_recipe("image/default", ["--stages", *typed])[0].stages == staged.stages
    assert "--stages JSON (now nothing)" in option_help.render("image", open_recipe("image", [])[0])
