"""A label for every pixel of an image: masks of classes and maps of depth, found by the names of the pictures.

They are cut as the clean view is, by the nearest pixel, so that no label is a mixture of two. Masks are read as they
are stored: the numbers of a palette, never its colors. JPEG is no format of masks.
Shapes: H, W pixels.  State: none.
"""

from __future__ import annotations

import io
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasPixelLabels, PixelLabel
from multissl.contract.data import Sample, Unreadable
from multissl.modalities.image.crops import Cut, center_cut, cut_nearest, pair
from multissl.modalities.image.files import load
from multissl.modalities.image.headers import check_size
from multissl.modalities.image.values import Reading
from multissl.modalities.table_config import TableConfig
from multissl.sources.companions import COLUMNS, USUAL, Rule, companion, companion_column
from multissl.sources.names import natural_key, pick_column
from multissl.sources.payloads import Slice, describe_file
from multissl.sources.reading import read_array, read_file, unreadable_errors

log = logging.getLogger("multissl")
SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".bmp", ".gif")
"""File types of masks and depth maps, the preferred one first."""


@dataclass(kw_only=True, slots=True)
class PixelLabelConfig(TableConfig):
    """Options of masks and depth maps beside pictures."""

    masks: tuple[str, ...] = ()
    """Where the mask of a picture lies, for evaluators that ask: OLD=NEW in its name, as images=masks (a folder) or
    _leftImg8bit=_gtFine_labelIds (the end of the name), or the columns of pictures and masks of a parquet table, as
    image=mask; empty: the usual places."""
    depths: tuple[str, ...] = ()
    """Where the depth map of a picture lies, in the same way."""
    ignored: tuple[int, ...] = (255,)
    """Values of masks that are no class."""
    reduce_zero_label: bool = False
    """Masks have 0 for no class and the classes from 1 on (ADE20K)."""
    depth_unit: float = 1.0
    """What a stored depth of 1 is divided by: 1000 for millimeters in a file, meters in figures."""

    def __post_init__(self) -> None:
        for name in ("masks", "depths"):
            for text in getattr(self, name):
                try:
                    Rule.of(text)
                except ValueError as error:
                    raise ValueError(f"modality.{name}={error}") from None
        if not self.depth_unit > 0:
            raise ValueError(f"modality.depth_unit={self.depth_unit}: want more than 0")


class PixelLabels(HasPixelLabels):
    """The part of the image modality that has labels of pixels."""

    cfg: Any

    @abstractmethod
    def reading(self) -> Reading:
        """Return how the values of pictures are read."""

    def with_pixel_labels(self, split: str, kind: PixelLabel) -> list[int]:
        """Return the positions of pictures with a mask or a depth map; says how many of the others there are."""
        data = self.dataset(split)
        found = [i for i in range(len(data)) if _beside(self.cfg, data[i], kind) is not None]
        if 0 < len(found) < len(data):
            log.warning(
                "%d of %d pictures of the %s split have no %s beside them and are left out",
                len(data) - len(found), len(data), split, _word(kind),
            )  # fmt: skip
        return found

    def pixel_labels(self, sample: Sample, kind: PixelLabel, size: tuple[int, ...] = ()) -> Tensor:
        """Return a mask uint8 [H, W] or a depth map float32 [H, W], cut as the clean view is."""
        cfg, payload = self.cfg, _beside(self.cfg, sample, kind)
        picture = _name(sample.data, f"sample {sample.index}")
        if payload is None:
            raise Unreadable(sample.index, f"{picture} has no {_word(kind)} beside it")
        name = _name(payload, f"the {_word(kind)} of {picture}")
        with unreadable_errors(sample.index, name):
            values = read_labels(payload)
            labels = (
                as_classes(values, cfg.ignored, cfg.reduce_zero_label)
                if kind == "classes"
                else as_depths(values, cfg.depth_unit)
            )
        height, width = load(sample, cfg.channels, self.reading()).shape[1:]
        if labels.shape != (height, width):
            raise Unreadable(
                sample.index,
                f"{name} has {labels.shape[1]} x {labels.shape[0]} pixels, its picture {picture} {width} x {height}: "
                "want equal sizes",
            )
        view = (size[0], size[1]) if size else pair(cfg.size)
        whole = Cut((0, 0, height, width), view, (0, 0))
        cut = whole if cfg.clean_whole else center_cut(height, width, view, cfg.clean_zoom)
        return cut_nearest(labels, cut, view)

    def films(self, split: str) -> list[list[int]]:
        """Return the pictures of every folder of a split, in the order in which people count."""
        data = self.dataset(split)
        folders: dict[str, list[tuple[Any, int]]] = {}
        for place in range(len(data)):
            name = describe_file(data[place].data).get("file", "")
            if name:
                path = PurePosixPath(name)
                folders.setdefault(str(path.parent), []).append((natural_key(path.name), place))
        return [[place for _, place in sorted(frames)] for _, frames in sorted(folders.items())]


def _beside(cfg: Any, sample: Sample, kind: PixelLabel) -> Any:
    """Return the payload of a sample's mask or depth map, None where it has none."""
    typed = [Rule.of(text) for text in (cfg.masks if kind == "classes" else cfg.depths)]
    if sample.beside is not None:
        names = list(sample.beside)
        column = (
            companion_column(names, [typed]) if typed else pick_column(names, COLUMNS[kind], required=False)
        )
        cell = sample.beside[column] if column else None
        # a number is the class of the picture, and a text that nobody calls a file is none
        return cell if isinstance(cell, bytes) or (typed and isinstance(cell, str)) else None
    return companion(sample.data, [typed] if typed else [[Rule.of(t)] for t in USUAL[kind]], SUFFIXES)


def _word(kind: PixelLabel) -> str:
    return "mask" if kind == "classes" else "depth map"


def _name(payload: Any, otherwise: str) -> str:
    if isinstance(payload, Slice):
        return payload.place
    return str(payload) if isinstance(payload, str | PurePath) else otherwise


def read_labels(payload: Any) -> np.ndarray:
    """Return the stored values of a file or its bytes, of one channel [H, W]; those of a palette are its numbers."""
    from PIL import Image

    data = payload.read() if isinstance(payload, Slice) else payload
    data = data if isinstance(data, bytes) else read_file(data)
    if data.startswith(b"\x93NUMPY"):
        values = read_array(data)
    else:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            values = np.asarray(image)
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2:
        raise ValueError(f"its shape is {values.shape}: want one value for each pixel, not colors")
    return values


def as_classes(values: np.ndarray, ignored: Sequence[int] = (), reduce_zero_label: bool = False) -> Tensor:
    """Return classes uint8 [H, W] of stored values, `IGNORED` for those that are no class.

    Raises a ValueError for other numbers than 0 to 254.
    """
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"it holds {values.dtype} numbers: want whole ones")
    values = values.astype(np.int64)
    none = np.isin(values, ignored)
    if reduce_zero_label:
        none, values = none | (values == 0), values - 1
    wrong = ~none & ((values < 0) | (values >= IGNORED))
    if wrong.any():
        raise ValueError(
            f"it holds the class {int(values[wrong][0])}: want 0 to {IGNORED - 1}, or the value among modality.ignored"
        )
    return torch.from_numpy(np.where(none, IGNORED, values).astype(np.uint8))


def as_depths(values: np.ndarray, unit: float) -> Tensor:
    """Return depths float32 [H, W], 0 where they are unknown (0, below 0, or not finite)."""
    depths = np.array(values, dtype=np.float32) / np.float32(unit)
    return torch.from_numpy(np.where(np.isfinite(depths) & (depths > 0), depths, np.float32(0)))
