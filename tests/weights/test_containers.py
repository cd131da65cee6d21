"""Files and folders of weights: opened as tensors alone, and the network inside them is found and said."""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position
from multissl.weights.containers import open_file
from multissl.weights.layouts.dinov2 import to_dinov2
from multissl.weights.loading import load_state, load_weights
from multissl.weights.unwrapping import strip, unwrap

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), num_tokens=16, patch=(4, 4))


def encoder(seed: int = 0, **options: Any) -> TransformerEncoder:
    torch.manual_seed(seed)
    given = {"dim": 24, "depth": 2, "heads": 3, "layerscale": 0.5} | options
    made = TransformerEncoder(TransformerEncoder.Config(**given), SPEC).eval()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# what may be opened


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w.ckpt", "w.pth.tar", "w"])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_from_whatever_holds_them(tmp_path: Path, name: str, zipped: bool) -> None:
    theirs, path = encoder(), tmp_path / name
    if name.endswith("safetensors"):
        save_file(to_dinov2(theirs), path)
    else:
        torch.save(to_dinov2(theirs), path, _use_new_zipfile_serialization=zipped)
    ours = encoder(1)
    load_weights(Encoders({"image": ours}), path)
    assert same(ours, theirs)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for zipped in (True, False):
        path = tmp_path / "w.pth"
        torch.save({"w": torch.zeros(1), "extra": Trap()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="asks for more than tensors, and is not read") as error:
            open_file(path)
        assert "\n" not in str(error.value)
    torch.save(nn.Linear(2, 2), path)  # a whole module is code as well
    with pytest.raises(ValueError, match="asks for more than tensors"):
        open_file(path)
    assert not (tmp_path / "sprung").exists()


def test_options_of_a_training_may_lie_beside_the_tensors(tmp_path: Path) -> None:
    theirs = encoder()
    options = argparse.Namespace(arch="vit_small", patch_size=16)
    torch.save({"teacher": to_dinov2(theirs), "args": options, "epoch": 3}, tmp_path / "checkpoint.pth")
    ours = encoder(1)
    load_weights(Encoders({"image": ours}), tmp_path / "checkpoint.pth")
    assert same(ours, theirs)


def test_programs_and_broken_files_are_refused_in_a_line(tmp_path: Path) -> None:
    program = tmp_path / "program.pt"
    torch.jit.script(nn.Linear(2, 2)).save(program)
    with pytest.raises(ValueError, match="TorchScript archive, that is a program"):
        open_file(program)
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, buffer)
    (tmp_path / "cut.pth").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as weights"):
        open_file(tmp_path / "cut.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("words.txt", "no weights")
    with pytest.raises(ValueError, match=r"other\.pth cannot be read as weights"):
        open_file(tmp_path / "other.pth")
    (tmp_path / "words.pth").write_text("no weights here, only words")
    with pytest.raises(ValueError, match="is no file of weights that is known"):
        open_file(tmp_path / "words.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, no tensors by name"):
        open_file(tmp_path / "list.pth")
    (tmp_path / "flax.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="Flax arrays, which are not read"):
        open_file(tmp_path / "flax.npz")


# shards and folders


def shards(folder: Path, state: dict[str, Tensor], stem: str = "model", suffix: str = "safetensors") -> Path:
    """A model in two files with an index."""
    names, places = sorted(state), {}
    for i, some in enumerate((names[::2], names[1::2])):
        file = f"{stem}-{i + 1:05d}-of-00002.{suffix}"
        part = {n: state[n].contiguous() for n in some}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        places |= dict.fromkeys(some, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_a_model_in_several_files_is_put_together(tmp_path: Path, stem: str, suffix: str) -> None:
    theirs, ours = encoder(), encoder(1)
    index = shards(tmp_path, to_dinov2(theirs), stem, suffix)
    for place in (index, tmp_path):
        ours = encoder(1)
        load_weights(Encoders({"image": ours}), place)
        assert same(ours, theirs)
    (tmp_path / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(ValueError, match="which is not beside it: fetch all files of the model"):
        open_file(index)


def test_an_index_names_files_beside_it_alone(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for content in ({"weight_map": {"w": "../secret.safetensors"}}, {"weight_map": 3}, {}):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="want weight_map"):
            open_file(index)
    save_file({"v": torch.zeros(1)}, tmp_path / "a.safetensors")
    index.write_text(json.dumps({"weight_map": {"v": "a.safetensors", "w": "a.safetensors"}}))
    with pytest.raises(ValueError, match="its files lack w"):
        open_file(index)


def test_a_folder_is_read_with_what_its_config_says(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "layer_norm_eps": 1e-12}')
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert open_file(place).config["layer_norm_eps"] == 1e-12
    (tmp_path / "encoder.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert open_file(tmp_path).config == {}  # one of our runs
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no weights in .*pytorch_model"):
        open_file(tmp_path / "empty")
    with pytest.raises(ValueError, match="no weights at"):
        open_file(tmp_path / "absent.pth")


def test_a_layout_may_stand_before_the_place(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert open_file(f"dino:{tmp_path / 'w.safetensors'}").layout == "dino"
    assert open_file(tmp_path / "w.safetensors").layout == ""


# the network inside


@pytest.mark.parametrize(
    ("keys", "prefix", "others"),
    [
        (("teacher",), "module.backbone.", ["module.head.mlp.0.weight"]),
        (("student",), "module.", []),
        (("target_encoder",), "module.backbone.", []),
        (
            ("state_dict",),
            "module.base_encoder.",
            ["module.momentum_encoder.norm.weight", "module.predictor.0.weight"],
        ),
        (("model", "state_dict"), "_orig_mod.", []),
        ((), "encoder.", []),
        ((), "backbone.", ["projector.0.weight"]),
        ((), "teacher.backbone.", ["teacher.dino_head.w", "student.backbone.norm.weight"]),
    ],
)
def test_wrappers_and_other_networks_come_off(keys: tuple[str, ...], prefix: str, others: list[str]) -> None:
    state: dict[str, Any] = {f"{prefix}{n}": torch.ones(1) for n in ("norm.weight", "blocks.0.norm1.weight")}
    tree: dict[str, Any] = state | {name: torch.zeros(1) for name in others}
    for key in reversed(keys):
        tree = {key: tree, "epoch": 1}
    network = unwrap(tree)
    assert network.state.keys() == {"norm.weight", "blocks.0.norm1.weight"}
    assert all(t.all() for t in network.state.values())
    assert len(network.others) == len(others)
    assert all(key in network.source for key in keys)


def test_the_averaged_network_is_preferred() -> None:
    for better, worse in (("teacher", "student"), ("target_encoder", "encoder"), ("model_ema", "model")):
        network = unwrap({worse: {"w": torch.zeros(1)}, better: {"w": torch.ones(1)}})
        assert network.state["w"].all()
        assert network.source == better


def test_what_holds_no_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensors and none of teacher"):
        unwrap({"epoch": 3, "best": 0.5})


def test_names_that_look_like_a_wrapper_inside_stay() -> None:
    assert strip({"blocks.0.encoder.weight": torch.zeros(1)}).state.keys() == {"blocks.0.encoder.weight"}


def test_what_was_taken_and_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "multissl.weights.loading.log.warning", lambda text, *values: lines.append(text % values)
    )
    theirs = encoder(position=Position(offset=0.1))
    state = {f"module.backbone.{n}": t for n, t in to_dinov2(theirs).items()}
    state["module.dino_head.mlp.0.weight"] = torch.zeros(2)
    load_state(encoder(1), {"teacher": state, "student": state}, None, "image")
    assert lines == [
        "weights of image are read as dinov2 (DINOv2), of teacher / backbone",
        "left out are 1 tensors that are no part of the encoder: dino_head.mlp",
        "weights of this kind (dinov2) were released under Apache-2.0; read what came with them",
    ]
