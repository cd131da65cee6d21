"""Files and folders that weights come in, opened as tensors alone: no code of a file ever runs.

`.safetensors` hold nothing else. What `torch.save` wrote (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`) is a pickle: it
is read by torch's restricted reader (`weights_only`), which makes tensors, numbers, texts and plain containers, and
refuses whatever else a file asks for. Of several files an index (`*.index.json`) names them all. A folder is one of our
runs, or holds a file under a usual name, with Hugging Face's or timm's `config.json` beside it.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multissl import registry
from multissl.plain_data import parse_json
from multissl.run.folder import RunFolder
from multissl.weights.files import read_weights

INDEX = ".index.json"
FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_pytorch_model.bin",
)
"""Usual names of weights in a folder of Hugging Face or timm, safe ones first."""
KINDS = ".safetensors, .pth, .pt, .bin, .ckpt, .pth.tar"


class Source(NamedTuple):
    """What a place of weights holds."""

    contents: Mapping[str, Any]
    """Tensors by name, or dictionaries of a training file that hold them."""
    path: Path | None = None
    """The file, of which a run's recipe lies beside; None where a library brought the tensors."""
    config: Mapping[str, Any] = {}
    """What `config.json` beside it says, {} without one."""
    layout: str = ""
    """The layout that was asked for, "" where contents tell."""


def split_layout(text: str) -> tuple[str, str]:
    """Return the layout that stands before a place, as in `dino:FILE`, "" without one, and the place."""
    first, colon, rest = text.partition(":")
    return (first, rest) if colon and first in registry.names("layouts") else ("", text)


def open_file(text: str | Path) -> Source:
    """Return what a file or folder holds; a layout's name and a colon may stand before it."""
    layout, place = split_layout(str(text))
    path = Path(place)
    config: Mapping[str, Any] = {}
    if path.is_dir():
        path, config = open_folder(path)
    elif path.name in FILES:
        config = read_config(path.parent / "config.json")
    if not path.is_file():
        raise ValueError(f"no weights at {path}: name a file ({KINDS}), a run's folder or a model's folder")
    return Source(read_tensors(path), path, config, layout)


def open_folder(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the file of weights in a folder, and what `config.json` says where it is not one of our runs."""
    run = RunFolder(folder)
    if run.encoder.is_file():
        return run.encoder, {}
    for name in FILES:
        if (folder / name).is_file():
            return folder / name, read_config(folder / "config.json")
    raise ValueError(f"no weights in {folder}: want a run's {run.encoder.name}, or one of {', '.join(FILES)}")


def read_config(path: Path) -> Mapping[str, Any]:
    """Return the values of a `config.json`, {} where there is none."""
    if not path.is_file():
        return {}
    values = parse_json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: want a mapping")
    return values


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Return what a file of weights holds."""
    if path.name.endswith(INDEX):
        return read_shards(path)
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix == ".npz":
        raise ValueError(
            f"{path} holds Flax arrays, which are not read: convert it with timm, and name the new file"
        )
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return read_pickle(path)
    if path.suffix != ".safetensors" and not 0 < int.from_bytes(start, "little") < 1 << 28:
        raise ValueError(f"{path} is no file of weights that is known: want {KINDS}")
    return read_weights(path)


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Return what `torch.save` wrote: tensors, numbers, texts and containers; what asks for code is refused."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training, a bag of values
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = " ".join(str(error).split())
        raise ValueError(
            f"{path} is a pickle that asks for more than tensors, and is not read, as that can run any code "
            f"({asked[:160]}): if you trust whoever made it, save its tensors with safetensors.torch.save_file"
        ) from None
    except Exception as error:  # torch raises almost anything of a file that is cut short or of another kind
        reason = " ".join(str(error).split())
        if "TorchScript" in reason or "torch.jit" in reason:
            reason = "it is a TorchScript archive, that is a program; save torch.jit.load(...).state_dict() instead"
        raise ValueError(f"{path} cannot be read as weights ({reason[:200]})") from None
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds a {type(contents).__name__}, no tensors by name")
    return contents


def read_shards(index: Path) -> Mapping[str, Any]:
    """Return the tensors of all files that an index names, which lie beside it."""
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(n, str) and Path(n).name == n for n in names.values()
    ):
        raise ValueError(f"{index}: want weight_map, the file beside it that each tensor lies in")
    tensors: dict[str, Any] = {}
    for name in dict.fromkeys(names.values()):
        if not (index.parent / name).is_file():
            raise ValueError(f"{index} names {name}, which is not beside it: fetch all files of the model")
        tensors |= read_tensors(index.parent / name)
    if lacking := sorted(names.keys() - tensors.keys()):
        raise ValueError(f"{index}: its files lack {lacking[0]} and {len(lacking) - 1} more")
    return tensors
