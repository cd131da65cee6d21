"""Recorded episodes read from files: npz and HDF5 with one array per name, or with a group per episode, and Minari.

One array per name (D4RL writes such HDF5): `observations`, `actions`, the ends of episodes as `terminals`, `timeouts`,
`episode_ends` or `episode_ids`, and where known `rewards`, `states` and `state_names`. A group per episode: `grouped`.
Observations are pictures where they have two axes or more, whose colors may come first and which may be stacks, as
`pixels` says; a stack is read as its newest frame. Else they are numbers. Frames of HDF5 are read a block at a time.
Shapes: S frames of all episodes, E episodes, T frames of a block, H, W pixels, C colors, N numbers of a row.
State: none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multissl.limits import check_unpacked
from multissl.modalities.rl.grouped import episode_groups, read_groups, read_minari
from multissl.modalities.rl.pixels import RENDER, VECTOR, as_bytes, layout_of, newest, shrink
from multissl.modalities.rl.replay import Replay
from multissl.modalities.rl.vectors import check_rows, numbered
from multissl.registry import require, suggest

NAMES = {
    "frames": ("frames", "observations", "observation", "obs", "images"),
    "actions": ("actions", "action"),
    "terminated": ("terminated", "terminals", "terminal", "terminations", "dones", "done"),
    "truncated": ("truncated", "timeouts", "truncations"),
    "rewards": ("rewards", "reward"),
    "ends": ("episode_ends",),
    "ids": ("episode_ids", "episode_id"),
    "states": ("states", "state", "ram"),
    "names": ("state_names",),
    "columns": ("observation_names",),
}
"""What an array is called in a file, the preferred name first."""
OF_FRAMES = ("actions", "terminated", "truncated", "rewards", "ids", "states")
"""Those with an entry for every frame."""
BLOCK = 1024
"""Frames that are read at once."""
CHOICES = 1 << 16
"""Most actions to choose from: each is a number of every action that objectives read."""
Keep = Callable[[np.ndarray], np.ndarray]
"""What is kept of frames uint8 [T, H, W] or [T, H, W, 3]: as many, perhaps smaller."""


def whole(frames: np.ndarray) -> np.ndarray:
    """Keep frames as they are."""
    return frames


def read_replay(path: str, layout: str = "", entry: str = "", keep: Keep = whole) -> Replay:
    """A replay from an .npz, .h5, .hdf5 or `minari:NAME`, its pictures in a layout, in the array or entry of a name."""
    if layout == RENDER:
        raise ValueError(f"modality.layout={RENDER}: only an environment, gym:NAME, draws pictures")
    minari = path.startswith("minari:")
    if not minari and not Path(path).is_file():
        raise ValueError(
            "no such file; give .npz, .h5, gym:NAME, minari:NAME, or nothing for the built-in game"
        )
    try:
        if minari:
            return _assembled(read_minari(path.removeprefix("minari:"), layout, entry, keep))
        if path.endswith((".h5", ".hdf5")):
            return _hdf5(path, layout, entry, keep)
        with _npz(path) as arrays:
            return from_arrays(arrays, layout, entry, keep)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            "holds Python objects, which are not read, or is no npz: save plain arrays with np.savez"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # zipfile, numpy, h5py and minari raise many kinds for a file that is cut off
        kind = "a Minari dataset" if minari else Path(path).suffix.lstrip(".")
        raise ValueError(f"cannot be read as {kind} ({error}): is the file whole?") from error


def _hdf5(path: str, layout: str, entry: str, keep: Keep) -> Replay:
    """Read an HDF5 file with one array per name, or with a group per episode."""
    if (Path(path).parent / "metadata.json").is_file() and Path(path).name == "main_data.hdf5":
        return _assembled(read_minari(str(Path(path).parent), layout, entry, keep))
    h5py = require("h5py")
    with h5py.File(path, "r") as file:
        if groups := episode_groups(file):
            return _assembled(read_groups(groups, layout, entry, keep))
        arrays: dict[str, Any] = {}
        file.visititems(
            lambda name, member: arrays.update({name: member} if hasattr(member, "shape") else {})
        )
        sized = Arrays(arrays, lambda name: (arrays[name].id.get_storage_size(), arrays[name].nbytes))
        return from_arrays(sized, layout, entry, keep)


@contextlib.contextmanager
def _npz(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the arrays of a file by name; what is read of them is checked against the limits first."""
    # numpy leaves a file that it opened itself open where the archive turns out to be broken
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        members = {info.filename.removesuffix(".npy"): info for info in file.zip.infolist()}
        yield Arrays(file, lambda name: (members[name].compress_size, members[name].file_size))


class Arrays(Mapping[str, Any]):
    """Arrays of an open file, each opened when it is asked for; those of HDF5 are read as they are cut."""

    def __init__(self, file: Mapping[str, Any], sizes: Callable[[str], tuple[int, int]]) -> None:
        """Take what says of a name how many bytes its array has in the file, and in memory."""
        self.file, self.sizes = file, sizes

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)

    def __getitem__(self, name: str) -> Any:
        packed, unpacked = self.sizes(name)
        check_unpacked(packed, unpacked, f"array {name!r}")
        return self.file[name]


def _assembled(arrays: Mapping[str, Any]) -> Replay:
    """Return a replay of arrays whose frames are as they are kept."""
    frames, choices = arrays["frames"], arrays.get("num_actions")
    layout = "hw" + "c" * (frames.ndim == 4) if frames.dtype == np.uint8 else VECTOR
    replay = from_arrays(arrays, layout)
    if choices is not None:  # a space tells of choices that were never made
        replay.num_actions = choices
    return replay


def from_arrays(arrays: Mapping[str, Any], layout: str = "", entry: str = "", keep: Keep = whole) -> Replay:
    """A replay from arrays by name (`NAMES`); refuses what is missing or does not agree in length.

    `layout` says how a picture lies in the frames, `entry` which array they are; empty: as shape and names say.
    """
    if entry and entry not in arrays:
        raise ValueError(f"modality.entry={entry!r} is none of its arrays{suggest(entry, arrays)}")
    names = {**NAMES, "frames": (entry,) if entry else NAMES["frames"]}
    entries = {k: arrays[n] for k, ns in names.items() if (n := next((n for n in ns if n in arrays), ""))}
    for need in ("frames", "actions"):
        if need not in entries:
            raise ValueError(
                f"holds no {need}: want an array called {' or '.join(NAMES[need])}, found {', '.join(arrays) or 'none'}"
            )
    frames = entries.pop("frames")
    frames = frames if hasattr(frames, "dtype") else np.asarray(frames)
    if frames.dtype.kind not in "fiub" or not frames.ndim:
        raise ValueError(
            f"frames are {frames.dtype} of shape {frames.shape}: want an array of numbers or bytes"
        )
    entries = {name: np.asarray(array) for name, array in entries.items()}
    for name, array in entries.items():
        if name in OF_FRAMES and len(array) != len(frames):
            raise ValueError(
                f"{len(frames)} frames and {len(array)} {name}: want as many, an action for every frame"
            )
    actions, choices = _actions(entries["actions"])
    start = _starts(entries, len(frames))
    states, state_names = _states(entries)
    columns: tuple[str, ...] = ()
    if layout == VECTOR or (not layout and frames.ndim <= 2):
        frames = _rows(frames)
        columns = _texts(entries.get("columns", ())) or tuple(numbered("state", frames.shape[1]))
        check_rows(frames, columns, start)
        if states is None:
            states, state_names = frames, columns
    else:
        frames = _single_frames(frames, layout, keep)
    return Replay(
        frames=frames,
        columns=columns,
        actions=actions,
        start=start,
        num_actions=choices,
        states=states,
        names=state_names,
        rewards=_per_frame(entries.get("rewards"), np.float32),
        terminated=_per_frame(entries.get("terminated"), bool),
        truncated=_per_frame(entries.get("truncated"), bool),
    )


def _per_frame(values: np.ndarray | None, dtype: Any) -> np.ndarray | None:
    """Return a value per frame [S] as a type."""
    return None if values is None else values.reshape(-1).astype(dtype)


def _actions(actions: np.ndarray) -> tuple[np.ndarray, int]:
    """Return actions, int64 [S] of so many choices, or float32 [S, A] where they are no choices (0)."""
    if actions.dtype.kind in "iub" and (actions.ndim == 1 or actions.shape[1:] == (1,)):
        actions = actions.reshape(-1).astype(np.int64)
        if len(actions) and (actions.min() < 0 or actions.max() >= CHOICES):
            raise ValueError(
                f"actions go from {actions.min()} to {actions.max()}: want choices counted from 0, less than"
                f" {CHOICES}, or floats"
            )
        return actions, int(actions.max()) + 1 if len(actions) else 0
    actions = actions.reshape(len(actions), -1)
    if not np.isfinite(actions).all():
        raise ValueError(
            f"{int((~np.isfinite(actions)).any(1).sum())} actions are not finite: mend or drop them"
        )
    return actions.astype(np.float32), 0


def _states(entries: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the states, float32 [S, n], and the names of their values, where these are known."""
    states, names = entries.get("states"), _texts(entries.get("names", ()))
    if states is not None:
        states = states.reshape(len(states), -1).astype(np.float32)
    if names and (states is None or len(names) != states.shape[1]):
        raise ValueError(f"{len(names)} state_names for {0 if states is None else states.shape[1]} states")
    return states, names


def _texts(names: Any) -> tuple[str, ...]:
    """Return names as text; HDF5 gives bytes."""
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _rows(frames: Any) -> np.ndarray:
    """Return observations as rows of numbers, float32 [S, N]."""
    return np.asarray(frames).reshape(len(frames), -1).astype(np.float32)


def _single_frames(frames: Any, layout: str, keep: Keep) -> np.ndarray:
    """uint8 [S, H, W] or [S, H, W, 3] of recorded frames: bytes, or floats from 0 to 1, in any layout."""
    if not (frames.dtype == np.uint8 or _from_0_to_1(frames)) or not 3 <= frames.ndim <= 5:
        raise ValueError(
            f"frames are {frames.dtype} of shape {frames.shape}: want uint8 [S, H, W] or [S, H, W, C], or floats from 0"
            " to 1; save others as bytes, frames.astype(np.uint8) where 255 is the brightest, or read them as numbers:"
            f" --modality.layout {VECTOR}"
        )
    try:
        layout = layout or layout_of(frames.shape[1:])
    except ValueError as error:
        want = "want single frames of 1 or 3 colors, not stacks that may be colors"
        raise ValueError(f"frames have shape {frames.shape}: {want}; {error}") from error
    high = 255 if frames.dtype == np.uint8 else 1
    kept = [keep(as_bytes(newest(block, layout), 0, high)) for block in _blocks(frames)]
    return np.concatenate(kept) if kept else keep(newest(np.zeros(frames.shape, np.uint8), layout))


def _from_0_to_1(frames: Any) -> bool:
    if frames.dtype.kind != "f" or not frames.size:
        return False
    return all(0 <= block.min() <= block.max() <= 1 for block in _blocks(frames))


def _blocks(frames: Any) -> Iterator[np.ndarray]:
    for first in range(0, len(frames), BLOCK):
        yield np.asarray(frames[first : first + BLOCK])


def _starts(entries: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Where episodes begin, int64 [E+1], by their ends, their ids, or by terminated and truncated."""
    if "ends" in entries:
        starts = np.unique(np.concatenate([[0], entries["ends"].astype(np.int64), [count]]))
        if starts[0] < 0 or starts[-1] > count:
            raise ValueError(f"episode_ends reach from {starts[0]} to {starts[-1]}, there are {count} frames")
        return starts
    if "ids" in entries:
        new = np.flatnonzero(np.diff(entries["ids"].reshape(-1)) != 0) + 1
    elif "terminated" in entries or "truncated" in entries:
        over = np.zeros(count, bool)
        for name in ("terminated", "truncated"):
            if name in entries:
                over |= entries[name].reshape(-1).astype(bool)
        new = np.flatnonzero(over[:-1]) + 1
    else:
        names = [NAMES[n][0] for n in ("terminated", "truncated", "ends", "ids")]
        raise ValueError(f"does not say where episodes end: want one of {', '.join(names)}")
    return np.concatenate([[0], new, [count]]).astype(np.int64)


def read_alone(stack: np.ndarray, cfg: Any, fitted: Mapping[str, Any] | None) -> Replay:
    """Return a stack in memory as an episode: numbers or pictures, as was fitted, or else as its shape says."""
    width = stack.shape[-1] if 0 < stack.ndim < 3 else 0
    if fitted is not None:
        width = len(fitted.get("columns", ()))
    if width:
        return rows_alone(stack, cfg.stack, width)
    return stack_alone(stack, cfg.stack, cfg.frame or cfg.size, cfg.channels)


def stack_alone(frames: np.ndarray, k: int, size: int, channels: int) -> Replay:
    """A stack in memory as an episode of its own: uint8 [k, H, W], [k, H, W, 3] or [k, 3, H, W]."""
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or len(frames) != k:
        want = f"want a stack of {k} frames, uint8 [k, H, W] or [k, H, W, 3]"
        raise ValueError(f"is {frames.dtype} {frames.shape}: {want}")
    layout = layout_of(frames.shape[1:], rgba=True)
    if "s" in layout:
        raise ValueError(f"is {frames.shape}: want {k} single frames of 1 or 3 colors")
    frames = np.stack([shrink(f, size, channels) for f in newest(frames, layout)])
    return Replay(frames=frames, actions=np.zeros(k, np.int64), start=np.array([0, k]))


def rows_alone(rows: np.ndarray, k: int, width: int) -> Replay:
    """Rows in memory as an episode of their own: numbers [k, width], or [width] where k is 1."""
    if rows.dtype.kind not in "fiub" or rows.size != k * width or rows.ndim > 2:
        raise ValueError(
            f"is {rows.dtype} {rows.shape}: want a stack of {k} observations of {width} numbers, [{k}, {width}]"
        )
    rows = rows.reshape(k, width).astype(np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("holds numbers that are not finite")
    names = tuple(numbered("state", width))
    return Replay(frames=rows, columns=names, actions=np.zeros(k, np.int64), start=np.array([0, k]))
