"""When the frames of a video are shown: by the clock of its container where that can be believed, else by their number.

Containers stamp packets in the order of decoding. A stamp may be missing (MPEG streams, raw H.264) or nonsense, and a
clock may start anew where files were put together or a counter of 33 bits ran over. A few frames without a good stamp
get a time between or beside their neighbors; where they are many, frames are counted and come at the rate of the file.
Shapes: T frames, in the order in which they are shown.  State: none.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RATE = 25.0
"""Frames per second of what has no clock of its own: folders of frames, arrays, files that name no rate."""
SLOWEST, FASTEST = 0.1, 1000.0
"""Frames per second that are believed: of a file's rate, and at most of its clock."""
PAUSE, GAPS = 3600.0, 100
"""The longest time between frames that is believed: seconds, or so many times the usual where that is more."""
LOST = 0.1
"""Share of the frames whose stamps may be wrong in a clock that is believed."""
INDEXED = frozenset(("mov", "matroska", "avi"))
"""Formats that list their frames. The others, MPEG streams, are searched for them, and where several small frames share
a packet they may be stamped alike and late: such frames are counted."""
REORDERED = 16
"""Frames by which the orders of decoding and of showing differ at most (H.264 and H.265)."""


class Clock(NamedTuple):
    """When frames are shown, and how they are found."""

    times: np.ndarray
    """float64 [T], ascending, in seconds."""
    stamps: np.ndarray | None
    """int64 [T] by which the container knows them, ascending; None where frames are counted."""


def read_clock(stream: Any) -> Clock:
    """Return the clock of a video stream of PyAV, by listing the packets of its container."""
    packets = [p.pts for p in stream.container.demux(stream) if p.size]
    base, rate = float(stream.time_base or 1), _rate(stream)
    stamps = _believed(packets, base, rate, is_indexed(stream.container))
    if stamps is None:
        return Clock(np.arange(len(packets)) / rate, None)
    return Clock((stamps - stamps[0]) * base, stamps)


def is_indexed(container: Any) -> bool:
    """Return whether a container of PyAV lists its frames."""
    return not INDEXED.isdisjoint(container.format.name.split(","))


def runs_well(times: np.ndarray) -> bool:
    """Return whether times [T] can be those of a video: finite and ascending, without impossible pauses or haste."""
    gaps = np.diff(times)
    if not np.isfinite(times).all() or (gaps < 0).any():
        return False
    steps = gaps[gaps > 0]
    if len(steps) < (1 - LOST) * len(gaps):
        return False
    return not len(steps) or bool(steps.max() <= _longest(steps) and len(steps) <= FASTEST * steps.sum())


def _longest(gaps: np.ndarray) -> float:
    return max(PAUSE, GAPS * float(np.median(gaps)))


def _rate(stream: Any) -> float:
    """Return the rate that a stream and its codec name, the middle one where they differ, of those that can be one."""
    named = (stream.average_rate, stream.guessed_rate, stream.codec_context.framerate)
    rates = [float(rate) for rate in named if rate and SLOWEST <= rate <= FASTEST]
    return statistics.median_low(rates) if rates else RATE


def _believed(packets: Sequence[int | None], base: float, rate: float, indexed: bool) -> np.ndarray | None:
    """Return ascending stamps of the frames, or None where those of the packets cannot be believed.

    packets: stamps in the order of decoding, None where missing; base: seconds of a tick; rate: frames per second.
    """
    given = np.array([p for p in packets if p is not None], dtype=np.int64)
    stamps = np.unique(given)
    if len(stamps) > 1:  # nonsense lies far away from the others, too far for integers
        gaps = np.diff(stamps.astype(np.float64)) * base
        stamps = max(np.split(stamps, np.flatnonzero(gaps > _longest(gaps)) + 1), key=len)
    given = given[np.isin(given, stamps)]
    order = given.argsort(kind="stable").argsort(kind="stable")
    anew = (abs(order - np.arange(len(given))) > REORDERED).any()  # two clocks, one after the other
    alike = len(given) > len(stamps) and not indexed
    if not len(stamps) or anew or alike or not runs_well((stamps - stamps[0]) * base):
        return None
    lost = len(packets) - len(stamps)
    if lost <= LOST * len(packets):
        return _filled(packets, stamps) if lost else stamps
    # the second of two fields has no stamp: frames are all there where the stamped ones come at the rate
    fields = packets.count(None) == lost and not any(a is b is None for a, b in itertools.pairwise(packets))
    expected = float(stamps[-1] - stamps[0]) * base * rate
    return stamps if fields and expected < (1 + LOST) * len(stamps) else None


def _filled(packets: Sequence[int | None], stamps: np.ndarray) -> np.ndarray:
    """Return the stamps and one more for each packet without: where the others leave room for a frame, and at the ends.

    In a clock with more room than that, which is uneven, what has no stamp is left out, but for the first frames.
    """
    known, ticks = set(stamps.tolist()), stamps - stamps[0]
    lost = [pts not in known for pts in packets]
    step = float(np.median(np.diff(ticks)))
    room = np.rint(np.diff(ticks) / step).astype(np.int64).clip(1) - 1
    even = room.sum() <= sum(lost)
    inside = [np.linspace(ticks[i], ticks[i + 1], room[i] + 2)[1:-1] for i in np.flatnonzero(room) if even]
    outside = sum(lost) - sum(map(len, inside))
    first = min(lost.index(False), outside)
    last = outside - first if even else 0
    before, after = -step * np.arange(first, 0, -1), ticks[-1] + step * np.arange(1, last + 1)
    more = np.rint(np.concatenate([before, *inside, after])).astype(np.int64)
    return np.sort(np.concatenate([ticks, more])) + stamps[0]
