"""What weights want to see: the first of those who say it counts, and who it was is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.weights.containers import Source
from multissl.weights.inputs import IMAGENET, inputs_of
from multissl.weights.released import released

HALF = (0.5, 0.5, 0.5)
CONVOLUTION = {"conv.weight": torch.zeros(2, 2)}


def source(folder: Path, name: str = "model.safetensors", config: Any = None, **preprocessor: Any) -> Source:
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return Source(CONVOLUTION, folder / name, config or {})


@pytest.mark.parametrize(
    ("said", "size", "zoom"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224, 256 / 224),
        ({"size": {"height": 384, "width": 384}, "do_center_crop": False}, 384, 1.0),
        ({"size": 224}, 224, 1.0),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224}, "do_center_crop": False}, 224, 1.0),
        ({"size": [160, 160]}, 160, 1.0),
    ],
)
def test_of_hugging_faces_preprocessor(tmp_path: Path, said: dict[str, Any], size: int, zoom: float) -> None:
    inputs = inputs_of(source(tmp_path, image_mean=HALF, image_std=HALF, **said))
    assert (inputs.size, inputs.zoom) == (size, pytest.approx(zoom))
    assert inputs.mean == inputs.std == HALF
    assert inputs.said_by == "preprocessor_config.json"


def test_of_timms_config(tmp_path: Path) -> None:
    cfg = {"pretrained_cfg": {"input_size": [3, 518, 518], "mean": HALF, "std": HALF, "crop_pct": 1.0}}
    inputs = inputs_of(source(tmp_path, config=cfg | {"patch_size": 14}))
    assert (inputs.size, inputs.zoom, inputs.mean, inputs.said_by) == (518, 1.0, HALF, "timm")
    assert inputs.patch == (14, 14)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dinov2_vits14_pretrain.pth", 224),
        ("mae_pretrain_vit_base.pth", 224),
        ("dino_vitbase8_pretrain.pth", 224),
    ],
)
def test_of_the_table_of_released_models(tmp_path: Path, name: str, size: int) -> None:
    inputs = inputs_of(source(tmp_path, name))
    assert (inputs.size, (inputs.mean, inputs.std)) == (size, IMAGENET)
    assert name.partition(".")[0] in inputs.said_by


def test_satellite_weights_have_constants_of_their_own(tmp_path: Path) -> None:
    inputs = inputs_of(source(tmp_path, "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"))
    assert inputs.mean == (0.430, 0.411, 0.296)
    assert inputs.size == 224  # its rotary positions are of any size


def test_every_released_model_is_measured_at_a_multiple_of_its_patch() -> None:
    assert all(model.view_size % model.patch == 0 for model in released())


def test_of_config_alone_and_of_nobody(tmp_path: Path) -> None:
    inputs = inputs_of(source(tmp_path, config={"image_size": 100, "patch_size": 16}))
    assert inputs.size == 96
    assert "config.json" in inputs.said_by
    nobody = inputs_of(source(tmp_path))
    assert (nobody.size, nobody.patch, nobody.channels) == (224, (), 3)
    assert nobody.said_by.startswith("nobody")
    gray = inputs_of(source(tmp_path, config={"num_channels": 1}))
    assert (gray.channels, gray.mean) == (1, ())
