"""Videos as frames on demand: files by decord or PyAV, folders of frames, arrays of numpy.

`open_clip` says how many frames a video has and when each is shown, `read_frames` decodes some of them. decord is tried
first, as it reaches any frame fast; it is not maintained, so PyAV reads where decord is missing, fails or misreads.
Times are those of the file where they can be believed (`clock`): frames that come at an uneven rate keep theirs.
Shapes: T frames, H, W pixels, 3 colors.  State: none.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.data import Sample, Unreadable
from multissl.modalities.image.files import decode, parts_of
from multissl.modalities.image.headers import check_size
from multissl.modalities.video.clips import Clip
from multissl.modalities.video.clock import RATE, is_indexed, read_clock, runs_well
from multissl.sources.base import USUAL, Listing, Request, TableOptions
from multissl.sources.names import natural_key, read_folders
from multissl.sources.opening import list_source, open_source
from multissl.sources.payloads import Joined, Paths, Slice
from multissl.sources.reading import check_regular, first_line, read_array, read_file
from multissl.sources.remote import local_place
from multissl.sources.shards import shard_formats
from multissl.sources.splits import SplitSamples, select_split
from multissl.sources.walking import walk

SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".npy", ".wmv", ".3gp", ".3g2", ".flv", ".ts",
    ".m2ts", ".mts", ".ogv", ".vob", ".asf", ".m2v", ".mpe", ".f4v",
)  # fmt: skip
FRAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BACK = (0, 50, 500)
"""Frames before the wanted one to which PyAV seeks, one after the other, where a seek leads past it."""
LEAD = 8
"""Frames decoded before the wanted one in formats without an index: the first after a seek may have wrong stamps."""
PACKETS = ((0, 188), (4, 196))
"""Places of the letter G, which begins every packet, in MPEG transport streams of packets of 188 and of 192 bytes."""


def read_frames(data: Any, index: Sequence[int]) -> Tensor:
    """Return some frames of whatever `open_clip` opens, in the order of `index`: uint8 [T, 3, H, W]."""
    return frames_of(open_clip(data), index)


def frames_of(clip: Clip, index: Sequence[int]) -> Tensor:
    """Return some frames of an open video in the order of `index`, each decoded once: uint8 [T, 3, H, W]."""
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
    """Return the open video of a sample; raise `Unreadable` with its name where it cannot be read."""
    try:
        clip = open_clip(sample.data)
        if len(clip.times) < 2:
            raise ValueError(
                f"{len(clip.times)} frame: a clip needs 2 or more, take modality=image for pictures"
            )
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise unreadable(sample, error) from None
    return clip


def examined(sample: Sample) -> tuple[dict[str, float], np.ndarray]:
    """Return what a video holds, and three of its frames as 16 x 16 pixels, float32 [16, 16, 9]."""
    clip = load_clip(sample)
    count = len(clip.times)
    try:
        frames = frames_of(clip, [0, count // 2, count - 1])
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise unreadable(sample, error) from None
    height, width = frames.shape[2:]
    gap = float(clip.times[-1] - clip.times[0]) / (count - 1)
    rate = round(1 / gap, 2) if gap > 0 else 0.0
    extent = {
        "frames": count,
        "seconds": gap * count,
        "frames per second": rate,
        "width": width,
        "height": height,
    }
    return extent, parts_of(frames.flatten(0, 1))


def unreadable(sample: Sample, error: Exception) -> Unreadable:
    """Return an error as `Unreadable`, in one line that names the file."""
    data = sample.data
    named = str(data) if isinstance(data, str | Path) else data.place if isinstance(data, Slice) else ""
    if isinstance(error, ImportError):  # no fault of the file: say it and stop
        raise error
    return Unreadable(sample.index, f"{named or f'sample {sample.index}'}: {first_line(error)}")


def open_clip(data: Any) -> Clip:
    """Open a path, a member of a shard, the bytes of a file, a folder of frames, an array [T, H, W(, 3)], a `Clip`."""
    if isinstance(data, np.ndarray):
        return Array(data)
    if isinstance(data, Clip):
        return data
    name = str(data) if isinstance(data, str | Path) else data.name if isinstance(data, Slice) else ""
    if isinstance(data, Slice):
        data = data.read()
    if isinstance(data, str | Path):
        if os.path.isdir(data):
            return Folder(str(data))
        if check_regular(data) == 0:
            raise ValueError("the file is empty")
    elif not data:
        raise ValueError("the file is empty")
    if name.endswith(".npy") or (isinstance(data, bytes) and data.startswith(b"\x93NUMPY")):
        return Array(read_array(data if isinstance(data, bytes) else read_file(data)))
    _check_frame(data)
    with contextlib.suppress(Exception):  # PyAV says what is wrong, or reads it
        return Decord(data)
    return PyAV(data)


def _check_frame(data: Any) -> None:
    """Raise a ValueError where a frame has more pixels than the limit, by what the file's header says."""
    size = None
    # what is wrong with the file is said by who decodes it
    with contextlib.suppress(Exception), registry.require("av").open(_source(data)) as container:
        context = container.streams.video[0].codec_context
        size = context.width, context.height
    if size:
        check_size(*size)


def _source(data: Any) -> Any:
    """Return what decoders open: the path of a file, or its bytes as a file."""
    return io.BytesIO(data) if isinstance(data, bytes) else str(data)


class Decord(Clip):
    """A file by decord; frames that it fails on are read by PyAV."""

    def __init__(self, data: Any) -> None:
        if _is_mpeg(data):
            raise ValueError("an MPEG stream has no index, by which decord finds its frames")
        decord = _decord()
        self.data, self.reader = data, decord.VideoReader(_source(data), num_threads=1)
        self.times = self.reader.get_frame_timestamp(list(range(len(self.reader))))[:, 0].astype(np.float64)
        if not runs_well(self.times):
            raise ValueError("its clock cannot be believed")

    def read(self, index: Sequence[int]) -> np.ndarray:
        """Return some frames: uint8 [T, H, W, 3]."""
        try:
            return self.reader.get_batch(list(index)).asnumpy()
        except Exception:
            return PyAV(self.data).read(index)


def _is_mpeg(data: Any) -> bool:
    """Return whether a file is an MPEG program or transport stream."""
    if isinstance(data, bytes):
        head = data[:200]
    else:
        with open(data, "rb") as file:
            head = file.read(200)
    return head[:4] == b"\0\0\1\xba" or any(
        head[at : at + 1] == head[far : far + 1] == b"G" for at, far in PACKETS
    )


def _decord() -> Any:
    """Return the module decord, loaded after those that bring the same libraries.

    Its wheels carry codecs of their own; loaded first, they stand in for torchvision's and PyAV's, which then cannot
    decode PNG or write webm.
    """
    from torchvision.io import decode_image  # noqa: F401

    with contextlib.suppress(ImportError):
        registry.require("av")
    decord = registry.require("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class PyAV(Clip):
    """A file by PyAV: packets are listed once, frames decoded from the key frame before the first one wanted.

    Where the clock of the file cannot be believed, frames are counted, and decoded from the first one on.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        with self._open() as container:
            if not container.streams.video:
                raise ValueError("no video in it")
            stream = container.streams.video[0]
            self.times, self.stamps = read_clock(stream)
            self.lead = 0 if is_indexed(container) else LEAD
        if not len(self.times):
            raise ValueError("no frames in it")

    def _open(self) -> Any:
        return registry.require("av").open(_source(self.data))

    def read(self, index: Sequence[int]) -> np.ndarray:
        """Return some frames: uint8 [T, H, W, 3]."""
        found: dict[int, np.ndarray] = {}
        for start in self._starts(index[0]):
            found = self._decode(index, start)
            if index[0] in found:
                break
        if len(found) < len(index):
            raise ValueError(f"{len(found)} of the {len(index)} frames asked for could be decoded")
        return np.stack([found[i] for i in index])

    def _starts(self, first: int) -> Iterator[int | None]:
        """Yield the stamps from which to decode frame `first`, each further back; None is the beginning of the file."""
        if self.stamps is not None:
            yield from (int(self.stamps[first - back]) for back in BACK if self.lead <= back <= first)
        yield None

    def _decode(self, index: Sequence[int], start: int | None) -> dict[int, np.ndarray]:
        """Return the frames of some numbers; none where the seek to `start` fails or leads past the first of them."""
        stamps = [] if self.stamps is None else self.stamps.tolist()
        numbers = {stamp: number for number, stamp in enumerate(stamps)}
        found: dict[int, np.ndarray] = {}
        at = -1 if start is None else None
        with self._open() as container:
            stream = container.streams.video[0]
            if start is not None:
                try:
                    container.seek(start, stream=stream, backward=True)
                except OSError:
                    return found
            for frame in container.decode(stream):
                before = at
                # one without a stamp follows the one before it
                at = numbers.get(frame.pts, None if at is None else at + 1)
                if at is None:
                    continue
                if before is None and at + self.lead > index[0]:
                    break
                if at in index:
                    # as decord does by itself; both then show what a player shows
                    found[at] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                if at >= index[-1]:
                    break
        return found


class Folder(Clip):
    """A folder whose pictures are the frames, in the order of `natural_key`: frame2 before frame10."""

    def __init__(self, path: str) -> None:
        names = sorted((n for n in os.listdir(path) if n.lower().endswith(FRAMES)), key=natural_key)
        self.paths = [os.path.join(path, n) for n in names]
        self.times = np.arange(len(self.paths)) / RATE

    def read(self, index: Sequence[int]) -> np.ndarray:
        """Return some frames: uint8 [T, H, W, 3]."""
        frames = []
        for i in index:
            pixels = decode(read_file(self.paths[i]), 3)
            if pixels.dtype != torch.uint8:
                raise ValueError(f"{os.path.basename(self.paths[i])} has 16 bits per color: want 8")
            if frames and pixels.shape[1:] != frames[0].shape[:2]:
                raise ValueError(
                    f"{os.path.basename(self.paths[i])} has another size than the frames before it"
                )
            frames.append(pixels.permute(1, 2, 0).numpy())
        return np.stack(frames)


class Array(Clip):
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
        """Return some frames: uint8 [T, H, W, 3]."""
        some = self.frames[list(index)]
        return some if some.shape[-1] == 3 else some.repeat(3, -1)


def open_videos(path: str, split: str, table: TableOptions = USUAL) -> SplitSamples:
    """Return the videos of a split: files as `open_source` finds them, and every folder of pictures beside them."""
    place = local_place(path)
    folders = _frame_folders(place) if os.path.isdir(place) else []
    if not folders:
        return open_source(path, split, SUFFIXES, kind="video", table=table)
    try:
        names = [name for name in walk(place) if name.lower().endswith((*SUFFIXES, *shard_formats()))]
        held = set(folders)
        frames = {name for name in walk(place) if os.path.dirname(name) in held}
        if any(name not in frames for name in names):
            files = list_source(Request(place, SUFFIXES, "video", table))
            return select_split(_joined(files, place, folders, len(frames)), split)
        return select_split(frame_folders(place, folders), split)
    except ValueError as error:
        raise ValueError(f"modality.data={path!r}: {error}") from None


def _frame_folders(root: str) -> list[str]:
    """Return the folders below a root that hold pictures and no videos, in order."""
    pictures, films = set[str](), set[str]()
    for name in walk(root):
        if name.lower().endswith(FRAMES):
            pictures.add(os.path.dirname(name))
        elif name.lower().endswith(SUFFIXES):
            films.add(os.path.dirname(name))
    return sorted(pictures - films - ({""} if films or len(pictures) > 1 else set()))


def _joined(files: Listing, root: str, folders: list[str], frames: int) -> Listing:
    """Return the videos that are files and those that are folders of frames, labeled by their paths together."""
    if not isinstance(files.data, Paths):  # shards keep what they say of their samples
        more = frame_folders(root, folders)
        labels, tags = [*files.labels, *more.labels], [*files.tags, *more.tags]
        data: Sequence[Any] = Joined([files.data, more.data])
    else:
        names = [*(os.fsdecode(bytes(name)) for name in files.data.names), *folders]
        labels, tags = read_folders([name.split(os.sep) for name in names])
        data = Paths(root, names)
    left_out = {kind: count for kind, count in files.left_out.items() if kind not in FRAMES}
    return Listing(data, labels, tags, left_out=left_out)


def frame_folders(root: str, folders: list[str]) -> Listing:
    """List folders of frames below a root, `[split/][class/]video`."""
    if "" in folders:
        raise ValueError("pictures lie in the folder itself: want a folder of frames for each video below it")
    labels, tags = read_folders([folder.split(os.sep) for folder in folders])
    return Listing(Paths(root, folders), labels, tags)
