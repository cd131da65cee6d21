"""Episodes in memory: single frames, or rows of numbers, with actions, rewards and states; split by episode.

Frames are stored once; a stack of k frames repeats the episode's first one where there were none before, as
gymnasium's frame stacking does.
Action t leads from frame t to frame t+1; the action of an episode's last frame leads nowhere and is never used.
Shapes: S frames of all episodes, E episodes, H, W pixels, C colors, A numbers of an action, n values of a state,
N numbers of a row.
State: none but what was read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from multissl.contract.data import Sample, Samples, Unreadable
from multissl.random import RowRandom
from multissl.sources.copies import IN_MEMORY, Copies, split_together

CELLS = 4
"""Labels are the cells of a grid of CELLS x CELLS over the first two values of the state."""


@dataclass(kw_only=True)
class Replay:
    """Episodes one after the other; `start` [E+1] is where each begins."""

    frames: np.ndarray
    """uint8 [S, H, W] or [S, H, W, C]; float32 [S, N] where observations are numbers."""
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
    columns: tuple[str, ...] = ()
    """Names of the numbers of a row; empty where frames are pictures."""
    rewards: np.ndarray | None = None
    """float32 [S], what the action of each frame earned."""
    terminated: np.ndarray | None = None
    """bool [S], True where the action of a frame ended its episode by the rules of the environment."""
    truncated: np.ndarray | None = None
    """bool [S], True where it was ended from outside, such as by a limit of time."""
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
        """An episode's mean frame, float32 [H, W], [H, W, C] or [N]; kept."""
        if episode not in self.means:
            first, last = self.start[episode], self.start[episode + 1]
            self.means[episode] = self.frames[first:last].mean(0, dtype=np.float32)
        return self.means[episode]

    def stack(self, episode: int, t: int, k: int) -> np.ndarray:
        """Frames t-k+1 to t of an episode, [k, ...]; never of the episode before."""
        first = int(self.start[episode])
        return self.frames[np.maximum(np.arange(first + t - k + 1, first + t + 1), first)]

    def between(self, episode: int, t: int, h: int) -> np.ndarray:
        """The h actions that lead from frame t to frame t+h, float32 [h, A]; chosen ones as one of A."""
        first = int(self.start[episode]) + t
        actions = self.actions[first : first + h]
        return np.eye(self.num_actions, dtype=np.float32)[actions] if self.num_actions else actions

    def states_ahead(self, steps: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the states so many steps later, float32 [S, n], NaN beyond the episode's end, and their names.

        n = 0 where nothing is known.
        """
        if self.states is None:
            return np.zeros((len(self.frames), 0), np.float32), ()
        if not steps:
            return self.states, self.names
        later = np.full_like(self.states, np.nan)
        for first, last in itertools.pairwise(self.start.tolist()):
            if last - first > steps:
                later[first : last - steps] = self.states[first + steps : last]
        return later, tuple(f"{name}+{steps}" for name in self.names)


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
