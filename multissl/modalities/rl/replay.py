"""Recorded episodes: single frames with actions and states, read from files, split by episode, stacked on read.

Frames are stored once; a stack of k frames repeats the episode's first one where there were none before, as
gymnasium's frame stacking does. Files: npz and HDF5 with one array per name (frames `observations`, `actions`, the ends
of episodes as `terminals`, `timeouts`, `episode_ends` or `episode_ids`, and where known `states` and `state_names`),
or a local Minari dataset. Colors may come first and frames be stacks, as `rl_pixels` says; a stack is read as its
newest frame.
Action t leads from frame t to frame t+1; the action of an episode's last frame leads nowhere and is never used.
Shapes: S frames of all episodes, E episodes, H, W pixels, C colors, A numbers of an action, n values of a state.
State: none but what was read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl.contract.data import Sample, Samples, Unreadable
from multissl.limits import check_unpacked
from multissl.modalities.rl.actions import encode_actions, num_choices
from multissl.modalities.rl.pixels import RENDER, as_bytes, layout_of, newest, sight_of
from multissl.random import RowRandom
from multissl.registry import require, suggest
from multissl.sources.copies import IN_MEMORY, Copies, split_together

NAMES = {
    "frames": ("frames", "observations", "observation", "obs", "images"),
    "actions": ("actions", "action"),
    "terminated": ("terminated", "terminals", "terminal", "terminations", "dones", "done"),
    "truncated": ("truncated", "timeouts", "truncations"),
    "ends": ("episode_ends",),
    "ids": ("episode_ids", "episode_id"),
    "states": ("states", "state", "ram"),
    "names": ("state_names",),
}
"""What an array is called in a file, the preferred name first."""
CELLS = 4
"""Labels are the cells of a grid of CELLS x CELLS over the first two values of the state."""


@dataclass(kw_only=True)
class Replay:
    """Episodes one after the other; `start` [E+1] is where each begins."""

    frames: np.ndarray
    """uint8 [S, H, W] or [S, H, W, C]"""
    actions: np.ndarray
    """int64 [S], or float32 [S, A] where they are continuous"""
    start: np.ndarray
    """int64 [E+1]"""
    num_actions: int = 0
    """How many actions there are to choose from; 0 where they are continuous."""
    states: np.ndarray | None = None
    """float32 [S, n], NaN where a value means nothing (the ball is out of play)."""
    names: tuple[str, ...] = ()
    """Of the values of a state."""
    aims: tuple[str, ...] = ()
    """Names of the values that are worth finding; empty: all."""
    bounds: tuple[tuple[float, ...], ...] = ()
    """Inner edges of the cells of the first two values: quartiles unless a checkpoint says otherwise."""
    labels: np.ndarray = field(init=False)
    """int64 [S], -1 where unknown"""
    means: dict[int, np.ndarray] = field(init=False, default_factory=dict)
    copies: Copies = field(init=False)
    """Which episodes are equal in all frames and actions."""

    def __post_init__(self) -> None:
        if self.states is not None and not self.names:
            self.names = tuple(f"state{i}" for i in range(self.states.shape[1]))
        self.label(self.bounds)
        self.copies = Copies(Episodes(self), limit=IN_MEMORY)

    def label(self, bounds: tuple[tuple[float, ...], ...]) -> None:
        """Number the frames by the cell of the first two values of their state, cut at `bounds` (empty: measured)."""
        self.labels = np.full(len(self.frames), -1, np.int64)
        if self.states is None:
            return
        values = self.states[:, :2]
        known = np.isfinite(values).all(1)
        if known.any():
            shares = [i / CELLS for i in range(1, CELLS)]
            self.bounds = bounds or tuple(tuple(np.quantile(v, shares).tolist()) for v in values[known].T)
            cells = [np.searchsorted(b, v) for b, v in zip(self.bounds, values[known].T, strict=True)]
            self.labels[known] = sum(c * CELLS**i for i, c in enumerate(cells))

    @property
    def width(self) -> int:
        """A: numbers that say an action."""
        return self.num_actions or self.actions.shape[1]

    def length(self, episode: int) -> int:
        """Frames of an episode."""
        return int(self.start[episode + 1] - self.start[episode])

    def mean(self, episode: int) -> np.ndarray:
        """An episode's mean frame, float32 [H, W] or [H, W, C]; kept."""
        if episode not in self.means:
            first, last = self.start[episode], self.start[episode + 1]
            self.means[episode] = self.frames[first:last].mean(0, dtype=np.float32)
        return self.means[episode]

    def stack(self, episode: int, t: int, k: int) -> np.ndarray:
        """Frames t-k+1 to t of an episode, uint8 [k, H, W] or [k, H, W, C]; never of the episode before."""
        first = int(self.start[episode])
        return self.frames[np.maximum(np.arange(first + t - k + 1, first + t + 1), first)]

    def between(self, episode: int, t: int, h: int) -> np.ndarray:
        """The h actions that lead from frame t to frame t+h, float32 [h, A]; chosen ones as one of A."""
        first = int(self.start[episode]) + t
        actions = self.actions[first : first + h]
        return np.eye(self.num_actions, dtype=np.float32)[actions] if self.num_actions else actions


class Episodes(Sequence[Any]):
    """The frames and actions of every episode of a replay."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay

    def __len__(self) -> int:
        return len(self.replay.start) - 1

    def __getitem__(self, episode: Any) -> Any:
        part = slice(int(self.replay.start[episode]), int(self.replay.start[episode + 1]))
        return self.replay.frames[part], self.replay.actions[part]


class Moment(NamedTuple):
    """One frame of a replay with what came before it."""

    replay: Replay
    episode: int
    t: int


class Moments(Samples):
    """All frames of some episodes; a sample's group is its episode."""

    def __init__(self, replay: Replay, episodes: np.ndarray) -> None:
        self.replay, self.episodes = replay, episodes
        lengths = np.array([replay.length(int(e)) for e in episodes], np.int64)
        self.ends = lengths.cumsum()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self.ends, index, side="right"))
        episode = int(self.episodes[place])
        t = index - (int(self.ends[place - 1]) if place else 0)
        label = int(self.replay.labels[self.replay.start[episode] + t])
        return Sample(Moment(self.replay, episode, t), index, label, episode)

    def rows(self) -> np.ndarray:
        """Where the samples lie among all frames of the replay, int64."""
        start = self.replay.start.tolist()
        parts = [np.arange(start[e], start[e + 1]) for e in self.episodes.tolist()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def bursts(samples: list[Sample], rng: RowRandom, size: int, pace: int, span: int) -> list[Sample]:
    """Samples of which every `size` in a row are moments of the first one's episode, `pace` frames apart from it on.

    Where the global batch is no multiple, its largest divisor below `size`. Views reach `span` frames further; a burst
    that would pass the episode's end starts earlier.
    """
    size = next(n for n in range(min(size, rng.total), 0, -1) if rng.total % n == 0)
    if rng.first % size or rng.rows % size:
        raise ValueError(
            f"modality.burst={size}: a rank with {rng.rows} samples of a step cuts a burst in two; set"
            f" modality.burst={math.gcd(size, rng.rows)}, or a batch_size that gives each rank whole ones"
        )
    found = []
    for sample in samples[::size]:
        replay, episode, t = sample.data
        room = replay.length(episode) - span - (size - 1) * pace
        if room < 1:
            reason = f"episode {episode} has {replay.length(episode)} frames, a burst of {size} spans"
            raise Unreadable(sample.index, f"{reason} {span + (size - 1) * pace + 1}: lower modality.burst")
        for at in range(min(t, room - 1), min(t, room - 1) + size * pace, pace):
            label = int(replay.labels[replay.start[episode] + at])
            found.append(Sample(Moment(replay, episode, at), sample.index + at - t, label, sample.group))
    return found


def split_episodes(count: int, split: str, copies: Copies | None = None) -> np.ndarray:
    """Which of `count` episodes a split has: every tenth is for validation, the one after it for the test.

    Equal episodes stay together. With fewer than 3 episodes there is nothing to set aside, and a split would leak:
    refused.
    """
    if count < 3:
        raise ValueError(
            f"{count} episodes cannot be split by episode into train, val and test: give 3 or more"
        )
    episodes = np.arange(count)
    sets = copies.among(episodes).sets if copies else episodes
    turn = split_together(_turns, range(count), sets)
    chosen = {"train": turn > 1, "val": turn == 0, "test": turn == 1, "all": turn >= 0}
    if split not in chosen:
        raise ValueError(f"split={split!r}: want one of {', '.join(chosen)}")
    return episodes[chosen[split]]


def _turns(keys: Sequence[Hashable]) -> np.ndarray:
    """Return 0 for every tenth key, 1 for the one after it, 2 for the others; of fewer keys these are a round."""
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return np.array([min(order[key] % min(10, len(order)), 2) for key in keys], dtype=np.int64)


def read_replay(path: str, layout: str = "", entry: str = "") -> Replay:
    """A replay from an .npz, .h5, .hdf5 or `minari:NAME`, its pictures in a layout, in the array or entry of a name."""
    if layout == RENDER:
        raise ValueError(f"modality.layout={RENDER}: only an environment, gym:NAME, draws pictures")
    if path.startswith("minari:"):
        return _minari(path.removeprefix("minari:"), layout, entry)
    if not Path(path).is_file():
        raise ValueError(
            "no such file; give .npz, .h5, gym:NAME, minari:NAME, or nothing for the built-in game"
        )
    try:
        with _open(path) as arrays:
            return from_arrays(arrays, layout, entry)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            "holds Python objects, which are not read, or is no npz: save plain arrays with np.savez"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # zipfile, numpy and h5py raise many kinds for a file that is cut off
        kind = Path(path).suffix.lstrip(".")
        raise ValueError(f"cannot be read as {kind} ({error}): is the file whole?") from error


@contextlib.contextmanager
def _open(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the arrays of a file by name; what is read of them is checked against the limits first."""
    if path.endswith((".h5", ".hdf5")):
        with require("h5py").File(path, "r") as file:
            arrays = {name: member for name, member in file.items() if hasattr(member, "shape")}
            yield Arrays(arrays, lambda name: (arrays[name].id.get_storage_size(), arrays[name].nbytes))
        return
    # numpy leaves a file that it opened itself open where the archive turns out to be broken
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        members = {info.filename.removesuffix(".npy"): info for info in file.zip.infolist()}
        yield Arrays(file, lambda name: (members[name].compress_size, members[name].file_size))


class Arrays(Mapping[str, np.ndarray]):
    """Arrays of an open file, each read when it is asked for."""

    def __init__(self, file: Mapping[str, Any], sizes: Callable[[str], tuple[int, int]]) -> None:
        """Take what says of a name how many bytes its array has in the file, and in memory."""
        self.file, self.sizes = file, sizes

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)

    def __getitem__(self, name: str) -> np.ndarray:
        packed, unpacked = self.sizes(name)
        check_unpacked(packed, unpacked, f"array {name!r}")
        return np.asarray(self.file[name])


def from_arrays(given: Mapping[str, Any], layout: str = "", entry: str = "") -> Replay:
    """A replay from arrays by name (`NAMES`); refuses what is missing or does not agree in length.

    `layout` says how a picture lies in the frames, `entry` which array they are; empty: as shape and names say.
    """
    if entry and entry not in given:
        raise ValueError(f"modality.entry={entry!r} is none of its arrays{suggest(entry, given)}")
    names = {**NAMES, "frames": (entry,) if entry else NAMES["frames"]}
    found = {
        k: np.asarray(given[n]) for k, ns in names.items() if (n := next((n for n in ns if n in given), ""))
    }
    for need in ("frames", "actions"):
        if need not in found:
            raise ValueError(
                f"holds no {need}: want an array called {' or '.join(NAMES[need])}, found {', '.join(given) or 'none'}"
            )
    frames, actions = _single_frames(found["frames"], layout), found["actions"]
    for name, array in found.items():
        if name not in ("ends", "names") and len(array) != len(frames):
            raise ValueError(
                f"{len(frames)} frames and {len(array)} {name}: want as many, an action for every frame"
            )
    whole = actions.dtype.kind in "iub" and (actions.ndim == 1 or actions.shape[1:] == (1,))
    if whole and len(actions) and actions.min() < 0:
        raise ValueError(f"actions go down to {actions.min()}: want choices counted from 0, or floats")
    actions = actions.reshape(-1).astype(np.int64) if whole else actions.reshape(len(actions), -1)
    if not whole and not np.isfinite(actions).all():
        raise ValueError(
            f"{int((~np.isfinite(actions)).any(1).sum())} actions are not finite: mend or drop them"
        )
    states = found["states"].reshape(len(frames), -1).astype(np.float32) if "states" in found else None
    # HDF5 gives bytes
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in found.get("names", ()))
    if names and (states is None or len(names) != states.shape[1]):
        raise ValueError(f"{len(names)} state_names for {0 if states is None else states.shape[1]} states")
    return Replay(
        frames=frames,
        actions=actions if whole else actions.astype(np.float32),
        start=_starts(found, len(frames)),
        num_actions=int(actions.max()) + 1 if whole and len(actions) else 0,
        states=states,
        names=names,
    )


def _single_frames(frames: np.ndarray, layout: str) -> np.ndarray:
    """uint8 [S, H, W] or [S, H, W, 3] of recorded frames: bytes, or floats from 0 to 1, in any layout."""
    unit = frames.dtype.kind == "f" and frames.size > 0 and 0 <= frames.min() <= frames.max() <= 1
    if not (frames.dtype == np.uint8 or unit) or not 3 <= frames.ndim <= 5:
        raise ValueError(
            f"frames are {frames.dtype} of shape {frames.shape}: want uint8 [S, H, W] or [S, H, W, C], or floats from 0"
            " to 1; save others as bytes, frames.astype(np.uint8) where 255 is the brightest"
        )
    try:
        layout = layout or layout_of(frames.shape[1:])
    except ValueError as error:
        want = "want single frames of 1 or 3 colors, not stacks that may be colors"
        raise ValueError(f"frames have shape {frames.shape}: {want}; {error}") from error
    return as_bytes(newest(frames, layout), 0, 1 if unit else 255)


def _starts(found: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Where episodes begin, int64 [E+1], by their ends, their ids, or by terminated and truncated."""
    if "ends" in found:
        starts = np.unique(np.concatenate([[0], found["ends"].astype(np.int64), [count]]))
        if starts[0] < 0 or starts[-1] > count:
            raise ValueError(f"episode_ends reach from {starts[0]} to {starts[-1]}, there are {count} frames")
        return starts
    if "ids" in found:
        new = np.flatnonzero(np.diff(found["ids"].reshape(-1)) != 0) + 1
    elif "terminated" in found or "truncated" in found:
        over = np.zeros(count, bool)
        for name in ("terminated", "truncated"):
            if name in found:
                over |= found[name].reshape(-1).astype(bool)
        new = np.flatnonzero(over[:-1]) + 1
    else:
        wanted = [NAMES[n][0] for n in ("terminated", "truncated", "ends", "ids")]
        raise ValueError(f"does not say where episodes end: want one of {', '.join(wanted)}")
    return np.concatenate([[0], new, [count]]).astype(np.int64)


def _minari(name: str, layout: str, entry: str) -> Replay:
    """A Minari dataset that lies on this machine: episodes with one frame more than actions."""
    try:
        data = require("minari").load_dataset(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"no such Minari dataset on this machine: minari download {name} fetches it"
        ) from error
    sight = sight_of(data.observation_space, layout, entry)
    if sight is None:
        raise ValueError(
            f"its observations are {data.observation_space} and hold no pictures: take another one"
        )
    frames, actions, ends = [], [], []
    for episode in data.iterate_episodes():
        seen = sight.frames(sight.entry(episode.observations))
        done = encode_actions(data.action_space, episode.actions)
        frames.append(seen)
        actions.append(np.concatenate([done, done[-1:]])[: len(seen)])  # the last one leads nowhere
        ends.append(len(seen))
    stacked = {"frames": np.concatenate(frames), "actions": np.concatenate(actions)}
    replay = from_arrays(
        {**stacked, "episode_ends": np.cumsum(ends)}, "hw" + "c" * (stacked["frames"].ndim == 4)
    )
    replay.num_actions = num_choices(data.action_space)  # though the last ones may never have been taken
    return replay
