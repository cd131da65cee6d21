"""Checkpoints of the format before the present one, which were pickled: read once, where the user trusts them.

torch.distributed.checkpoint wrote them: a pickled outline says which bytes of which file each entry is, and an entry is
what `torch.save` made of it. Even so nothing of them runs code: the outline is read into stand-ins for its few classes,
entries by torch's restricted reader (`weights_only`), and whatever else they ask for is refused.
A checkpoint is rewritten in its own folder: the files of the present format come beside the old ones, then `meta.json`
takes the place of the old one, by which the checkpoint changes its format in one rename, then the old files go, the
outline last. Whoever starts after a process that died in between goes on from there.
State: none.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multissl.engine.checkpoint import FORMAT, GROUPS, LEARNER, META, STATES, find, meta_of, step_of
from multissl.files import Damaged, remove, replace_text
from multissl.parallel.state import save_whole

PICKLED = 2
"""The format that is read here."""
OUTLINE = ".metadata"
ENTRIES = re.compile(r"__\d+_\d+\.distcp")
Place = tuple[str | int, ...]
"""Where an entry lies in the nested state that was written."""


class _Record:
    """A stand-in for an object of the outline: what it was built with, and its fields."""

    fields: Any = None

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, fields: Any) -> None:
        self.fields = fields


_METADATA = "torch.distributed.checkpoint.metadata."
_KNOWN: dict[str, Any] = {
    **dict.fromkeys(
        (
            f"{_METADATA}Metadata", f"{_METADATA}TensorStorageMetadata", f"{_METADATA}BytesStorageMetadata",
            f"{_METADATA}ChunkStorageMetadata", f"{_METADATA}TensorProperties", f"{_METADATA}_MEM_FORMAT_ENCODING",
            f"{_METADATA}MetadataIndex", f"{_METADATA}StorageMeta",
            "torch.distributed.checkpoint.filesystem._StorageInfo", "pathlib.PosixPath", "pathlib._local.PosixPath",
        ),
        _Record,
    ),
    "torch.Size": tuple,
    "torch.serialization._get_layout": str,
    **{str(dtype): str(dtype) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}  # fmt: skip
"""All that an outline names, and what stands in for it."""


class _Outline(pickle.Unpickler):
    """Reads an outline; nothing is imported, and of names none but those above mean anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name."""
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint names")
        return _KNOWN[f"{module}.{name}"]


def pending(folder: Path) -> list[Path]:
    """Return the checkpoints, oldest first, that are pickled or were left while they were rewritten."""
    return [p for p in find(folder) if (p / OUTLINE).is_file() and _format(p) in (PICKLED, FORMAT)]


def is_pickled(folder: Path) -> bool:
    """Return whether a checkpoint is of the old format, whatever lies beside it."""
    return _format(folder) == PICKLED


def _format(folder: Path) -> Any:
    """Return the format that a checkpoint names, None where it names none."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except (ValueError, RecursionError):
        return None
    return meta.get("format") if isinstance(meta, dict) else None


def rewrite(folder: Path, target: Path, modality: Mapping[str, Any]) -> None:
    """Write a pickled checkpoint in the present format into `target`, which may be its own folder: then it goes.

    `modality` is what the modality was fitted to, which the old format did not hold. Raises a `Damaged` where the
    checkpoint is none, and an OSError where the target cannot be written to; either leaves it as it was.
    """
    if is_pickled(folder):
        state = read(folder)
        files = save_whole(state | {"modality": dict(modality)}, target)
        replace_text(target / META, json.dumps(meta_of(step_of(folder), files), indent=1))
    if target == folder:
        for file in [*(p for p in folder.iterdir() if ENTRIES.fullmatch(p.name)), folder / OUTLINE]:
            remove(file)


def read(folder: Path) -> dict[str, Any]:
    """Return the state in a pickled checkpoint, under the names of the present format, on the CPU.

    Raises a `Damaged` where it is not whole, or holds what no checkpoint holds.
    """
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta["step"] != step_of(folder):
            raise ValueError(f"it is the checkpoint of step {meta['step']}")
        return _renamed(_entries(folder))
    except OSError:
        raise
    # a pickle that is damaged makes its readers raise almost anything
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"{folder} is damaged, or no checkpoint of this library ({reason})") from None


def _entries(folder: Path) -> dict[Place, Any]:
    """Return the entries of a checkpoint by their place in the nested state; tensors are put together."""
    with (folder / OUTLINE).open("rb") as file:
        outline = _Outline(file).load().fields
    kinds, paths = outline["state_dict_metadata"], outline["planner_data"]
    entries: dict[str, Any] = {}
    filled = dict.fromkeys(kinds, 0)
    for name, offset, value in _parts(folder, outline["storage_data"]):
        if offset is None:
            entries[name] = value
            continue
        if name not in entries:
            entries[name] = torch.empty(kinds[name].fields["size"], dtype=value.dtype)
        entries[name][tuple(slice(o, o + n) for o, n in zip(offset, value.shape, strict=True))] = value
        filled[name] += value.numel()
    for name in kinds:
        value = entries[name]
        if isinstance(value, Tensor) and filled[name] != value.numel():
            raise ValueError(f"it holds {filled[name]:,} of the {value.numel():,} numbers of {name}")
    return {tuple(paths[name]): entries[name] for name in kinds}


def _parts(folder: Path, storage: Mapping[Any, Any]) -> Iterator[tuple[str, tuple[int, ...] | None, Any]]:
    """Yield name and value of every part of an entry, and where in the whole tensor it begins, None for no tensor."""
    for index, info in storage.items():
        file, start = info.fields["relative_path"], info.fields["offset"]
        if not ENTRIES.fullmatch(file):
            raise ValueError(f"it names {file!r}, which is no file of a checkpoint")
        with (folder / file).open("rb") as opened:
            opened.seek(start)
            data = io.BytesIO(opened.read(info.fields["length"]))
        value = torch.load(data, map_location="cpu", weights_only=True)
        yield index.fields["fqn"], index.fields["offset"] if isinstance(value, Tensor) else None, value


def _renamed(entries: Mapping[Place, Any]) -> dict[str, Any]:
    """Return entries under the names of the present format."""
    state: dict[str, Any] = {}
    groups: dict[int, dict[str, Any]] = {}
    for path, value in entries.items():
        match path:
            case "learner", str(name):
                state[f"{LEARNER}{name}"] = value
            case "optimizer", "state", str(parameter), str(key):
                state[f"{STATES}{parameter}/{key}"] = value
            case "optimizer", "param_groups", int(number), str(key):
                groups.setdefault(number, {})[key] = value
            case _:
                raise ValueError(f"it holds {path}, which no checkpoint holds")
    return state | {GROUPS: [groups[number] for number in range(len(groups))]}
