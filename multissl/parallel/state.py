"""Checkpoints of modules and optimizers, sharded or not: tensors as safetensors, everything else as JSON.

Every rank writes the parts that it holds of sharded tensors into a file of its own, the first rank whole tensors too;
`state.json` says of each tensor its shape, and where in it the part of which file begins. Any number of ranks, sharded
in another way or not at all, reads what overlaps with its own parts. Nothing is pickled: the reader of
torch.distributed.checkpoint unpickles, and its safetensors storage writes by itself, where nothing can be made to fail
in tests and nothing is counted into digests.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from multissl.files import Damaged, digest, make_folder, replace_tensors, replace_text
from multissl.parallel.collectives import broadcast_object, gather_objects
from multissl.parallel.ranks import is_main, rank
from multissl.parallel.sharding import local

if TYPE_CHECKING:
    from safetensors import safe_open

INDEX = "state.json"
FILE = re.compile(r"rank_\d{5}\.safetensors")
State = Mapping[str, Any]
"""Tensors, and values that JSON can hold, by name."""


def save_state(state: State, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a state into a folder; return size and digest of every file. Called on every rank.

    Raises an OSError on every rank where one of them could not write.
    """
    file = folder / f"rank_{rank():05d}.safetensors"
    own, offsets, seen = dict[str, Tensor](), dict[str, list[int]](), set[int]()
    for name, value in state.items():
        if isinstance(value, Tensor) and _is_written_here(value):
            own[name] = _on_cpu(local(value.detach()), seen)
            offsets[name] = _offset(value)
    about, problem = {}, None
    try:
        make_folder(folder)
        if own:
            replace_tensors(file, own)
            about[file.name] = described(file)
    except OSError as error:
        problem = error
    ranks = gather_objects((about, offsets, problem))
    if is_main() and not any(p for _, _, p in ranks):
        try:
            replace_text(folder / INDEX, json.dumps(_index(state, [(a, o) for a, o, _ in ranks])))
            about[INDEX] = described(folder / INDEX)
        except OSError as error:
            problem = error
    problems = [p for _, _, p in ranks if p]
    about, problem = broadcast_object((about, problems[0] if problems else problem))
    if problem:
        raise problem
    return about | {name: values for a, _, _ in ranks for name, values in a.items()}


def save_whole(state: State, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a state of whole tensors as `save_state` does, by this process alone."""
    make_folder(folder)
    seen: set[int] = set()
    own = {n: _on_cpu(v.detach(), seen) for n, v in state.items() if isinstance(v, Tensor)}
    file = folder / "rank_00000.safetensors"
    replace_tensors(file, own)
    about = {file.name: described(file)}
    offsets = {name: [0] * tensor.dim() for name, tensor in own.items()}
    replace_text(folder / INDEX, json.dumps(_index(state, [(about, offsets)])))
    return about | {INDEX: described(folder / INDEX)}


def described(file: Path) -> dict[str, Any]:
    """Return size and digest of a file."""
    return {"size": file.stat().st_size, "sha256": digest(file)}


def _index(
    state: State, ranks: Sequence[tuple[Mapping[str, Any], Mapping[str, list[int]]]]
) -> dict[str, Any]:
    """Return what `state.json` holds: of tensors where they lie, of everything else the value."""
    tensors = {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "parts": [{"file": next(iter(a)), "offset": o[name]} for a, o in ranks if name in o],
        }
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    return {"tensors": tensors, "values": values}


def _on_cpu(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return a tensor as a file can hold it: contiguous, and under one name alone."""
    tensor = tensor.cpu().contiguous()
    if tensor.numel() and tensor.data_ptr() in seen:
        tensor = tensor.clone()
    seen.add(tensor.data_ptr())
    return tensor


def _is_written_here(tensor: Tensor) -> bool:
    """Return whether this rank writes its part: of equal ones the first rank that has it, and nothing empty."""
    sharded = _sharded(tensor)
    if sharded is None:
        return is_main()
    places = zip(sharded.device_mesh.get_coordinate(), sharded.placements, strict=True)
    return local(tensor).numel() > 0 and not any(p.is_replicate() and place for place, p in places)


def _offset(tensor: Tensor) -> list[int]:
    """Return where in the whole tensor this rank's part begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = _sharded(tensor)
    if sharded is None:
        return [0] * tensor.dim()
    _, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    return list(offset)


def _sharded(tensor: Tensor) -> Any:
    """Return a sharded tensor, None for a plain one."""
    return tensor if hasattr(tensor, "device_mesh") else None


def read_index(folder: Path) -> dict[str, Any]:
    """Return what `state.json` of a folder says of its tensors, and the other values. No tensor is read."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        files = {part["file"] for about in index["tensors"].values() for part in about["parts"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{folder / INDEX} is damaged ({error})") from None
    for name in files:
        if not isinstance(name, str) or not FILE.fullmatch(name):
            raise Damaged(f"{folder / INDEX} names {name!r}, which is no file of a checkpoint")
    return index


def load_state(state: State, folder: Path) -> dict[str, Any]:
    """Fill the tensors of a state, in place, with what `save_state` wrote, on any number of ranks.

    Returns the state with the other values as they were written.
    """
    from safetensors import safe_open

    index, files = read_index(folder), dict[str, Any]()
    values = dict[str, Any]()
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, value in state.items():
            kind = "tensors" if isinstance(value, Tensor) else "values"
            if name not in index[kind]:
                raise ValueError(
                    f"{folder} holds no {name}: it was written by other encoders or another objective"
                )
            if not isinstance(value, Tensor):
                values[name] = _as_before(value, index[kind][name])
                continue
            about = index[kind][name]
            kinds = [(about["dtype"], about["shape"]), (str(value.dtype), list(value.shape))]
            if kinds[0] != kinds[1]:
                raise ValueError(f"{folder}: {name} is {kinds[0]}, the run has {kinds[1]}")
            for part in about["parts"]:
                file = part["file"]
                if file not in files:
                    files[file] = stack.enter_context(safe_open(folder / file, framework="pt"))
                _copy_overlap(value, files[file], name, part["offset"])
            values[name] = value
    return values


def tensors(folder: Path, beginning: str = "") -> dict[str, Tensor]:
    """Return the tensors whose names begin so of a folder that `save_state` wrote, by name, whole, on the CPU."""
    from safetensors import safe_open

    index, values = read_index(folder), dict[str, Tensor]()
    wanted = {name: about for name, about in index["tensors"].items() if name.startswith(beginning)}
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(safe_open(folder / name, framework="pt"))
            for name in sorted({p["file"] for about in wanted.values() for p in about["parts"]})
        }
        for name, about in wanted.items():
            dtype = next((files[p["file"]].get_tensor(name).dtype for p in about["parts"]), torch.float32)
            values[name] = torch.empty(about["shape"], dtype=dtype)
            for part in about["parts"]:
                _copy_overlap(values[name], files[part["file"]], name, part["offset"])
    return values


def _copy_overlap(tensor: Tensor, file: safe_open, name: str, start: Sequence[int]) -> None:
    """Copy what a file holds of this rank's part of a tensor; the file's part begins at `start`."""
    own, begin = local(tensor), _offset(tensor)
    if not own.dim():
        own.copy_(file.get_tensor(name))
        return
    part = file.get_slice(name)
    low = [max(a, b) for a, b in zip(begin, start, strict=True)]
    ends = zip(begin, own.shape, start, part.get_shape(), strict=True)
    high = [min(a + n, b + m) for a, n, b, m in ends]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return
    here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True))
    there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
    own[here].copy_(part[there])


def _as_before(model: Any, value: Any) -> Any:
    """Return a value of JSON with tuples where a value of the same structure has them."""
    if isinstance(model, Mapping) and isinstance(value, Mapping):
        return {n: _as_before(model.get(n), v) for n, v in value.items()}
    if isinstance(model, list | tuple) and isinstance(value, list):
        known = [*model, *[None] * (len(value) - len(model))]
        made = [_as_before(m, v) for m, v in zip(known, value, strict=False)]
        return tuple(made) if isinstance(model, tuple) else made
    return value


def optimizer_state(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, so that it can be loaded on another number of ranks.

    A new optimizer has a state of zeros for every trainable parameter, one that took steps has none for parameters that
    never had a gradient.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return cast(dict[str, Any], get_optimizer_state_dict(learner, optimizer))


def restore_optimizer(learner: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer what `optimizer_state` made; a parameter without a state gets one with its first gradient."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(learner, optimizer, state, options=StateDictOptions(strict=False))
