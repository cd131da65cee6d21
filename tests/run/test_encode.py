"""Features as a table: the same as the encoder gives sample by sample, beside what is known of each."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from multissl import cli
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.trainer import Interrupted
from multissl.inference import Pooled, featurize_split
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.objectives.clip import CLIP
from multissl.objectives.infonce import InfoNCE
from multissl.recipe import Recipe
from multissl.run import encode as features
from multissl.run.model import Model, untrained
from multissl.run.pieces import Pieces
from tests.helpers.paired_data import IMAGE, TEXT, class_folders, png, rows, shard
from tests.helpers.ranks import run_ranks

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


# ------------------------------------------------------------------------------------- arrays, pieces


def tokens_of(data: str) -> Model:
    cfg = Image.Config(data=data, size=16, local_size=8, patch=4, blur_kernel=3)
    encoder = TransformerEncoder.Config(dim=8, depth=3, heads=2)
    return untrained(
        Recipe(modality=cfg, encoders={"image": encoder}, objective=InfoNCE.Config(), batch_size=4)
    )


def array(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else load_file(path)["features"].numpy()


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_arrays_hold_what_tables_do_and_every_token_where_that_is_asked_for(
    suffix: str, tmp_path: Path
) -> None:
    model, out = tokens_of(class_folders(tmp_path / "data", "png", count=7)), tmp_path / f"a.{suffix}"
    features.encode(model, tmp_path / "a.csv", workers=0)
    assert features.encode(model, out, batch_size=4, workers=0) == 21
    told, numbers = table(tmp_path / "a.csv")
    torch.testing.assert_close(torch.from_numpy(array(out)), numbers, atol=1e-5, rtol=1e-5)
    assert table(tmp_path / f"a.{suffix}.rows.csv")[0] == told

    def made(**wanted: Any) -> np.ndarray:
        features.encode(model, out, batch_size=4, workers=0, wanted=features.Wanted(**wanted))
        return array(out)

    pooled, tokens = made(), made(tokens=True)
    assert tokens.shape == (21, 16, 8)
    np.testing.assert_allclose(made(pool="mean"), tokens.mean(1), atol=1e-6)
    np.testing.assert_array_equal(made(pool="concat"), np.concatenate([pooled, made(pool="mean")], 1))
    last, first = made(tokens=True, layer=1), made(tokens=True, layer=3)
    assert not np.allclose(last, tokens)  # before the final norm
    assert not np.allclose(last, first)
    np.testing.assert_allclose(made(layer=3), first.mean(1), atol=1e-6)
    assert made(half=True).dtype == np.float16


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = tokens_of(class_folders(tmp_path / "data", "png"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layer": -1}, "--layer -1: want 0, or a block counted from the last one, which is 1"),
        ({"tokens": True, "pool": "mean"}, "--tokens with --pool mean: want one of the two"),
        ({"layer": 1, "pool": "concat"}, "--layer with --pool concat: a block gives tokens alone"),
    ]
    for wanted, message in cases:
        with pytest.raises(ValueError, match=message):
            features.Wanted(**wanted)
    with pytest.raises(ValueError, match=r"want a file that ends in .npy or .safetensors for tokens"):
        features.encode(model, tmp_path / "a.csv", wanted=features.Wanted(tokens=True))
    with pytest.raises(
        ValueError, match="--layer 4: the encoder of image hands out the outputs of 3 blocks; want 1 to 3"
    ):
        features.encode(model, tmp_path / "a.npy", workers=0, wanted=features.Wanted(layer=4))


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    model, out = of_images(class_folders(tmp_path / "data", "png")), tmp_path / "a.npy"
    with (
        Pieces(out, {}).held(),
        pytest.raises(ValueError, match=r"a.npy: another process is writing it: wait for it"),
    ):
        features.encode(model, out, workers=0)
    assert features.encode(model, out, workers=0)
    assert not [*tmp_path.glob("*.parts")]


@pytest.mark.parametrize("content", [b"", b"x" * 500, None])
def test_a_piece_that_is_cut_off_is_made_again(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = of_images(class_folders(tmp_path / "data", "png")), tmp_path / "a.npy"
    with monkeypatch.context() as patch:
        patch.setattr(Pieces, "remove", lambda _pieces: None)
        features.encode(model, out, workers=0)
    whole, (piece,) = out.read_bytes(), (tmp_path / "a.npy.parts").glob("*.safetensors")
    piece.write_bytes(piece.read_bytes()[:-1] if content is None else content)
    out.unlink()
    features.encode(model, out, workers=0)
    assert out.read_bytes() == whole


def test_an_encoder_without_blocks_an_unknown_split_and_a_folder_are_said(tmp_path: Path) -> None:
    model = of_images(class_folders(tmp_path / "data", "png"))
    with pytest.raises(
        ValueError, match="--layer 1: the encoder of image hands out the outputs of 0 blocks; want 0"
    ):
        features.encode(model, tmp_path / "a.npy", wanted=features.Wanted(layer=1))
    with pytest.raises(ValueError, match="--split nope: this data has no such split; want train, val, test"):
        features.encode(of_images(""), tmp_path / "a.npy", split="nope")
    with pytest.raises(ValueError, match="has no nope split"):
        features.encode(model, tmp_path / "a.npy", split="nope")
    assert [*features.splits_of(model.modality, "all")] == ["all"]
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(
        ValueError, match=r"--out .*a.npy: is a folder; want a file in it, such as .*features"
    ):
        features.encode(model, tmp_path / "a.npy")
    assert not [*tmp_path.glob("*.parts")]


@pytest.mark.parametrize("suffix", ["npy", "parquet", "csv"])
def test_what_was_ended_goes_on_and_ends_with_the_same_bytes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "ROWS", 4)
    model, out = tokens_of(class_folders(tmp_path / "data", "png", count=7)), tmp_path / f"a.{suffix}"
    features.encode(model, tmp_path / f"whole.{suffix}", batch_size=2, workers=0)
    original, left = model.encoders.encode, [7]

    def ended(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(model.encoders, "encode", ended)
        with pytest.raises(Interrupted, match=r"3 pieces more are in .*parts; repeat the command"):
            features.encode(model, out, batch_size=2, workers=0)
    assert not out.exists()
    said, count = list[str](), [0]

    def counted(*args: Any) -> Any:
        count[0] += 1
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(model.encoders, "encode", counted)
        features.encode(model, out, batch_size=2, workers=0, say=said.append)
    assert count[0] == 11 - 6  # three pieces of two batches were there
    assert said[0].startswith("going on with the pieces in")
    assert out.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not [*tmp_path.glob("*.parts")]


def test_pieces_of_other_options_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "ROWS", 4)
    model = tokens_of(class_folders(tmp_path / "data", "png", count=7))
    monkeypatch.setattr(model.encoders, "encode", once_then_interrupted(model))
    with pytest.raises(KeyboardInterrupt):
        features.encode(model, tmp_path / "a.npy", batch_size=4, workers=0)
    monkeypatch.undo()
    said = list[str]()
    mean = features.Wanted(pool="mean")
    features.encode(model, tmp_path / "a.npy", batch_size=4, workers=0, say=said.append, wanted=mean)
    assert not said
    features.encode(model, tmp_path / "b.npy", batch_size=4, workers=0, wanted=mean)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def once_then_interrupted(model: Model) -> Any:
    original, left = model.encoders.encode, [2]

    def encode(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return original(*args)

    return encode


def on_a_rank(_rank: int, data: str, out: Path) -> int:
    features.ROWS = 4
    return features.encode(tokens_of(data), out, batch_size=2, workers=0)


def test_several_ranks_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS", 4)
    data = class_folders(tmp_path / "data", "png", count=7)
    features.encode(tokens_of(data), tmp_path / "one.npy", batch_size=2, workers=0)
    assert run_ranks(2, on_a_rank, data, tmp_path / "two.npy") == [21, 21]
    for name in ("npy", "npy.rows.csv"):
        assert (tmp_path / f"one.{name}").read_bytes() == (tmp_path / f"two.{name}").read_bytes()


PEAK = """
import resource, sys
from multissl.run import encode as features
from tests.run.test_encode import tokens_of
features.encode(
    tokens_of(sys.argv[1]), sys.argv[2], workers=0, wanted=features.Wanted(tokens=True, half=True)
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_times_as_many_pictures_need_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (6_000, 60_000):
        folder = tmp_path / str(count) / "a"
        folder.mkdir(parents=True)
        picture = png(0)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(picture)
        words = [sys.executable, "-c", PEAK, str(folder.parent), str(tmp_path / f"{count}.npy")]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(int(ended.stdout.split()[-1]))
        assert np.load(tmp_path / f"{count}.npy", mmap_mode="r").shape == (count, 16, 8)
    assert peaks[1] < 1.05 * peaks[0], peaks


# ---------------------------------------------------------------------------------- Model.encode


def test_one_path_is_one_sample(tmp_path: Path) -> None:
    model = of_images(class_folders(tmp_path / "data", "png", count=3))
    path = next((tmp_path / "data").rglob("*.png"))
    one = model.encode(str(path))
    assert one.shape == (1, 6)
    for same in (path, [path], [str(path)]):
        assert torch.equal(model.encode(same), one)


def test_a_table_of_pandas_has_a_sample_in_each_row(tmp_path: Path) -> None:
    from multissl.modalities.tabular.adapter import Tabular
    from multissl.objectives.vime import VIME

    pandas = pytest.importorskip("pandas", reason="reads tables, and is not installed")
    table = pandas.DataFrame({"a": [float(i) for i in range(40)], "b": ["x", "y"] * 20})
    table.to_csv(tmp_path / "t.csv", index=False)
    cfg = Tabular.Config(data=str(tmp_path / "t.csv"))
    encoder = TransformerEncoder.Config(dim=8, depth=1, heads=2)
    recipe = Recipe(modality=cfg, encoders={"tabular": encoder}, objective=VIME.Config(), batch_size=4)
    model = untrained(recipe)
    rows = model.encode(table)
    assert rows.shape == (40, 8)
    torch.testing.assert_close(rows[3:4], model.encode([{"a": 3.0, "b": "y"}]))
