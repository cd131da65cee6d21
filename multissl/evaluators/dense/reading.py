"""Tokens on their grid with the labels of the pixels below them, as dense protocols want them.

Labels are those of the clean view, at its size; a published protocol that resizes, slides or pads says another number.
Shapes: S pictures, h x w tokens, D width, H, W pixels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasPixelLabels, PixelLabel
from multissl.contract.data import Unreadable, Views
from multissl.contract.evaluator import Evaluator
from multissl.contract.modality import Modality
from multissl.contract.plans import ViewPlan
from multissl.evaluators.classified import validation_mask
from multissl.inference import Featurize, Tokens, drawn, featurized, sample_name, stream_of

BATCH = 16
"""Pictures that are read at a time."""


class Dense(NamedTuple):
    """Pictures of a split."""

    tokens: Tensor
    """[S, D, h, w]"""
    labels: Tensor
    """uint8 classes or float32 depths [S, H, W]"""
    groups: np.ndarray
    """int64 [S], -1 without one."""
    names: list[str]
    """What they are called in messages."""


def split_training(train: Dense) -> tuple[Dense, Dense]:
    """Return nine tenths of training pictures to learn from, and the tenth that chooses, the same ones every time."""
    tenth = validation_mask(len(train.labels))
    return rows_of(train, ~tenth), rows_of(train, tenth)


def rows_of(pictures: Dense, keep: Tensor) -> Dense:
    """Return some pictures (bool [S])."""
    names = [name for name, kept in zip(pictures.names, keep.tolist(), strict=True) if kept]
    return Dense(pictures.tokens[keep], pictures.labels[keep], pictures.groups[keep.numpy()], names)


def space_of(size: int | tuple[int, int]) -> tuple[int, ...]:
    """Return the height and width that an option asks views of; empty for 0, their own. Raises a ValueError below 0."""
    sides = (size, size) if isinstance(size, int) else size
    if min(sides) < 1 and size != 0:
        raise ValueError(f"size={size}: want 0 (the modality's own) or a number of pixels")
    return sides if size else ()


class WithPooled(Tokens):
    """All tokens of a row, each with the pooled feature beside it."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Return what tells them from tokens alone."""
        return ("tokens", "pooled")

    def __call__(self, views: Views) -> Tensor:
        """Return features [R, N, 2 * D] in fp32."""
        (features,) = self.encoders.encode([views])
        tokens = features.tokens.float()
        beside = features.pooled.float()[:, None].expand(-1, tokens.shape[1], -1)
        return torch.cat([tokens, beside], 2)


def pixel_modality(
    evaluator: Evaluator, modality: Modality, kind: PixelLabel, *splits: str
) -> HasPixelLabels | None:
    """Return the modality where all splits have labels of pixels; None, with a warning, where one has none."""
    word = "masks" if kind == "classes" else "depth maps"
    if not isinstance(modality, HasPixelLabels):
        evaluator.warn_nothing_to_measure(f"{type(modality).__name__.lower()} has no {word}")
        return None
    for split in splits:
        if not modality.with_pixel_labels(split, kind):
            option = "masks" if kind == "classes" else "depths"
            evaluator.warn_nothing_to_measure(
                f"no picture of the {split} split has one of {word} beside it; --modality.{option} OLD=NEW says where "
                "they lie, as images=masks"
            )
            return None
    return modality


def read_dense(
    evaluator: Evaluator, featurize: Featurize, modality: HasPixelLabels, split: str, kind: PixelLabel, *,
    limit: int, size: tuple[int, ...], device: torch.device | str,
) -> Dense:  # fmt: skip
    """Return pictures with labels of a split, `limit` of them (0: all); those that cannot be read are counted and said.

    `featurize` gives tokens [R, N, D] in the order of rows. Raises a ValueError where they are no grid on the picture.
    """
    data, labeled = modality.dataset(split), modality.with_pixel_labels(split, kind)
    labels: dict[int, Tensor] = {}
    reasons: list[str] = []
    for place in (labeled[i] for i in drawn(len(labeled), limit)):
        try:
            labels[place] = modality.pixel_labels(data[place], kind, size)
        except Unreadable as bad:
            reasons.append(bad.reason)
    if not labels:
        raise ValueError(f"none of the labels of pixels of the {split} split can be read: {reasons[0]}")
    made = featurized(
        featurize, modality, split, [*labels], BATCH, device, stream_of(modality, evaluator.cfg.stream),
        ViewPlan(num_clean=1, size=size),
    )  # fmt: skip
    if lost := len(reasons) + len(labels) - len(made.places):
        first = f": {reasons[0]}" if reasons else ""
        evaluator.warn(f"{lost} pictures of the {split} split cannot be read with their labels{first}")
    stacked = torch.stack([labels[place] for place in made.places])
    high, wide = grid_of(made.features.shape[1], *stacked.shape[1:])
    return Dense(
        made.features.transpose(1, 2).unflatten(2, (high, wide)),
        stacked,
        made.groups.numpy(),
        [sample_name(modality, data[place], f"the {split} split") for place in made.places],
    )


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of so many tokens on a picture, square patches without overlap.

    Raises a ValueError where no such grid has so many.
    """
    high = round(math.sqrt(tokens * height / width))
    wide = tokens // max(high, 1)
    if not high or high * wide != tokens or high * width != wide * height or height % high:
        raise ValueError(
            f"{tokens} tokens are no grid of square patches on {height} x {width} pixels: want an encoder that "
            "gives one token for each patch, and a size that patches tile"
        )
    return high, wide


def check_classes(pictures: Dense, classes: int) -> None:
    """Raise a ValueError that names the first picture whose mask holds a class beyond the number of classes."""
    for labels, name in zip(pictures.labels, pictures.names, strict=True):
        known = labels[labels != IGNORED]
        if len(known) and int(known.max()) >= classes:
            raise ValueError(
                f"the mask of {name} holds the class {int(known.max())}, beyond the {classes} of training (0 to "
                f"{classes - 1}): name the number by the option classes, or the value by --modality.ignored"
            )


def count_classes(labels: Tensor) -> int:
    """Return one more than the largest class of masks; 0 where no pixel has one."""
    known = labels[labels != IGNORED]
    return 1 + int(known.max()) if len(known) else 0


def pixels_of_patches(patch: tuple[int, int]) -> Featurize:
    """Return what gives the pixels of every patch as its token: the raw input."""

    def featurize(views: Views) -> Tensor:
        return F.unfold(views.x.float(), patch, stride=patch).transpose(1, 2)  # [R, N, C * p * p]

    return featurize


def raw_patches(modality: Modality, stream: str) -> Featurize | None:
    """Return the raw input of a stream as tokens; None where it has no square patches."""
    patch = modality.streams()[stream_of(modality, stream)].patch
    return pixels_of_patches((patch[0], patch[1])) if len(patch) == 2 else None
