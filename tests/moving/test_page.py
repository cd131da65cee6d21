"""The page on moving in names commands that run: each is parsed, with names of recipes and options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multissl import commands
from multissl.options import open_recipe
from multissl.simple import METHODS, recipe_for
from tests.moving.test_dinov2 import LARGE, written

PAGES = Path(__file__).parents[2] / "docs"
PLACEHOLDERS = {"FILE": "weights.pth", "RUN": "runs/image"}


def commands_of(page: str) -> list[list[str]]:
    """Return the words after `multissl` of every command on a page."""
    text = (PAGES / page).read_text(encoding="utf-8")
    lines: list[str] = re.findall(
        r"(?:`|^    |-m )(?:torchrun [^`]*?-m )?multissl ((?:train|import|encode|eval|show|list) [^`\n]+)",
        text,
        re.M,
    )
    return [[PLACEHOLDERS.get(w, w) for w in line.replace('"', "").split()] for line in lines]


@pytest.mark.parametrize("words", commands_of("moving.md"), ids=" ".join)
def test_a_command_of_the_page_is_parsed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known, rest = commands.parse(words[0], words[1:])
    if words[0] == "train":
        name = known.name
        if name == "recipe.yaml":
            written(tmp_path, LARGE).rename("recipe.yaml")
            from multissl.moving.dinov2 import as_yaml, import_dinov2

            Path(name).write_text(as_yaml(import_dinov2(Path(name)).recipe))
        open_recipe(name, ["--steps" if word == "--epochs" else word for word in rest])  # epochs ask the data


def test_the_page_has_many_commands() -> None:
    assert len(commands_of("moving.md")) > 20


@pytest.mark.parametrize("method", [*METHODS, "vicreg"])
def test_a_line_of_python_is_a_recipe(method: str) -> None:
    made, usual = recipe_for(
        "pictures", model="timm/convnext_tiny", method=method, options={"steps": 7, "optim.lr": 1e-3}
    )
    assert (made.steps, made.optim.lr, made.modality.data) == (7, 1e-3, "pictures")  # type: ignore[attr-defined]
    assert made.encoders["image"].name == "convnext_tiny"  # type: ignore[attr-defined]
    assert usual.steps != 7


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vit/s", []),
        ("timm/convnext_tiny", ["--encoders.image", "timm", "--encoders.image.name", "convnext_tiny"]),
        ("resnet/18", ["--encoders.image", "resnet", "--encoders.image.depth", "18"]),
    ],
)
def test_a_line_of_python_and_a_command_make_one_recipe(model: str, words: list[str]) -> None:
    options = ["--data", "pictures", "--objective", "infonce", "--steps", "7", *words]
    typed, _ = open_recipe("image/dinov2_small_data", options)
    made, _ = recipe_for("pictures", model=model, method="simclr", options={"steps": 7})
    assert made == typed
    assert made.modality.open_sizes() == ["size", "local_size", "patch", "blur_kernel"]


def test_names_that_are_none_are_refused_with_the_nearest() -> None:
    for options, words in (
        ({"model": "vit/xl", "method": "dino"}, "want vit/ and one of ti, s, b"),
        ({"model": "trnsformer", "method": "dino"}, "did you mean transformer"),
        ({"model": "vit/s", "method": "simclrr"}, "did you mean simclr"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe_for("pictures", **options, options={})
