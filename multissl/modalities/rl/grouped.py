"""Recorded episodes that lie one by one: groups of an HDF5 file, as robomimic and Minari write them, and Minari's sets.

robomimic: `data/demo_7/obs/agentview_image`, `.../actions`, `.../rewards`, `.../dones`; without `obs` the simulator's
`states` are what is observed. Minari: `episode_7/observations`, an array or groups of arrays, with one frame more than
actions. Episodes come in the order of their numbers; one is in memory at a time, beside what is kept.
Shapes: T frames of an episode.  State: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multissl.limits import check_unpacked
from multissl.modalities.rl.actions import each, encode_actions, num_choices
from multissl.modalities.rl.pixels import RENDER, VECTOR, as_bytes, layout_of, newest, sight_of
from multissl.modalities.rl.vectors import Numbers, numbered
from multissl.registry import require, suggest
from multissl.sources.names import natural_key
from multissl.waiting import followed

OBSERVED = ("obs", "observations", "observation", "states")
"""What the observations of an episode are called, the preferred name first."""
PER_STEP = {
    "rewards": "rewards",
    "terminated": "dones terminations terminals",
    "truncated": "truncations timeouts",
}
"""What else is kept of every step, and what it is called."""
Keep = Callable[[np.ndarray], np.ndarray]


@dataclass(kw_only=True, slots=True)
class Gathered:
    """What is kept of the episodes so far."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)

    def add(self, episode: str, frames: np.ndarray, arrays: Mapping[str, np.ndarray | None]) -> None:
        """Add an episode: its frames [T, ...], and arrays of T entries, or of T-1 where the last frame ends it."""
        for name, array in {"frames": frames, **arrays}.items():
            if array is None:
                continue
            missing = len(frames) - len(array)
            if missing not in (0, 1) or not len(array):
                raise ValueError(
                    f"{episode} has {len(frames)} observations and {len(array)} {name}: want as many, or one less"
                )
            last = array[-1:] if name == "actions" else np.zeros_like(array[:1])  # it leads nowhere
            padded = np.concatenate([array, last]) if missing else array
            before = self.parts.setdefault(name, [])
            if before and before[0].shape[1:] != padded.shape[1:]:
                raise ValueError(
                    f"{episode} has {name} of shape {padded.shape[1:]}, the first episode {before[0].shape[1:]}"
                )
            before.append(padded)
        self.ends.append(len(frames) + (self.ends[-1] if self.ends else 0))

    def arrays(self) -> dict[str, Any]:
        """Return everything one after the other; what some episodes lack is left out."""
        if not self.ends:
            raise ValueError("holds no episodes")
        whole = {n: np.concatenate(p) for n, p in self.parts.items() if len(p) == len(self.ends)}
        return {**whole, "episode_ends": np.array(self.ends)}


# ------------------------------------------------------------------------------------------- HDF5


def episode_groups(file: Any) -> dict[str, Any]:
    """Return the groups of an HDF5 file that are episodes, by name, in order; none where it has arrays of all."""
    data = file.get("data")
    parent = data if data is not None and hasattr(data, "items") else file
    groups = {name: group for name, group in parent.items() if hasattr(group, "items") and "actions" in group}
    return {name: groups[name] for name in sorted(groups, key=natural_key)}


def read_array(member: Any, name: str) -> np.ndarray:
    """Return an array of an HDF5 file, compared with the limits first."""
    check_unpacked(member.id.get_storage_size(), member.nbytes, f"array {name!r}")
    return np.asarray(member)


def read_groups(groups: Mapping[str, Any], layout: str, entry: str, keep: Keep) -> dict[str, Any]:
    """Return the arrays of episodes that are groups."""
    gathered, named = Gathered(), {}
    for name, group in followed(groups.items(), "episodes", len(groups)):
        arrays = _entries(name, group)
        picture = _picture(name, arrays, layout, entry)
        frames, named = _observed(arrays, picture, layout, entry, keep)
        steps = {
            what: read_array(group[called], f"{name}/{called}")
            for what, names in PER_STEP.items()
            if (called := next((n for n in names.split() if n in group), ""))
        }
        states, actions = named.pop("states", None), read_array(group["actions"], f"{name}/actions")
        gathered.add(name, frames, {"actions": actions, "states": states, **steps})
    arrays = gathered.arrays()
    return {**arrays, **{k: v for k, v in named.items() if k != "state_names" or "states" in arrays}}


def _entries(episode: str, group: Any) -> dict[str, Any]:
    """Return the arrays of an episode's observations by the name of their entry; "" for that of a single array."""
    observed = next((group[name] for name in OBSERVED if name in group), None)
    if observed is None:
        raise ValueError(f"{episode} holds no observations: want one of {', '.join(OBSERVED)}")
    if hasattr(observed, "shape"):
        return {"": observed}
    arrays: dict[str, Any] = {}
    observed.visititems(
        lambda name, member: arrays.update(
            {name.replace("/", "."): member} if hasattr(member, "shape") and member.ndim else {}
        )
    )
    if not arrays:
        raise ValueError(f"the observations of {episode} hold no array")
    return arrays


def _picture(episode: str, arrays: Mapping[str, Any], layout: str, entry: str) -> str | None:
    """Return the entry that is the picture; None where numbers are read."""
    if entry and entry not in arrays:
        raise ValueError(
            f"modality.entry={entry!r} is no entry of the observations of {episode}{suggest(entry, arrays)}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"{name or 'the observations'} of {episode} is packed ({array.dtype}): give the folder of the Minari"
                " set as minari:FOLDER, whose metadata.json says how"
            )
    if layout == VECTOR:
        return None
    pictures = [name for name, array in arrays.items() if array.ndim > 2 and array.dtype == np.uint8]
    if entry:
        return entry if entry in pictures or layout else None
    if len(pictures) > 1:
        raise ValueError(
            f"observations hold the pictures {', '.join(pictures)}: say which with --modality.entry {pictures[0]}"
        )
    return pictures[0] if pictures else None


def _observed(
    arrays: Mapping[str, Any], picture: str | None, layout: str, entry: str, keep: Keep
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the frames of an episode, and names of their numbers, or states beside pictures and their names."""
    if picture is not None:
        array = read_array(arrays[picture], picture)
        shown = keep(as_bytes(newest(array, layout or layout_of(array.shape[1:], rgba=True)), 0, 255))
        beside = {n: a for n, a in arrays.items() if n != picture and a.ndim <= 2}
        if not beside:
            return shown, {}
        states, names = _rows(beside)
        return shown, {"states": states, "state_names": names}
    rows, names = _rows({entry: arrays[entry]} if entry else arrays)
    return rows, {"observation_names": names}


def _rows(arrays: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Return arrays [T, ...] side by side, float32 [T, n], and a name for each number."""
    rows = [read_array(a, n).reshape(len(a), -1).astype(np.float32) for n, a in arrays.items()]
    lengths = {name: len(array) for name, array in arrays.items()}
    if len({*lengths.values()}) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"entries of an observation differ in length: {listed}")
    names = [numbered(name or "state", r.shape[1]) for name, r in zip(arrays, rows, strict=True)]
    return np.concatenate(rows, 1), [name for some in names for name in some]


# ------------------------------------------------------------------------------------------- Minari


def read_minari(name: str, layout: str, entry: str, keep: Keep) -> dict[str, Any]:
    """Return the arrays of a Minari dataset of this name, or in this folder."""
    minari = require("minari")
    try:
        data = minari.MinariDataset(_folder(Path(name))) if Path(name).is_dir() else minari.load_dataset(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"no such Minari dataset on this machine: minari download {name} fetches it"
        ) from error
    space = data.observation_space
    sight = None if layout == VECTOR else sight_of(space, "" if layout == RENDER else layout, entry)
    numbers = Numbers(space, without=sight.path if sight else None, entry="" if sight else entry)
    if not sight and not numbers.columns:
        raise ValueError(
            f"its observations are {space} and hold neither pictures nor numbers: take another one"
        )
    gathered = Gathered()
    for episode in _episodes(data):
        count = len(episode.rewards) + 1
        rows = numbers.rows(episode.observations, count) if numbers.columns else None
        frames = keep(sight.frames(sight.entry(episode.observations))) if sight else rows
        assert frames is not None
        gathered.add(
            f"episode {len(gathered.ends)}",
            frames,
            {
                "actions": encode_actions(
                    data.action_space, each(data.action_space, episode.actions, count - 1)
                ),
                "states": None if rows is None else numbers.states(rows),
                "rewards": np.asarray(episode.rewards),
                "terminated": np.asarray(episode.terminations),
                "truncated": np.asarray(episode.truncations),
            },
        )
    names = {"state_names": numbers.names} if numbers.columns else {}
    columns = {} if sight else {"observation_names": numbers.columns}
    choices = num_choices(data.action_space)
    return {**gathered.arrays(), **names, **columns, "num_actions": choices or None}


def _folder(path: Path) -> Path:
    """Return the folder of a dataset that holds its metadata."""
    return path if (path / "metadata.json").is_file() else path / "data"


def _episodes(data: Any) -> Iterator[Any]:
    """Yield the episodes of a Minari dataset; what is damaged is named."""
    episodes: Iterable[Any] = data.iterate_episodes()
    return followed(episodes, "episodes", int(data.total_episodes))
