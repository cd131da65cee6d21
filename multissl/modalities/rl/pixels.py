"""Where the picture of an observation is, and how its array lies: layouts, spaces, brightness as whole bytes.

A layout is written in letters, one per axis: h and w are the picture's rows and columns, c its colors (1, 3, or 4 for
RGBA, of which the alpha is dropped), s the frames of a stack, oldest first, as gymnasium and Stable-Baselines3 stack
them. Where "sc" stands for a single axis, its colors lie in threes. A stack is read as its newest frame, because
replays keep single frames and stack them again on read.
Where no layout is given, the shape tells it: a leading or trailing axis shorter than the picture's sides holds colors
if it is 1 or 3 long, color frames if it is a multiple of 3, else gray frames. What then fits twice is refused.
Shapes: T observations, H, W pixels, C colors.  State: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch

from multissl import registry
from multissl.registry import suggest

RENDER = "render"
"""The layout of pictures that the environment draws, whatever it observes."""
VECTOR = "vector"
"""The layout of observations that are read as numbers, whatever they hold."""
COLORS = (1, 3, 4)


def check_layout(layout: str) -> None:
    """Refuse a layout that names no picture."""
    letters = {*layout}
    if layout in ("", RENDER, VECTOR) or (len(letters) == len(layout) and {*"hw"} <= letters <= {*"schw"}):
        return
    raise ValueError(
        f"modality.layout={layout!r}: want h and w, with c (colors) and s (frames of a stack) where there are any,"
        f" each once and in the order of the axes, such as chw; or {RENDER}, {VECTOR}, or nothing"
    )


def layout_of(shape: Sequence[int], *, rgba: bool = False) -> str:
    """Return the layout of a picture's array of this shape, or refuse where several fit.

    `rgba` says that four channels at the end are colors with alpha; they may be four gray frames as well.
    """
    if len(shape) == 2:
        return "hw"
    if len(shape) == 3:
        return _layout_of_three(shape, rgba)
    fits = [
        layout
        for layout in ("shwc", "schw")
        if len(shape) == 4
        and shape[layout.index("c")] in COLORS
        and max(shape[0], shape[layout.index("c")]) < min(shape[layout.index("h")], shape[layout.index("w")])
    ]
    if len(fits) == 1:
        return fits[0]
    raise ValueError(_ambiguous(shape, _fitting(shape)))


def _layout_of_three(shape: Sequence[int], rgba: bool) -> str:
    # an axis of up to four may hold colors though the picture is smaller still
    ends = [axis for axis in (0, 2) if shape[axis] <= 4 or shape[axis] < min(shape[2 - axis], shape[1])]
    if len(ends) != 1:
        raise ValueError(_ambiguous(shape, _fitting(shape)))
    (axis,) = ends
    plain, gray, colored = ("chw", "shw", "schw") if axis == 0 else ("hwc", "hws", "hwsc")
    count = shape[axis]
    if count in (1, 3) or (count == 4 and axis == 2 and rgba):
        return plain
    if count == 4:  # RGBA, or four gray frames
        raise ValueError(_ambiguous(shape, [plain, gray]))
    return gray if count % 3 else colored


def _fitting(shape: Sequence[int]) -> list[str]:
    """The layouts that an array of this shape may have."""
    letters = {3: ("chw", "shw"), 4: ("schw",)}.get(len(shape), ())
    orders = ["".join(order) for some in letters for order in permutations(some)]
    return [
        o for o in orders if o.index("h") < o.index("w") and ("c" not in o or shape[o.index("c")] in COLORS)
    ]


def _ambiguous(shape: Sequence[int], layouts: Sequence[str]) -> str:
    if not layouts:
        return f"pictures of shape {tuple(shape)} are none: want rows and columns, with colors or frames of a stack"
    return (
        f"pictures of shape {tuple(shape)} may lie in several ways (h, w, c colors, s frames of a stack): say how with"
        f" --modality.layout {' or '.join(layouts)}"
    )


def newest(array: np.ndarray, layout: str) -> np.ndarray:
    """Return the newest frame of each of the T pictures of an array [T, ...], as [T, H, W] or [T, H, W, 3]."""
    shape = array.shape[1:]
    if "sc" in layout and len(shape) == len(layout) - 1:  # both share an axis: unfold it
        at = layout.index("sc")
        if shape[at] % 3:
            raise ValueError(f"modality.layout={layout}: an axis of {shape[at]} cannot hold colors in threes")
        array = array.reshape(*array.shape[: at + 1], -1, 3, *shape[at + 1 :])
    if array.ndim != len(layout) + 1:
        raise ValueError(f"modality.layout={layout}: the pictures have shape {shape}, another number of axes")
    if "s" in layout:
        array = array.take(-1, axis=layout.index("s") + 1)
        layout = layout.replace("s", "")
    order = [layout.index(axis) + 1 for axis in "hwc" if axis in layout]
    array = array.transpose(0, *order)
    if "c" not in layout:
        return array
    if array.shape[-1] not in COLORS:
        raise ValueError(f"modality.layout={layout}: {array.shape[-1]} colors, want 1, 3 or 4 (RGBA)")
    return array[..., 0] if array.shape[-1] == 1 else array[..., :3]


def as_bytes(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return brightness between low and high as uint8, 0 to 255."""
    if array.dtype == np.uint8 and (low, high) == (0, 255):
        return array
    values = array.astype(np.float32)
    slack = 1e-3 * (high - low)
    if not np.isfinite(values).all() or values.min() < low - slack or values.max() > high + slack:
        raise ValueError(
            f"pixels reach from {values.min():g} to {values.max():g}, their space says {low:g} to {high:g}:"
            " mend its bounds"
        )
    return (255 * (values.clip(low, high) - low) / (high - low)).round().astype(np.uint8)


def shrink(picture: np.ndarray, size: int, channels: int) -> np.ndarray:
    """A picture [H, W(, 3)] averaged to [size, size] gray levels, or [size, size, 3] colors; uint8."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).float()
    x = x[None] if x.ndim == 2 else x.movedim(-1, 0)[:3]  # [c, H, W]
    if channels == 1 and len(x) == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    x = torch.nn.functional.interpolate(x[None], (size, size), mode="area")[0].round_().byte()
    return (x.expand(3, -1, -1).movedim(0, -1) if channels == 3 else x[0]).numpy()


def shrunk(frames: np.ndarray, side: int, channels: int) -> np.ndarray:
    """Return pictures [T, H, W(, 3)] of this side, gray or in colors: averaged, but for those that are so already."""
    if frames.shape[1:3] == (side, side) and (frames.ndim == 4) == (channels == 3):
        return frames
    return np.stack([shrink(frame, side, channels) for frame in frames])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """Which entry of an observation is the picture, and how it lies there."""

    path: tuple[Any, ...]
    """Keys that lead to it through Dict and Tuple spaces; empty where the observation is the picture."""
    shape: tuple[int, ...]
    layout: str
    low: float
    high: float
    declared: bool
    """Whether the layout was given; else four channels are RGBA until the fourth turns out to be no alpha."""

    def entry(self, observation: Any) -> np.ndarray:
        """Return the entry that is the picture, of one observation or of many in one array per entry."""
        for key in self.path:
            observation = observation[key]
        return np.asarray(observation)

    def frames(self, pictures: np.ndarray) -> np.ndarray:
        """Return uint8 [T, H, W] or [T, H, W, 3] of the pictures of T observations."""
        if pictures.shape[1:] != self.shape:
            raise ValueError(
                f"a picture has shape {pictures.shape[1:]}, its space says {self.shape}: mend the space"
            )
        if self.layout == "hwc" and self.shape[-1] == 4 and not self.declared:
            alpha = pictures[..., 3:]
            if alpha.min() != alpha.max() and (pictures != alpha).any():
                raise ValueError(
                    f"pictures of shape {self.shape} are no RGBA, as the fourth channel is a picture too: say"
                    " --modality.layout hws for a stack of four gray frames, or hwc to leave it out"
                )
        return as_bytes(newest(pictures, self.layout), self.low, self.high)


def sight_of(space: Any, layout: str = "", entry: str = "", single: Any = None) -> Sight | None:
    """Return where the picture of an observation space is; None where it holds none.

    Pictures are boxes of bytes, or of numbers between 0 and 1 or 255, with two axes or more; with a layout or the name
    of an entry any such box with bounds. `single` is the space of one frame of a known stack.
    """
    boxes = {".".join(map(str, path)): (path, box) for path, box in _boxes(space)}
    if entry and entry not in boxes:
        raise ValueError(f"modality.entry={entry!r} is no picture of {space}{suggest(entry, boxes)}")
    names = [entry] if entry else [name for name, (_, box) in boxes.items() if _is_picture(box)]
    names = names or ([*boxes] if layout else [])
    if not names:
        if layout:
            raise ValueError(
                f"modality.layout={layout}: {space} holds no picture; --modality.layout {RENDER} draws"
            )
        return None
    if len(names) > 1:
        raise ValueError(
            f"observations hold the pictures {', '.join(names)}: say which with --modality.entry {names[0]}"
        )
    path, box = boxes[names[0]]
    low, high = float(box.low.min()), float(box.high.max())
    if not np.isfinite([low, high]).all() or low >= high:
        raise ValueError(
            f"pixels between {low:g} and {high:g} have no brightness: give the space bounds, or"
            f" --modality.layout {RENDER} for what the environment draws"
        )
    inner = dict(_boxes(single)).get(path) if single is not None else None
    if not layout and inner is not None and inner.shape == box.shape[1:]:
        stacked = "s" + layout_of(inner.shape, rgba=True)
        return Sight(path=path, shape=box.shape, layout=stacked, low=low, high=high, declared=False)
    lies = layout or layout_of(box.shape, rgba=True)
    return Sight(path=path, shape=box.shape, layout=lies, low=low, high=high, declared=bool(layout))


def _boxes(space: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The boxes of two to four axes in a space, each with the keys that lead to it."""
    spaces = registry.require("gymnasium").spaces
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _boxes(part, (*path, key))
    elif isinstance(space, spaces.Box) and 2 <= len(space.shape) <= 4:
        yield path, space


def _is_picture(box: Any) -> bool:
    if box.dtype == np.uint8:
        return True
    return bool((box.low == 0).all() and ((box.high == 1).all() or (box.high == 255).all()))
