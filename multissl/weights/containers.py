"""Files and folders that weights come in, opened as tensors alone: no code of a file ever runs.

`.safetensors` hold nothing else. What `torch.save` wrote (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`) is a pickle: it
is read by torch's restricted reader (`weights_only`), which makes tensors, numbers, texts and plain containers, and
refuses whatever else a file asks for. Of several files an index (`*.index.json`) names them all. A folder is one of our
runs, or holds a file under a usual name, with Hugging Face's or timm's `config.json` beside it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multissl import registry
from multissl.contract.plans import StreamSpec
from multissl.plain_data import parse_json
from multissl.run.folder import RunFolder
from multissl.weights.files import read_safetensors
from multissl.weights.model_config import OF_ALL, checked
from multissl.weights.unwrapping import State

INDEX, PREPROCESSOR = ".index.json", "preprocessor_config.json"
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


class Training(NamedTuple):
    """What a run trained besides its encoders, and what these read."""

    heads: Mapping[str, State]
    """Tensors of the heads behind the encoders, by what the objective calls these."""
    streams: Mapping[str, StreamSpec]
    objective: str
    """The name of the objective that has them."""


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
    training: Training | None = None
    """What stands beside the encoders in a run's checkpoint, where it was asked for."""


def split_layout(text: str) -> tuple[str, str]:
    """Return the layout that stands before a place, as in `dino:FILE`, "" without one, and the place."""
    first, colon, rest = text.partition(":")
    return (first, rest) if colon and first in registry.names("layouts") else ("", text)


def open_file(text: str | Path) -> Source:
    """Return what a file or folder holds; a layout's name and a colon may stand before it."""
    layout, place = split_layout(str(text))
    path = Path(place)
    config: Mapping[str, Any] = {}
    if os.path.isdir(path):
        path, config = open_folder(path)
    elif path.name in FILES:
        config = read_config(path.parent / "config.json")
    if not os.path.isfile(path):  # unlike the method of a path False too for a name that no file can have
        raise ValueError(f"no weights at {path}: name a file ({KINDS}), a run's folder or a model's folder")
    contents = read_tensors(path)
    if not contents:
        raise ValueError(f"{path} holds nothing, no tensors by name")
    return Source(contents, path, config, layout)


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
    return checked(read_mapping(path), OF_ALL) if path.is_file() else {}


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds."""
    values = parse_json(read_bytes(path), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: want a mapping")
    return values


def read_bytes(path: Path, count: int = -1) -> bytes:
    """Return the beginning of a file, or all of it."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Return what a file of weights holds, by its content; names that are no texts become such."""
    if path.name.endswith(INDEX):
        return read_shards(path)
    start = read_bytes(path, 9)
    if not start:
        raise ValueError(f"{path} is empty: fetch or copy it again")
    if path.suffix == ".npz":
        raise ValueError(
            f"{path} holds Flax arrays, which are not read: convert it with timm, and name the new file"
        )
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return {str(name): value for name, value in read_pickle(path).items()}
    if path.suffix != ".safetensors" and start[8:] != b"{":
        raise ValueError(
            f"{path} is no file of weights that is known: want {KINDS}, of safetensors or as torch.save writes them"
        )
    return read_safetensors(path)


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Return what `torch.save` wrote: tensors, numbers, texts and containers; what asks for code is refused."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training, a bag of values
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is a pickle that asks for more than tensors, and is not read, as that can run any code "
            f"({asked_for(error)}): if you trust whoever made it, save its tensors with safetensors.torch.save_file"
        ) from None
    except Exception as error:  # torch raises almost anything of a file that is cut short or of another kind
        reason = " ".join(str(error).split())
        if "TorchScript" in reason or "torch.jit" in reason:
            reason = "it is a TorchScript archive, that is a program; save torch.jit.load(...).state_dict() instead"
        raise ValueError(f"{path} cannot be read as weights ({reason[:200]})") from None
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds a {type(contents).__name__}, no tensors by name")
    return contents


def asked_for(error: pickle.UnpicklingError) -> str:
    """Return what a pickle asks for, of torch's page about it: the name of the class or function where it has one."""
    said = " ".join(str(error).split())
    name = re.search(r"GLOBAL (\S+)", said) or re.search(r"WeightsUnpickler error: (.{1,160})", said)
    return name[1] if name else said[:160]


def files_of(index: Path) -> dict[str, str]:
    """Return the file beside an index that each tensor lies in."""
    names = read_mapping(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(n, str) and n and Path(n).name == n for n in names.values()
    ):
        raise ValueError(f"{index}: want weight_map, the file beside it that each tensor lies in")
    for name in names.values():
        if name.endswith(INDEX):
            raise ValueError(f"{index} names {name[:100]}, an index, where files of tensors belong")
    return names


def read_shards(index: Path) -> Mapping[str, Any]:
    """Return the tensors of all files that an index names."""
    names, tensors = files_of(index), dict[str, Any]()
    for name in dict.fromkeys(names.values()):
        if not os.path.isfile(index.parent / name):
            raise ValueError(
                f"{index} names {name[:100]}, which is not beside it: fetch all files of the model"
            )
        tensors |= read_tensors(index.parent / name)
    if lacking := sorted(names.keys() - tensors.keys()):
        raise ValueError(f"{index}: its files lack {lacking[0]} and {len(lacking) - 1} more")
    return tensors
