"""`multissl eval` of a run, of weights without a run, of a file of features: what it measures, records, refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import fromarray
from safetensors.torch import save_file

from multissl import cli
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.inference import clean_views
from multissl.modalities.image.adapter import Image
from multissl.objectives.vicreg import VICReg
from multissl.options import read
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.encode import encode
from multissl.run.evaluate import evaluate, evaluate_place
from multissl.run.folder import RunFolder
from multissl.run.model import load
from multissl.run.subject import subject_of

CPU = torch.device("cpu")


def pictures(folder: Path, *, splits: tuple[str, ...] = ("train", "val"), classes: int = 2) -> Path:
    """Write noise of 20 pixels, of which one channel is a little brighter by its class."""
    draw = np.random.default_rng(0)
    for split in splits:
        for number in range(classes):
            place = folder / split / f"class{number}"
            place.mkdir(parents=True)
            for i in range(16 if split == "train" else 8):
                values = draw.integers(0, 160, (20, 20, 3))
                values[..., number] += 12
                fromarray(values.astype(np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.train(
        Recipe(
            modality=Image.Config(data=str(data), size=16, local_size=8, patch=8, blur="none"),
            encoders={"image": TransformerEncoder.Config(dim=16, depth=2, heads=2)},
            objective=VICReg.Config(),
            evals={"near": KNN.Config(k=(3,)), "collapse": Collapse.Config()},
            batch_size=8,
            steps=2,
            seed=5,
            data=Data(workers=0),
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT at random weights, as Hugging Face saves it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub") / "vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=16,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(folder)
    said = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 18}, "do_center_crop": True,
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def of_place(place: Path | str, *words: str, names: tuple[str, ...] = ()) -> Any:
    return evaluate_place(str(place), names, read([*words]), CPU)


# --------------------------------------------------------------------------------------------- a run


def test_a_run_is_measured_by_other_protocols_with_options_of_their_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(RunFolder(run).read_evaluations())
    assert cli.main(["eval", str(run), "knn", "near", "--knn.k", "5", "7", "--knn.whiten", "true"]) == 0
    printed = capsys.readouterr().out
    for name in ("knn/top1 ", "knn/top1_k7 ", "near/top1 ", "  untrained encoder", "  raw", "  majority"):
        assert name in printed
    line = RunFolder(run).read_evaluations()[-1]
    assert len(RunFolder(run).read_evaluations()) == before + 1
    figure = line["figures"]["knn/top1"]
    assert {"value", "n", "low", "high"} <= figure.keys()
    assert (figure["protocol"], figure["version"], figure["selected_on"]) == ("knn", 1, "none")
    assert figure["options"]["k"] == [5, 7]
    assert figure["options"]["whiten"] is True
    assert figure["floors"].keys() == {"raw", "hog", "majority", "untrained"}
    assert line["figures"]["knn/top1_k7"]["floors"].keys() == {"untrained"}
    assert line["figures"]["near/top1"]["options"]["k"] == [3]
    assert line["figures"]["near/top1"]["digest"] != figure["digest"]
    assert line["data"]["train"]["count"] == 32
    assert line["data"]["val"]["count"] == 16
    assert line["seed"] == 5
    assert line["step"] == 2
    assert len(line["weights"]) == 64
    assert {"git", "versions", "host", "devices", "time", "seconds"} <= line.keys()


def test_the_untrained_encoder_is_that_of_step_0(run: Path) -> None:
    recorded = next(x for x in RunFolder(run).read_metrics() if x["kind"] == "eval" and x["step"] == 0)
    figures = evaluate(run, protocols=("near", "collapse"))
    assert figures["near/untrained/top1"] == pytest.approx(recorded["near/top1"])
    assert figures["collapse/untrained/std"] == pytest.approx(recorded["collapse/std"], rel=1e-4)
    assert figures["near/raw"] == pytest.approx(recorded["near/raw"])


def test_python_takes_the_same_and_a_run_alone_is_as_ever(run: Path) -> None:
    again = evaluate(run)
    assert {"near/top1", "near/raw", "collapse/std"} <= again.keys()
    assert not any("untrained" in name for name in again)
    assert evaluate(run, False)["near/top1"] == again["near/top1"]
    mine = evaluate(run, protocols={"mine": KNN.Config(k=(3,))})
    assert mine["mine/top1"] == again["near/top1"]
    other = evaluate(run, protocols=("knn",), options={"knn.k": "3"})
    assert other["knn/top1"] == again["near/top1"]


def test_a_run_on_other_data_is_fingerprinted_by_that(run: Path, tmp_path: Path) -> None:
    other = pictures(tmp_path, classes=3)
    evaluation = of_place(run, "--data", str(other), names=("knn",))
    assert evaluation.record["data"]["train"]["count"] == 48
    assert evaluation.record["of"]["modality"]["data"] == str(other)
    assert evaluation.metrics["knn/majority"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["knnn"], ["'knnn'", "did you mean knn"]),
        (["knn", "--knn.kk", "5"], ["--knn.kk", "did you mean --knn.k"]),
        (["knn", "--knn.k", "five"], ["--knn.k five", "whole number"]),
        (["knn", "--knn.k", "0"], ["error: --knn.k=(0,): want one or more counts"]),
        (["knn", "--knn.bank", "-1"], ["error: --knn."]),
        (["fine_tune", "--fine_tune.lr", "0"], ["error: --fine_tune.lr=(0.0,): want learning rates above 0"]),
        (["knn", "--knn", "5"], ["--knn 5", "--knn.OPTION"]),
        (["knn", "--linear_probe.l2", "1"], ["linear_probe is not among the protocols"]),
        (["knn", "--foo", "5"], ["--foo", "--knn.OPTION"]),
        (["knn", "--modality.size", "32"], ["--modality.size", "--data"]),
        (["knn", "--modality", "audio"], ["--modality audio"]),
        (["knn", "--knn.split", "train"], ["--knn.split train", "val or test"]),
        (["knn", "--data", "/nowhere"], ["/nowhere"]),
    ],
)
def test_wrong_words_end_in_a_line(
    run: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(run), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert all(part in error for part in parts), error


def test_splits_of_the_same_content_are_refused_and_some_copies_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = pictures(tmp_path / "same", splits=("train",))
    shutil.copytree(same / "train", same / "val")
    with pytest.raises(ValueError, match=r"val split holds nothing but training samples.*val/.*train/"):
        of_place(run, "--data", str(same), names=("knn",))
    of_place(run, "--data", str(same), names=("collapse",))  # which learns nothing
    some = pictures(tmp_path / "some")
    shutil.copy(some / "train" / "class0" / "3.png", some / "val" / "class0" / "copy.png")
    of_place(run, "--data", str(some), names=("knn",))
    assert "1 of 17 samples of the val split are copies of training samples" in capsys.readouterr().err


def test_data_of_one_class_gives_no_figure_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = pictures(tmp_path, classes=1)
    assert cli.main(["eval", str(run), "knn", "linear_probe", "--data", str(one)]) == 1
    captured = capsys.readouterr()
    assert "knn: the val split has no labels, nothing to measure" in captured.err
    assert captured.out.splitlines() == ["no evaluator gave a figure"]


# ------------------------------------------------------------------------------ weights without a run


def test_weights_are_measured_beside_random_ones_and_written(
    hugging_face: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "figures.json"
    words = ["eval", f"hf:{hugging_face}", "knn", "--knn.k", "3", "--data", str(data), "--out", str(out)]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "views of 16 pixels and their constants are said by preprocessor_config.json" in captured.err
    record = json.loads(out.read_text())
    figure = record["figures"]["knn/top1"]
    assert figure["floors"].keys() == {"raw", "hog", "majority", "untrained"}
    assert record["of"]["modality"]["mean"] == [0.5, 0.4, 0.3]
    assert record["of"]["encoders"]["image"]["kind"] == "transformer"
    assert (record["place"], record["seed"]) == (f"hf:{hugging_face}", 0)
    random = evaluate(hugging_face, protocols=("knn",), data=str(data), options={"seed": 1, "knn.k": 3})
    assert random["knn/top1"] == figure["value"]  # another seed is other random weights alone


def test_features_are_those_of_the_library_on_normalized_pictures(hugging_face: Path, data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    subject = subject_of(str(hugging_face), read(["--data", str(data)]), CPU)
    samples = subject.modality.dataset("val")
    some = [samples[i] for i in range(4)]
    views = clean_views(subject.modality, some, "image")
    with torch.no_grad():
        ours = subject.encoders.encode([views])[0].pooled
        net = transformers.ViTModel.from_pretrained(hugging_face).eval()
        theirs = net(pixel_values=views.x).last_hidden_state[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    plain = Image.Config(data=str(data), size=16, local_size=8, patch=8, clean_zoom=18 / 16).build()
    raw = clean_views(plain, some, "image").x
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    own_mean, own_std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    torch.testing.assert_close(views.x, (raw * std + mean - own_mean) / own_std, atol=1e-5, rtol=1e-5)
    assert subject.untrained is not None
    untrained = subject.untrained()
    assert not torch.allclose(untrained.encode([views])[0].pooled, ours)


def test_networks_that_no_layout_holds_keep_their_library(tmp_path: Path, data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path / "resnet")
    words = read(
        ["--data", str(data), "--modality.size", "16", "--modality.patch", "8", "--modality.local_size", "8"]
    )
    subject = subject_of(str(tmp_path / "resnet"), words, CPU)
    assert isinstance(subject.encoders["image"], HuggingFaceEncoder)
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=0)
    (tmp_path / "timm").mkdir()
    save_file(net.state_dict(), tmp_path / "timm" / "model.safetensors")
    said = {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.5, 0.5], "crop_pct": 0.5}}  # fmt: skip
    (tmp_path / "timm" / "config.json").write_text(json.dumps(said))
    words = read(["--data", str(data)])
    subject = subject_of(str(tmp_path / "timm"), words, CPU)
    encoder = subject.encoders["image"]
    assert isinstance(encoder, TimmEncoder)
    torch.testing.assert_close(encoder.net.conv1[0].weight, net.conv1[0].weight)
    cfg: Any = subject.modality.cfg
    assert (cfg.size, cfg.mean, cfg.clean_zoom) == (32, (0.1, 0.2, 0.3), 2.0)


def test_without_a_network_a_hub_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for place in ("hf:user/name", "timm:resnet10t"):
        assert cli.main(["eval", place, "knn"]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert error[0].startswith(f"error: {place}: it is not in the cache")


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("nowhere", "recipe.json"),
        ("nowhere.pth", "no weights at nowhere.pth"),
        ("nowhere.parquet", "no file is called"),
    ],
)
def test_places_that_are_not_there_are_named(
    place: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", place, "knn"]) == 2
    assert part in capsys.readouterr().err


def test_weights_of_an_unknown_network_ask_for_its_encoder(tmp_path: Path, data: Path) -> None:
    save_file({"conv.weight": torch.randn(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"--encoders\.image resnet"):
        subject_of(str(tmp_path / "w.safetensors"), read(["--data", str(data)]), CPU)
    with pytest.raises(ValueError, match="--modality fotos"):
        subject_of(str(tmp_path / "w.safetensors"), read(["--modality", "fotos"]), CPU)


# --------------------------------------------------------------------------------- a file of features


@pytest.mark.parametrize("ending", ["npy", "csv", "safetensors", "parquet"])
def test_a_file_of_features_gives_the_figures_of_its_encoder(run: Path, tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"features.{ending}"
    encode(load(run), out, say=lambda text: None)
    options = {"knn.k": 5, "linear_probe.l2": 0.01}
    ours = evaluate(out, protocols=("knn", "linear_probe", "collapse"), options=options)
    theirs = evaluate(run, protocols=("knn", "linear_probe", "collapse"), options=options)
    assert ours["knn/top1"] == theirs["knn/top1"]
    assert ours["linear_probe/top1"] == theirs["linear_probe/top1"]
    assert ours["collapse/std"] == pytest.approx(theirs["collapse/std"], rel=1e-4)
    assert not any("untrained" in name or "raw" in name for name in ours)


def write_features(folder: Path, values: np.ndarray, **columns: list[str]) -> Path:
    np.save(folder / "f.npy", values)
    lines = [",".join(columns), *(",".join(cells) for cells in zip(*columns.values(), strict=True))]
    (folder / "f.npy.rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "f.npy"


SPLITS = ["train"] * 20 + ["val"] * 10


def test_any_file_of_features_with_a_split_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [["cat", "dog"][i % 2] for i in range(30)]
    values = np.random.default_rng(0).normal(size=(30, 4)) + 9 * np.array([i % 2 for i in range(30)])[:, None]
    file = write_features(tmp_path, values, split=SPLITS, kind=kinds)
    assert evaluate(file, protocols=("knn",), label="kind")["knn/top1"] == 100.0
    assert cli.main(["eval", str(file), "knn", "patches", "--label", "kind", "--knn.k", "3"]) == 0
    assert "patches wants an encoder" in capsys.readouterr().err
    assert cli.main(["eval", str(file), "patches", "--label", "kind"]) == 1
    assert cli.main(["eval", str(file), "knn", "--label", "sort"]) == 2
    assert "--label sort" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "columns", "part"),
    [
        ((30, 4), {"split": ["train"] * 30}, "has no val split"),
        ((30, 4), {"label": ["1"] * 30}, "its column split is missing"),
        ((29, 4), {"split": SPLITS}, "29 rows, the table of its rows 30"),
        ((30, 2, 4), {"split": SPLITS}, "without --tokens"),
        ((30,), {"split": SPLITS}, "want numbers"),
    ],
)
def test_a_file_of_features_that_does_not_fit_is_named(
    tmp_path: Path, shape: tuple[int, ...], columns: dict[str, list[str]], part: str
) -> None:
    file = write_features(tmp_path, np.zeros(shape), **columns)
    with pytest.raises(ValueError, match=part):
        evaluate(file, protocols=("knn",))


def test_features_without_their_rows_or_of_equal_rows_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 4))
    np.save(tmp_path / "alone.npy", values)
    with pytest.raises(ValueError, match=r"alone\.npy\.rows\.csv is not beside it"):
        evaluate(tmp_path / "alone.npy", protocols=("knn",))
    both = ["train"] * 20 + ["val"] * 20
    file = write_features(
        tmp_path, np.tile(values, (2, 1)), split=both, label=[str(i % 2) for i in range(40)]
    )
    with pytest.raises(ValueError, match="nothing but training samples"):
        evaluate(file, protocols=("knn",))
    values[3] = math.nan
    file = write_features(tmp_path, values, split=["train"] * 10 + ["val"] * 10, label=["0", "1"] * 10)
    assert math.isnan(evaluate(file, protocols=("knn",))["knn/top1"])
