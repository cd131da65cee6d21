"""Safetensors files of weights, read and written; a pickle is never opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multissl.files import make_folder, replace_tensors
from multissl.parallel.ranks import is_main
from multissl.parallel.sharding import full
from multissl.run.folder import RunFolder
from multissl.weights.unwrapping import State

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")


def weights_file(path: str | Path) -> Path:
    """Return the file of weights that a path names: itself, or the encoder of a run's folder."""
    path = Path(path)
    return RunFolder(path).encoder if path.is_dir() else path


def read_weights(path: str | Path) -> State:
    """Return the tensors of a safetensors file or of a run's folder, on the CPU."""
    path = weights_file(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: name an existing .safetensors file")
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in PICKLES or start in (b"PK", b"\x80\x02"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is opened, and is not read: convert it with "
            "torch.load(path, weights_only=True) and safetensors.torch.save_file, and name the new file"
        )
    return read_safetensors(path)


def read_safetensors(path: Path) -> State:
    """Return the tensors of a safetensors file, whatever it is called, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; an interrupted write leaves an older file as it was.

    Every rank calls it, as sharded tensors are put together; the first one writes.
    """
    whole = {name: full(t).detach().cpu().contiguous() for name, t in state.items()}
    if is_main():
        path = Path(path)
        make_folder(path.parent)
        replace_tensors(path, whole, {"format": "pt"})
