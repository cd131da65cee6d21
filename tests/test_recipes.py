"""Recipes too large to train here have the published number of parameters, and run when they are shrunk."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import catalogue
from multissl.build import build
from multissl.config import to_dict
from multissl.encoders.transformer import TransformerEncoder
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.rl.adapter import RL
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe, read_recipe
from tests.helpers import paired_data
from tests.test_grid import run, shrunk

NAMES = [*catalogue.entries()]
MILLIONS = {
    "image/dino_vits16": 21.67, "image/ibot_vits16": 21.67, "image/dinov2_vits14": 22.06,
    "image/dinov2_vitb14": 86.58, "image/dinov2_vitl16_in1k": 303.35, "image/dinov2_vitg14": 1136.48,
}  # fmt: skip
"""Of the published encoders, LayerScale and mask token included; patch 14 carries positions of 518 pixels."""


def recipe(name: str) -> Recipe:
    return catalogue.find(name)()


@pytest.mark.parametrize("name", MILLIONS)
def test_published_encoders_have_the_published_size(name: str) -> None:
    made = recipe(name)
    modality: Any = made.modality
    grid = (37, 37) if modality.patch == 14 else ()
    encoder: Any = made.encoders["image"]
    encoder = encoder.replace(position=encoder.position.replace(grid=grid))
    with torch.device("meta"):
        built = encoder.build(modality.build().streams()["image"])
    count = sum(p.numel() for p in built.parameters()) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_when_it_is_shrunk(name: str, tmp_path: Path) -> None:
    made = recipe(name).replace(batch_size=4, steps=3, parallel=Parallel())
    if isinstance(made.modality, Paired.Config):
        if "audio" in made.modality.members:
            pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
        made.modality = paired_data.small(made.modality, tmp_path)
    if isinstance(made.modality, Image.Config):
        made.modality = made.modality.replace(
            size=16,
            local_size=8,
            patch=4,
            mask_group=4,
            blur_kernel=3,
            data="",
            mask_patch=min(made.modality.mask_patch, 8),
        )
    if isinstance(made.modality, RL.Config):
        burst = min(made.modality.burst, 2)
        made.modality = made.modality.replace(data="", episodes=10, steps=12, burst=burst, mask_group=4)
    if isinstance(made.modality, Video.Config):
        made.modality = made.modality.replace(
            frames=4, size=16, local_frames=2, local_size=8, patch=4, stride=1, mask_group=4, data=""
        )
    if isinstance(made.modality, Text.Config):
        made.modality = made.modality.replace(length=16, local_length=8, vocab=300, mask_group=4, data="")
    for stream, encoder in made.encoders.items():
        if isinstance(encoder, TransformerEncoder.Config):
            made.encoders[stream] = encoder.replace(dim=16, depth=2, heads=2)
    made.objective = shrunk(made.objective)
    _, losses, _ = run(made)
    assert len(losses) == 3


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_survives_its_file(name: str, tmp_path: Any) -> None:
    import json

    made = recipe(name)
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(made)))
    assert read_recipe(tmp_path / "recipe.json") == made


SIZE = re.compile(r"([\d,]+) steps of ([\d,]+), .+; .+\.")
NUMBER = re.compile(r"\d")


def docstring_errors(entry: catalogue.Entry, made: Recipe) -> list[str]:
    """Return what is wrong with what a recipe says of itself."""
    wrong: list[str] = []
    if not entry.line.endswith(".") or len(entry.line) > 125:
        wrong.append(f"first line: {entry.line}")
    name = entry.command.removeprefix("multissl train ").split(" ")[0]
    if not name or catalogue.entry(name) != entry:
        wrong.append(f"Command: {entry.command}")
    size = SIZE.fullmatch(entry.size)
    if not size or [int(n.replace(",", "")) for n in size.groups()] != [made.total_steps, made.batch_size]:
        wrong.append(f"Size: {entry.size}, of {made.total_steps} steps of {made.batch_size}")
    if entry.measured != catalogue.UNMEASURED and not NUMBER.search(entry.measured):
        wrong.append(f"Measured: {entry.measured}")
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_command_size_and_result(name: str) -> None:
    assert not docstring_errors(catalogue.entries()[name], recipe(name))


def test_a_docstring_that_hides_or_misstates_something_is_noticed() -> None:
    entry, made = catalogue.entries()["image/default"], recipe("image/default")
    for change in (
        {"line": "DINOv2"}, {"command": ""}, {"command": "multissl train rl"}, {"size": ""},
        {"size": entry.size.replace("900", "800")}, {"size": entry.size.partition(";")[0]}, {"measured": ""},
        {"measured": "well"},
    ):  # fmt: skip
        assert docstring_errors(dataclasses.replace(entry, **change), made), change


def test_a_learner_can_be_built_twice_alike() -> None:
    made = recipe("tabular/default")
    first, second = (build(made, torch.device("cpu")).learner.state_dict() for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
