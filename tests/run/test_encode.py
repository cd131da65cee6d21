"""Features as a table: the same as the encoder gives sample by sample, beside what is known of each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl import cli
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.inference import Pooled, featurize_split
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.recipe import Recipe
from multissl.run import encode as features
from multissl.run.model import Model, untrained
from tests.helpers.paired_data import IMAGE, TEXT, class_folders, png, rows, shard

ENCODER = MLPEncoder.Config(dims=(6,))


def of_images(data: str) -> Model:
    cfg = Image.Config(data=data, size=16, local_size=8, patch=4, blur_kernel=3)
    return untrained(
        Recipe(modality=cfg, encoders={"image": ENCODER}, objective=InfoNCE.Config(), batch_size=4)
    )


def table(path: Path) -> tuple[list[dict[str, str]], torch.Tensor]:
    """What is told of each sample, and the features [S, D]."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    else:
        with path.open(newline="") as file:
            found = [*csv.DictReader(file)]
    numbers = [[float(v) for k, v in row.items() if k[1:].isdigit()] for row in found]
    return [{k: v for k, v in row.items() if not k[1:].isdigit()} for row in found], torch.tensor(numbers)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_sample_has_a_line_with_its_split_file_class_and_features(
    suffix: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(features, "PAUSE", 1e9)  # no line about how far it is, however slow the machine
    model = of_images(class_folders(tmp_path / "data", "png", count=7))
    (tmp_path / "data" / "1" / "3.png").write_bytes(b"no picture")
    out, said = tmp_path / "new" / f"features.{suffix}", list[str]()
    assert features.encode(model, out, batch_size=4, workers=workers, say=said.append) == 20
    told, found = table(out)
    assert [t["split"] for t in told] == ["train"] * 18 + ["val"] * 2
    assert all(t["label"] == Path(t["file"]).parent.name for t in told)
    assert len({t["file"] for t in told}) == 20
    pooled = Pooled(model.frozen())
    expected = [featurize_split(pooled, model.modality, split)[0] for split in ("train", "val")]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert len(said) == 1
    assert "1 samples cannot be read" in said[0]
    assert "3.png" in said[0]
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_one_split_is_encoded_alone(tmp_path: Path) -> None:
    model = of_images(class_folders(tmp_path / "data", "png", count=7))
    assert features.encode(model, tmp_path / "a.csv", split="val", workers=0) == 2
    with pytest.raises(ValueError, match="no test split"):
        features.encode(model, tmp_path / "b.csv", split="test", workers=0)


def test_what_goes_wrong_is_named_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_images(class_folders(tmp_path / "data", "png"))
    with pytest.raises(ValueError, match=r"--out .*a.txt: want a file that ends in .parquet or .csv"):
        features.encode(model, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="stream='imag' is none"):
        features.encode(model, tmp_path / "a.csv", stream="imag")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .* cannot be written"):
        features.encode(model, tmp_path / "file" / "a.csv", workers=0)
    monkeypatch.setattr(model.encoders, "encode", interrupted)
    (tmp_path / "a.csv").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        features.encode(model, tmp_path / "a.csv", workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "data", "file"]
    assert (tmp_path / "a.csv").read_text() == "older"
    for path in tmp_path.glob("data/*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of 12 samples has a image that can be read: .*not an image"):
        features.encode(model, tmp_path / "b.csv", workers=0)


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_features_of_one_stream_keep_the_texts_and_splits_of_their_pairs(tmp_path: Path) -> None:
    files = rows(20)
    files[3]["txt"], files[12]["txt"] = b"\xff", files[2]["txt"]
    del files[4]["png"]
    towers = {"image": ENCODER, "text": TransformerEncoder.Config(dim=8, depth=1, heads=2)}
    cfg = Paired.Config(members={"image": IMAGE, "text": TEXT}, data=(shard(tmp_path / "a.tar", files),))
    recipe = Recipe(modality=cfg, encoders=towers, objective=CLIP.Config(), batch_size=4)
    model = untrained(recipe)
    assert features.encode(model, tmp_path / "image.csv", stream="image", workers=0) == 18
    told, found = table(tmp_path / "image.csv")
    assert found.shape == (18, 6)
    kept = [i for i in range(20) if i not in (3, 4)]
    assert [t["text"] for t in told] == [
        str(files[i]["txt"]) for i in [k for k in kept if k not in (9, 19)] + [9, 19]
    ]
    assert [t["split"] for t in told] == ["train"] * 16 + ["val"] * 2


def test_the_command_writes_what_a_recipe_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = class_folders(tmp_path / "data", "png")
    size = ["--modality.size", "16", "--modality.local_size", "8", "--data", data]
    out = tmp_path / "a.csv"
    assert cli.main(["encode", "image", *size, "--out", str(out)]) == 0
    assert "a.csv: 12 lines" in capsys.readouterr().out
    told, found = table(out)
    assert len(told) == 12
    assert np.isfinite(found.numpy()).all()
    assert png(0)[:4] == Path(told[0]["file"]).read_bytes()[:4]
