"""What docs/stages.md shows: the Python example runs when it is shrunk, the YAML and the command line are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multissl import simple
from multissl.options import open_recipe
from multissl.recipe import Recipe

TEXT = (Path(__file__).parents[2] / "docs" / "stages.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"(?s)```{language}\n(.*?)```", TEXT)
    return found


def test_the_python_example_is_a_run_of_three_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Recipe] = []
    monkeypatch.setattr(simple, "run_recipe", lambda recipe, *_, **__: trained.append(recipe))
    exec(block("python"), {})
    stages = trained[0].run_stages()
    assert [(s.name, s.offset, s.stop) for s in stages] == [
        ("first", 0, 600), ("high_resolution", 600, 800), ("gram", 800, 900),
    ]  # fmt: skip
    assert stages[2].recipe.objective.gram.size == (96, 96)  # type: ignore[attr-defined]
    assert stages[2].recipe.modality.size == 48  # type: ignore[attr-defined]


def test_the_file_and_the_command_line_say_the_same_stage(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    made = open_recipe("image", [])[0]
    typed = re.search(r"--stages '(.*?)'", TEXT, re.DOTALL)
    assert typed
    by_words, _ = open_recipe("image", ["--stages", typed[1].replace("\n", " ")])
    assert by_words.run_stages()[1].recipe.modality.size == 64  # type: ignore[attr-defined]
    from multissl.moving.dinov2 import as_yaml

    file.write_text(as_yaml(made).replace("stages: []\n", "") + block("yaml"))
    by_file, _ = open_recipe(str(file), [])
    high = by_file.run_stages()[1].recipe
    assert (high.optim.lr, high.modality.local_size) == (1e-4, 32)  # type: ignore[attr-defined]
