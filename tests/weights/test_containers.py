"""Files and folders of weights: opened as tensors alone, and the network inside them is found and said."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
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
from multissl.weights.layouts.huggingface_dinov2 import to_huggingface
from multissl.weights.loading import derive_configs, load_state, load_weights
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


# files of others


def cyclic() -> dict[str, Any]:
    tree: dict[str, Any] = {"epoch": 3}
    tree["model"] = tree
    return tree


def test_a_dictionary_that_holds_itself_ends_in_a_line(tmp_path: Path) -> None:
    torch.save(cyclic(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"no tensors within 10 dictionaries, one inside the other: model / model"
    ):
        load_weights(Encoders({"image": encoder()}), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_an_index_is_refused(name: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for file in (index, tmp_path / "pytorch_model.bin.index.json"):
        file.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match="an index, where files of tensors belong"):
        open_file(index)


def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("x" * 300, "a\0b"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(ValueError, match="which is not beside it"):
            open_file(index)
        with pytest.raises(ValueError, match="no weights at"):
            open_file(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"w\.pth is empty: fetch or copy it again"),
        (b"\x00", "is no file of weights that is known: want .safetensors"),
        (b"{}", "is no file of weights that is known"),
        (
            pickle.dumps({"w": 1}, protocol=0),
            "is no file of weights that is known: .* as torch.save writes them",
        ),
        (pickle.dumps({"w": 1}, protocol=1), "is no file of weights that is known"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "holds nothing, no tensors by name"),
    ],
)
def test_what_is_no_file_of_weights_is_called_that(content: bytes, words: str, tmp_path: Path) -> None:
    for name in ("w.pth", "w.ckpt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words.replace("pth", name[2:])):
            load_weights(Encoders({"image": encoder()}), tmp_path / name)


class Harmless:
    """A class that no reader of tensors knows, with a name to be said."""


def test_the_class_that_a_pickle_asks_for_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "extra": Harmless()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"\(tests\.weights\.test_containers\.Harmless\)"):
        open_file(tmp_path / "w.pth")


def test_a_config_of_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        open_file(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("layer_norm_eps", "two", "a number between 0 and 1"),
        ("layer_norm_eps", 0, "a number between 0 and 1"),
        ("hidden_act", 2.5, "a text"),
        ("num_attention_heads", -3, "a whole number, 1 or more"),
        ("num_attention_heads", [3], "a whole number, 1 or more"),
        ("num_attention_heads", True, "a whole number, 1 or more"),
        ("image_size", "x", "a whole number, 1 or more, or two of them"),
        ("image_size", [16, 0], "a whole number, 1 or more, or two of them"),
        ("patch_size", 2.5, "a whole number, 1 or more, or two of them"),
        ("vision_config", {"patch_size": -3}, "a whole number, 1 or more, or two of them"),
    ],
)
def test_a_field_of_a_config_that_makes_no_sense_is_named(
    field: str, value: Any, expected: str, tmp_path: Path
) -> None:
    torch.save(to_huggingface(encoder()), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3, field: value}))
    inner = "vision_config.patch_size=-3" if isinstance(value, dict) else f"{field}={value!r}"
    for load in (
        lambda: derive_configs({"image": TransformerEncoder.Config()}, tmp_path),
        lambda: load_weights(Encoders({"image": encoder()}), tmp_path),
    ):
        with pytest.raises(ValueError, match=f"config.json has {re.escape(inner)}: want {expected}") as error:
            load()
        assert str(tmp_path) in str(error.value)


# tensors of others


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("pos_embed", torch.tensor(1.0), r"pos_embed is of shape \(\): want 2 or 3 axes"),
        ("pos_embed", torch.zeros(1, 0, 24), r"pos_embed is of shape \(1, 0, 24\)"),
        ("pos_embed", torch.zeros(1, 17, 23), r"pos_embed is of shape .* beside patches of 24 channels"),
        ("register_tokens", torch.zeros(24), r"register_tokens is of shape \(24,\): want 3 axes"),
        (
            "blocks.0.norm1.weight",
            torch.full((24,), torch.nan),
            "norm1.weight holds values that are not finite",
        ),
        (
            "norm.weight",
            torch.ones(24, dtype=torch.int8),
            "norm.weight is of int8 where the encoder has real",
        ),
        ("norm.weight", torch.ones(24, dtype=torch.complex64), "norm.weight is of complex64"),
        ("norm.weight", torch.ones(24).to_sparse(), "norm.weight is sparse: save t.to_dense"),
        ("norm.weight", torch.ones(24, device="meta"), "norm.weight is on the meta device"),
        ("blocks.1.mlp.fc1.weight", torch.zeros(96, 12), r"is \(96, 12\) where the encoder has \(96, 24\)"),
    ],
)
def test_tensors_that_fit_nothing_are_named(name: str, tensor: Tensor, words: str, tmp_path: Path) -> None:
    smooth = Position(offset=0.0, antialias=True)
    for layout, ours in (("", encoder()), ("moco_v3:", encoder(position=smooth))):
        place = f"{layout[:4] or 'plain'}.pth"
        torch.save(to_dinov2(encoder()) | {name: tensor}, tmp_path / place)
        with pytest.raises(ValueError, match=words):
            load_weights(Encoders({"image": ours}), f"{layout}{tmp_path / place}")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_and_of_one_storage_load(kind: torch.dtype, tmp_path: Path) -> None:
    theirs = encoder()
    storage = torch.cat([t.flatten() for t in to_dinov2(theirs).values()]).to(kind)
    state, place = {}, 0
    for name, tensor in to_dinov2(theirs).items():
        state[name] = storage[place : place + tensor.numel()].view(tensor.shape)
        place += tensor.numel()
    torch.save(state | {3: "three"}, tmp_path / "w.pth")
    ours = encoder(1, position=Position(offset=0.1))
    load_weights(Encoders({"image": ours}), tmp_path / "w.pth")
    for name, tensor in to_dinov2(ours).items():
        assert torch.equal(tensor, state[name].float()), name
