"""The lines of docs/export.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as Picture

from multissl.config import to_dict
from multissl.exporting import export
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from tests.export import models

pytestmark = pytest.mark.slow
BLOCKS = re.findall(
    r"(?s)```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "export.md").read_text()
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of small pictures and two files."""
    folder, model = RunFolder(tmp_path / "runs" / "pictures"), models.model_of(models.image())
    recipe = Recipe(
        modality=model.modality.cfg, encoders={"image": models.ENCODER}, objective=VICReg.Config()
    )
    folder.write_recipe(to_dict(recipe))
    folder.write_model(model.encoders.state_dict(), model.modality.state())
    for name in ("cat.jpg", "dog.png"):
        Picture.new("RGB", (40, 30), (200, 90, 20)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_onnxruntime_alone_reads_pictures(work: Path) -> None:
    pytest.importorskip("onnxruntime")
    export.export("runs/pictures", "onnx", "exported")
    (code,) = (block for block in BLOCKS if "onnxruntime" in block)
    code = (
        code.replace("SIZE = 224", "SIZE = 16")
        + "import sys\nprint({*sys.modules} & {'torch', 'multissl'})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == "(2, 16)\nset()\n", ended.stderr


def test_torchvision_detects_with_it(work: Path) -> None:
    (code,) = (block for block in BLOCKS if "FasterRCNN" in block)
    made: dict[str, object] = {}
    exec(code, made)
    encoder = made["detector"].backbone.tokens.encoder  # type: ignore[attr-defined]
    assert encoder.tokenizer.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_segments_with_it(work: Path) -> None:
    pytest.importorskip("transformers")
    export.export("runs/pictures", "hf", "exported")
    (code,) = (block for block in BLOCKS if "UperNet" in block)
    made: dict[str, object] = {}
    exec(code, made)
    assert made["logits"].shape == (2, 5, 64, 64)  # type: ignore[attr-defined]
