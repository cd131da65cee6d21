"""Videos as frames on demand: files by decord or PyAV, folders of frames, arrays of numpy.

`open_clip` says how many frames a video has and when each is shown, `read_frames` decodes some of them. decord is
asked first, it reaches any frame fast; it is not maintained, so PyAV reads where decord is missing or gives up.
Times are those of the file: frames that come at an uneven rate keep their own.
Shapes: T frames, H, W pixels, 3 colours.  State: none.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.modalities import readers
from multissl.modalities.image_files import decode
from multissl.modalities.readers import WORDS, Listing, Paths, Slice
from multissl.modalities.sources import Source, natural_key, open_source, source_of
from multissl.types import Sample, Unreadable

SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".npy")
FRAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
RATE = 25.0
"""Frames a second of what has no clock of its own: folders of frames and arrays."""


class Clip(Protocol):
    """A video that is open."""

    times: np.ndarray
    """float64 [T], ascending: the second at which each frame is shown."""

    def read(self, index: Sequence[int]) -> np.ndarray:
        """The frames of ascending, distinct numbers, uint8 [T, H, W, 3]."""
        ...


def read_frames(data: Any, index: Sequence[int]) -> Tensor:
    """Some frames, in the order asked for, of whatever `open_clip` opens: uint8 [T, 3, H, W]."""
    return frames_of(open_clip(data), index)


def frames_of(clip: Clip, index: Sequence[int]) -> Tensor:
    """Some frames of an open video in the order asked for, uint8 [T, 3, H, W]; each is decoded once."""
    wanted, order = np.unique(np.asarray(index), return_inverse=True)
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(clip.times):
        raise ValueError(f"frames {wanted[0]} to {wanted[-1]} of {len(clip.times)}")
    found = clip.read(wanted.tolist())
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} of the {len(wanted)} frames asked for could be decoded")
    frames = torch.from_numpy(np.ascontiguousarray(found))  # [T, H, W, 3]
    if len(wanted) != len(order) or (np.diff(order) != 1).any():
        frames = frames.index_select(0, torch.from_numpy(order))  # whole frames at a time
    return frames.permute(0, 3, 1, 2)


def load_clip(sample: Sample) -> Clip:
    """The open video of a sample; raises `Unreadable` with its name where it cannot be read."""
    try:
        clip = open_clip(sample.data)
        if len(clip.times) < 2:
            raise ValueError(
                f"{len(clip.times)} frame: a clip needs 2 or more, take modality=image for pictures"
            )
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise unreadable(sample, error) from None
    return clip


def unreadable(sample: Sample, error: Exception) -> Unreadable:
    """The same error as one line that names the file."""
    data = sample.data
    named = str(data) if isinstance(data, str | Path) else data.name if isinstance(data, Slice) else ""
    lines = (str(error) or type(error).__name__).strip().splitlines()
    if isinstance(error, ImportError):  # no fault of the file: say it and stop
        raise error
    return Unreadable(sample.index, f"{named or f'sample {sample.index}'}: {lines[0]}")


def open_clip(data: Any) -> Clip:
    """A path, a member of a shard, the bytes of a file, a folder of frames, an array [T, H, W(, 3)] or a `Clip`."""
    if isinstance(data, np.ndarray):
        return Array(data)
    if hasattr(data, "times"):
        return data
    name = str(data) if isinstance(data, str | Path) else getattr(data, "name", "")
    if isinstance(data, Slice):
        data = data.read()
    if isinstance(data, str | Path):
        if os.path.isdir(data):
            return Folder(str(data))
        if os.path.getsize(data) == 0:
            raise ValueError("the file is empty")
    elif not data:
        raise ValueError("the file is empty")
    if name.endswith(".npy") or (isinstance(data, bytes) and data.startswith(b"\x93NUMPY")):
        return Array(np.load(io.BytesIO(data) if isinstance(data, bytes) else data, allow_pickle=False))
    with contextlib.suppress(Exception):  # PyAV says what is wrong, or reads it
        return Decord(data)
    return PyAV(data)


class Decord:
    """A file by decord; frames that it fails on are asked of PyAV."""

    def __init__(self, data: Any) -> None:
        decord = _decord()
        source = io.BytesIO(data) if isinstance(data, bytes) else str(data)
        self.data, self.reader = data, decord.VideoReader(source, num_threads=1)
        self.times = self.reader.get_frame_timestamp(list(range(len(self.reader))))[:, 0].astype(np.float64)
        if not np.isfinite(self.times).all() or (np.diff(self.times) < 0).any():
            raise ValueError("times run backwards")

    def read(self, index: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        try:
            return self.reader.get_batch(list(index)).asnumpy()
        except Exception:
            return PyAV(self.data).read(index)


def _decord() -> Any:
    """The module, loaded after those that bring the same libraries.

    Its wheels carry codecs of their own; loaded first, they stand in for torchvision's and PyAV's, which then cannot
    decode PNG or write webm.
    """
    from torchvision.io import decode_image  # noqa: F401

    with contextlib.suppress(ImportError):
        registry.require("av")
    decord = registry.require("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class PyAV:
    """A file by PyAV: packets are listed once, frames decoded from the key frame before the first one wanted."""

    def __init__(self, data: Any) -> None:
        self.data = data
        with self._open() as container:
            if not container.streams.video:
                raise ValueError("no video in it")
            stream = container.streams.video[0]
            stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None and p.size)
            self.base = float(stream.time_base or 1)
        self.stamps = np.unique(np.array(stamps, dtype=np.int64))
        if not len(self.stamps):
            raise ValueError("no frames in it")
        self.times = (self.stamps - self.stamps[0]) * self.base

    def _open(self) -> Any:
        av = registry.require("av")
        return av.open(io.BytesIO(self.data) if isinstance(self.data, bytes) else str(self.data))

    def read(self, index: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        wanted = {int(self.stamps[i]): n for n, i in enumerate(index)}
        found: dict[int, np.ndarray] = {}
        last = int(self.stamps[index[-1]])
        with self._open() as container:
            stream = container.streams.video[0]
            container.seek(int(self.stamps[index[0]]), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    found[wanted[frame.pts]] = frame.to_ndarray(format="rgb24")
                if frame.pts is not None and frame.pts >= last:
                    break
        if len(found) < len(wanted):
            raise ValueError(f"{len(found)} of the {len(wanted)} frames asked for could be decoded")
        return np.stack([found[n] for n in range(len(wanted))])


class Folder:
    """A folder whose pictures are the frames, in the order of `natural_key`: frame2 before frame10."""

    def __init__(self, path: str) -> None:
        names = sorted((n for n in os.listdir(path) if n.lower().endswith(FRAMES)), key=natural_key)
        self.paths = [os.path.join(path, n) for n in names]
        self.times = np.arange(len(self.paths)) / RATE

    def read(self, index: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        frames = []
        for i in index:
            pixels = decode(Path(self.paths[i]).read_bytes(), 3)
            if pixels.dtype != torch.uint8:
                raise ValueError(f"{os.path.basename(self.paths[i])} has 16 bits a colour: want 8")
            if frames and pixels.shape[1:] != frames[0].shape[:2]:
                raise ValueError(
                    f"{os.path.basename(self.paths[i])} has another size than the frames before it"
                )
            frames.append(pixels.permute(1, 2, 0).numpy())
        return np.stack(frames)


class Array:
    """Frames in memory: uint8 [T, H, W], [T, H, W, 1] or [T, H, W, 3]."""

    def __init__(self, frames: np.ndarray) -> None:
        if frames.ndim == 3:
            frames = frames[..., None]
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3) or not frames.size:
            raise ValueError(
                f"{frames.dtype} array of shape {frames.shape}: want uint8 [T, H, W] or [T, H, W, 3]"
            )
        self.frames, self.times = frames, np.arange(len(frames)) / RATE

    def read(self, index: Sequence[int]) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        some = self.frames[list(index)]
        return some if some.shape[-1] == 3 else some.repeat(3, -1)


def open_videos(path: str, split: str) -> Source:
    """The videos of a split: files as `open_source` finds them, else every folder that holds pictures."""
    if os.path.isdir(path):
        names = [os.path.join(at, n) for at, _, files in os.walk(path) for n in files]
        if not any(n.lower().endswith((*SUFFIXES, ".tar", ".parquet")) for n in names):
            folders = sorted(
                {os.path.dirname(os.path.relpath(n, path)) for n in names if n.lower().endswith(FRAMES)}
            )
            if folders:
                try:
                    return source_of(frame_folders(path, folders), split)
                except ValueError as error:
                    raise ValueError(f"modality.data={path!r}: {error}") from None
    return open_source(path, split, SUFFIXES, kind="video")


def frame_folders(root: str, folders: list[str]) -> Listing:
    """Folders of frames below a root, `[split/][class/]video`, as a listing."""
    if "" in folders:
        raise ValueError("pictures lie in the folder itself: want a folder of frames for each video below it")
    parts = [f.split(os.sep) for f in folders]
    tags = [WORDS.get(p[0].lower(), "") if len(p) > 1 else "" for p in parts]
    tagged = "" not in tags
    labels = readers.class_folders([p[1:] for p in parts] if tagged else parts)
    return Listing(Paths(root, folders), labels, tags if tagged else [""] * len(tags))
