"""Weights and options under our own names: a folder that `multissl.load` opens, and `--init` starts from.

What a run needs to encode, and nothing else: recipe.json, modality.json, encoder.safetensors, and copies of the code
that its recipe names. Paths of this machine are cut to their last part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from multissl.config import to_dict
from multissl.exporting.base import Exporter, Subject
from multissl.run.folder import RunFolder

CODE = """\
import torch

import multissl

module = multissl.load({path!r}{trust}).module({stream!r})


def encode(*arrays):
    with torch.no_grad():
        return module(*(torch.from_numpy(array) for array in arrays)).numpy()
"""
PATHS = ("modality", "init")
"""Options of a recipe that name places of the machine that it was trained on, and that nothing needs to encode."""


class Safetensors(Exporter):
    """A folder that is loaded as a run is."""

    name = "safetensors"
    reads = "multissl.load"

    def check(self, subject: Subject) -> None:
        """Accept everything."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Write what `load` reads."""
        options = to_dict(subject.model.recipe)
        target = RunFolder(folder)
        target.write_recipe(options | {name: without_places(options[name]) for name in PATHS})
        weights: Mapping[str, Tensor] = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in subject.model.encoders.state_dict().items()
        }
        target.write_model(weights, subject.model.modality.state())
        copies = sorted(subject.run.code.rglob("*.py")) if subject.run.code.is_dir() else []
        target.write_code({str(path.relative_to(subject.run.code)): path.read_bytes() for path in copies})

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that load it; code of a recipe runs only where it is trusted."""
        trust = ", trust=True" if subject.run.code.is_dir() else ""
        return CODE.format(path=str(folder), stream=subject.stream, trust=trust)


def without_places(value: Any) -> Any:
    """Return options in which a path from the root or the home is its last part alone."""
    if isinstance(value, str):
        return PurePath(value).name if value.startswith(("/", "~")) else value
    if isinstance(value, Mapping):
        return {name: without_places(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return value
