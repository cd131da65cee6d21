"""`multissl export`: what it writes, compares, says and refuses; every target on what it holds."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import multissl
from multissl import cli, files, registry
from multissl.config import to_dict
from multissl.contract.encoder import Encoder
from multissl.contract.modality import Modality
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.leave_one_out import LeaveOneOutEncoder
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.module import holding
from multissl.encoders.nature import NatureEncoder
from multissl.encoders.pytorch_tabular import PytorchTabularEncoder
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.exporting import card, compare, export
from multissl.exporting.base import Subject
from multissl.exporting.compare import Differs
from multissl.exporting.safetensors import without_places
from multissl.layers.positions import Position
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe
from multissl.run.folder import NotWritten, RunFolder
from multissl.run.model import Model, load
from tests.export import models

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load's own
E = models.ENCODER
TINY: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
}
ALL = E.replace(registers=2, ffn="swiglu", layerscale=0.1, pooling="mean")


def subject_of(model: Model, run: str = "none") -> Subject:
    (stream,) = model.modality.streams()
    return Subject(model=model, run=RunFolder(run), stream=stream, module=model.module())


def here(code: str, cases: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Run the lines of a target in this process, which is quicker."""
    made: dict[str, Any] = {}
    exec(code, made)
    return [torch.from_numpy(made["encode"](*(x.numpy() for x in inputs))) for inputs in cases]


def check(
    modality: Modality, encoder: Encoder.Config, target: str, place: Path, monkeypatch: pytest.MonkeyPatch,
    say: Callable[[str], object] = str,
) -> export.Exported:  # fmt: skip
    """Write, and compare in this process."""
    monkeypatch.setattr(compare, "features_of", here)
    subject, exporter = subject_of(models.model_of(modality, encoder)), export.exporter_of(target)
    exporter.check(subject)
    made = export.write(exporter, subject, place, say)
    assert made.difference < compare.TOLERANCE
    return made


NATURE = NatureEncoder.Config(dim=8, channels=(4, 4), kernels=(4, 3), strides=(2, 1))
QUICK: dict[str, tuple[Any, Encoder.Config]] = {
    "nature": (models.rl, NATURE),
    "perceptron": (models.image, MLPEncoder.Config(dims=(8,))),
    "positions": (models.image, E.replace(depth=1, position=Position(kind="none"))),
}
KINDS: dict[str, tuple[Any, Encoder.Config]] = {
    "transformer": (models.image, E),
    "rotary": (models.image, ALL.replace(position=Position(kind="rope"), conv_stem=True)),
    "sincos": (
        models.image,
        E.replace(position=Position(kind="sincos"), pooling="attention", class_token=False),
    ),
    "antialias": (models.image, E.replace(position=Position(antialias=True, offset=0.0))),
    "normalized last": (models.image, E.replace(norm_order="post")),
    "split norms": (models.image, E.replace(final_norm="split", key_bias=False, norm_pre=True)),
    "text with convolution": (models.text, E.replace(token_conv=3, pooling="mean")),
    "columns": (models.tabular, E),
    "standardized": (lambda: models.tabular("standard"), MLPEncoder.Config(dims=(8,))),
    "leave_one_out": (models.tabular, LeaveOneOutEncoder.Config(dims=(8, 8))),
    "pytorch_tabular": (models.tabular, PytorchTabularEncoder.Config(model="CategoryEmbedding")),
    "sound": (models.audio, E),
    "sound fitted": (lambda: models.audio(short="fit", trim=20.0, dynamics=40.0, center=True), E),
    "sound repeated": (lambda: models.audio(short="repeat"), E),
    "clips": (models.video, E),
    "rotary clips": (models.video, E.replace(position=Position(kind="rope"))),
    "resnet": (models.image, ResNetEncoder.Config(depth=10, width=8, stem="small")),
    "relative": (models.image, E.replace(position=Position(kind="relative"))),
    "text": (models.text, E.replace(pooling="last", causal=True)),
    "timm": (
        models.image,
        TimmEncoder.Config(name="vit_tiny_patch16_224", options={"patch_size": 4, "depth": 1}),
    ),
    "timm convolutions": (models.image, TimmEncoder.Config(name="resnet18")),
    "huggingface": (models.image, HuggingFaceEncoder.Config(config=TINY)),
    "module": (models.image, holding(torch.nn.Conv2d(3, 8, 4, 4), dim=8)),
    **QUICK,
}
"""Of every registered encoder one or more, tiny."""


def test_every_encoder_is_among_the_kinds() -> None:
    missing = {*registry.GROUPS["encoders"]} - {type(c).owner.__name__ for _, c in KINDS.values()}
    names = {registry.name_of(type(c).owner) for _, c in KINDS.values()}
    assert {*registry.GROUPS["encoders"]} <= names, missing


@pytest.mark.parametrize("kind", QUICK)
def test_it_becomes_a_program(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality, encoder = QUICK[kind]
    said: list[str] = []
    check(modality(), encoder, "torch.export", tmp_path / "made", monkeypatch, said.append)
    assert any("MLPEncoder reads the one size" in each for each in said) == (kind == "perceptron")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch.export", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_a_program(
    kind: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "onnx":
        pytest.importorskip("onnxruntime")
    (modality, encoder), said = KINDS[kind], list[str]()
    check(modality(), encoder, target, tmp_path / "made", monkeypatch, said.append)
    assert kind not in ("timm", "huggingface") or any("reads the one size" in each for each in said)


HUGGING: dict[str, Encoder.Config] = {
    "plain": E,
    "all": ALL,
    "its own": HuggingFaceEncoder.Config(config=TINY),
    "its own pooler": HuggingFaceEncoder.Config(config=TINY, pooling="pooler"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HUGGING)
def test_transformers_reads_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = check(models.image(), HUGGING[case], "hf", tmp_path / "made", monkeypatch)
    options = json.loads((made.path / "preprocessor_config.json").read_text())
    assert options["crop_size"] == {"height": 16, "width": 16}
    assert "library_name: transformers" in RunFolder(made.path).readme.read_text()


TIMM: dict[str, Encoder.Config] = {
    "plain": E,
    "all": ALL.replace(norm_eps=1e-4),
    "without class token": E.replace(class_token=False, pooling="mean"),
    "fixed positions": E.replace(position=Position(kind="sincos")),
    "resnet": ResNetEncoder.Config(depth=18),
    "its own": KINDS["timm"][1],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TIMM)
def test_timm_reads_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(models.image(), TIMM[case], "timm", tmp_path / "made", monkeypatch)


@pytest.mark.parametrize(
    ("target", "encoder", "words"),
    [
        ("hf", ResNetEncoder.Config(depth=10, width=8), "transformers has no model like ResNetEncoder"),
        ("hf", E.replace(position=Position(kind="rope")), "position.kind is not learned"),
        ("hf", E.replace(conv_stem=True), "conv_stem is on"),
        ("timm", E.replace(position=Position(kind="rope")), "position.kind is neither learned nor sincos"),
        ("timm", ResNetEncoder.Config(depth=10, width=8), "width 8"),
        ("timm", MLPEncoder.Config(dims=(8,)), "timm has no model like MLPEncoder"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_targets_that_work(
    target: str, encoder: Encoder.Config, words: str
) -> None:
    subject = subject_of(models.model_of(models.image(), encoder))
    with pytest.raises(ValueError, match=f"{words}.*want --to safetensors, onnx or torch.export"):
        export.exporter_of(target).check(subject)


def test_streams_that_are_no_pictures_are_refused_by_targets_for_pictures() -> None:
    with pytest.raises(ValueError, match="pictures alone, and text is none"):
        export.exporter_of("timm").check(subject_of(models.model_of(models.text())))


class Branches(torch.nn.Module):
    """A network that asks for its values, which no program can."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


def test_a_network_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    subject = subject_of(models.model_of(models.image(), holding(Branches(), dim=3)))
    with pytest.raises(ValueError, match=r"ModuleEncoder cannot be traced.*take --to safetensors"):
        export.write(export.exporter_of("torch.export"), subject, tmp_path / "made", str)
    assert not [*tmp_path.iterdir()]


def test_another_model_is_noticed_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(code: str, cases: list[tuple[Tensor, ...]]) -> list[Tensor]:
        return [features * 1.001 for features in here(code, cases)]

    subject, exporter = (
        subject_of(models.model_of(models.rl(), NATURE)),
        export.exporter_of("torch.export"),
    )
    monkeypatch.setattr(compare, "features_of", other)
    with pytest.raises(ValueError, match=r"features differ by 1.0e-03 .* nothing was kept"):
        export.write(exporter, subject, tmp_path / "made", str)
    assert not [*tmp_path.iterdir()]


def test_lines_that_fail_in_their_process_are_named() -> None:
    with pytest.raises(Differs, match=r"cannot be read .ValueError: no such form"):
        compare.features_of("raise ValueError('no such form')", [(torch.zeros(1),)])


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    subject = subject_of(models.model_of(models.rl(), NATURE))
    monkeypatch.setattr(files, "_write_tensors", full)
    with pytest.raises(NotWritten, match="No space"):
        export.write(export.exporter_of("safetensors"), subject, tmp_path / "made", str)
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on frames ships."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "frames")
    model = models.model_of(models.rl(), NATURE)
    recipe = Recipe(
        modality=model.modality.cfg, encoders={"rl": NATURE}, objective=VICReg.Config(), batch_size=8, steps=2
    )  # fmt: skip
    folder.write_recipe(to_dict(recipe))
    folder.write_model(model.encoders.state_dict(), model.modality.state())
    return folder.path


def test_onnxruntime_reads_a_run_in_a_process_without_torch(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "made")]) == 0
    said = capsys.readouterr().out
    code = said[said.index("import onnxruntime") :]
    frames = models.pictures(rows=2, side=28).astype(np.float32) / 255
    (features,) = here(code, [(torch.from_numpy(frames),)])
    torch.testing.assert_close(features, load(run).module()(torch.from_numpy(frames)), atol=1e-5, rtol=1e-4)
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"README.md", "input.json", "model.onnx"}
    text = RunFolder(tmp_path / "made").readme.read_text()
    assert code.strip() in text
    assert "license: other" in text
    assert "Not measured." in text  # the energy
    known = json.loads((tmp_path / "made" / "input.json").read_text())
    assert (known["stream"], known["width"]) == ("rl", 8)


def test_a_folder_of_safetensors_is_loaded_as_a_run_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "features_of", here)
    made = multissl.export(run, "safetensors", tmp_path / "made")
    frames = torch.from_numpy(models.pictures(rows=2, side=28))
    torch.testing.assert_close(load(made.path).module()(frames), load(run).module()(frames))
    assert made.difference == 0


def test_paths_of_the_machine_are_not_handed_on() -> None:
    options = {"data": "/home/me/cats", "members": [{"data": "~/dogs/*.tar"}], "blur": "none", "patch": 4}
    expected = {"data": "cats", "members": [{"data": "*.tar"}], "blur": "none", "patch": 4}
    assert without_places(options) == expected


def test_the_card_says_figures_with_their_intervals(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(run)
    subject = Subject(model=model, run=RunFolder(run), stream="rl", module=model.module())
    assert card.figures_of(subject) == "Not measured."
    assert "not written down" in card.data_of(subject)
    lines = [
        {"kind": "eval", "step": 2, "knn/top1": 50.0, "knn/raw": None, "alone": 3.0},
        {"kind": "estimates", "step": 2, "knn/top1": {"n": 1000, "low": 46.9, "high": 53.1}},
        {"kind": "eval", "step": 3, "knn/top1": 90.0},
    ]
    monkeypatch.setattr(RunFolder, "read_metrics", lambda self: lines)
    figures = card.figures_of(subject)
    assert "| knn/top1 | 50 (95 % interval 46.9 to 53.1, n = 1,000) |" in figures
    assert "| alone | 3 |" in figures
    again = {"step": 2, "figures": {"knn/top1": {"value": 51.0, "n": 9, "low": 20.0, "high": 80.0}}}
    monkeypatch.setattr(RunFolder, "read_evaluations", lambda self: [again])
    assert "| knn/top1 | 51 (95 % interval 20 to 80, n = 9) |" in card.figures_of(subject)


def test_the_card_says_the_licence_of_the_weights_it_started_from(run: Path) -> None:
    model = load(run)
    for start, licence in {
        "/x/mae_pretrain_vit_base.pth": "CC-BY-NC-4.0",
        "/x/mine.pth": "not known",
    }.items():
        model.recipe = model.recipe.replace(init=start)
        subject = Subject(model=model, run=RunFolder(run), stream="rl", module=model.module())
        assert licence in card.licence_of(subject)[1]


def test_the_card_says_the_energy_where_it_was_recorded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(run)
    subject = Subject(model=model, run=RunFolder(run), stream="rl", module=model.module())
    assert card.energy_of(subject) == "Not measured."
    line = {"kind": "train", "step": 1, card.JOULES: 3.6e6 / 16}  # of 2 steps of 8 samples: 1 x 1.1 x 0.385
    monkeypatch.setattr(RunFolder, "read_metrics", lambda self: [line])
    assert card.energy_of(subject).split("kWh")[0] + card.energy_of(subject)[-8:] == "About 1 0.42 kg."


REFUSED: dict[str, tuple[list[str], str]] = {
    "no run": (["NOTHING", "--to", "onnx", "--out", "OUT"], "give the folder of a run"),
    "no target": (["RUN", "--out", "OUT"], "export wants a target and a folder"),
    "another target": (["RUN", "--to", "onxn", "--out", "OUT"], "did you mean onnx?"),
    "torch": (["RUN", "--to", "torch", "--out", "OUT"], "did you mean torch.export?"),
    "a stream": (["RUN", "--to", "onnx", "--out", "OUT", "--stream", "ri"], "known: rl"),
    "a place": (["RUN", "--to", "onnx", "--out", "RUN"], "is there already"),
    "a name": (["RUN", "--to", "onnx", "--out", "OUT", "--push", "me/cats"], "want hf:USER/NAME"),
    "a step": (["RUN@77", "--to", "onnx", "--out", "OUT"], "none of step 77"),
    "no picture": (["RUN", "--to", "hf", "--out", "OUT"], "pictures alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_end_in_a_line(
    case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, reason = REFUSED[case]
    given = [w.replace("RUN", str(run)).replace("OUT", str(tmp_path / "made")) for w in words]
    assert cli.main(["export", *given]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said
    assert len(said.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_a_push_without_network_or_token_is_refused_soon(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set; leave --push out"):
        multissl.export(run, "onnx", tmp_path / "made", push_to="hf:me/cats")
    assert time.monotonic() - began < 5
    monkeypatch.setattr("multissl.exporting.push.check_reachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="there is no token; log in"):
        multissl.export(run, "onnx", tmp_path / "made", push_to="hf:me/cats")
    assert not [*tmp_path.iterdir()]


def test_a_push_uploads_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(compare, "features_of", here)
    monkeypatch.setattr("multissl.exporting.push.check_reachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.create_repo", lambda name, **options: None)
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **options: calls.append(options))
    made = multissl.export(run, "safetensors", tmp_path / "made", push_to="hf:me/cats")
    assert made.address == "https://huggingface.co/me/cats"
    assert calls == [{"repo_id": "me/cats", "folder_path": str(tmp_path / "made"), "repo_type": "model"}]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch.export", "safetensors"])
def test_a_fresh_process_reads_a_run(target: str, run: Path, tmp_path: Path) -> None:
    made = multissl.export(run, target, tmp_path / "made")
    assert made.difference < compare.TOLERANCE
    code = f"{made.code}\nimport numpy as np\nprint(encode(np.zeros((2, 3, 28, 28), np.float32)).shape)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "(2, 8)", ended.stderr
