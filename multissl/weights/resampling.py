"""Position tables and patch kernels on another grid, resampled only where the code they come from does it alike.

Shapes: a position table is [1, 1+N, D], the class token first; D width, C channels, p pixels of a patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import resample
from multissl.layers.tokenizers import GridTokenizer


class Convention(NamedTuple):
    """How some code resamples the position table of its models."""

    offset: float
    antialias: bool
    whose: str
    """Where it is known from, for messages."""


def convention_of(encoder: TransformerEncoder) -> Convention:
    """Return how an encoder resamples its own table."""
    how = encoder.tokenizer.position
    return Convention(how.offset, how.antialias, "this encoder")


def fit_positions(
    encoder: TransformerEncoder, table: Tensor, axes: int, theirs: Convention | None, stream: str
) -> tuple[Tensor, str]:
    """Return a table of a grid of `axes` on the encoder's grid, and why it must not be used there, or nothing."""
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, GridTokenizer) or tokenizer.pos_embed is None or len(tokenizer.grid) < 2:
        return table, ""
    *slots, height, width = tokenizer.grid
    old, new = (height, width), (height, width)
    if table.shape != tokenizer.pos_embed.shape:
        side = math.isqrt(table.shape[1] - 1)
        if axes != 2 or side * side != table.shape[1] - 1:
            return table, ""  # only the square table of pictures tells its grid
        old = (side, side)
    ours, refusal = convention_of(encoder), ""
    seen = encoder.spec.grid[-2:]
    if theirs is None and old != new:
        refusal = _refusal(encoder, old, new, None, stream)
    elif theirs is not None and theirs[:2] != ours[:2] and (old != new or new != seen):
        refusal = _refusal(encoder, old, seen, theirs, stream)
    if table.shape != tokenizer.pos_embed.shape:
        table = resample(table, old, new, ours.offset, ours.antialias)
        if slots:  # the same in every slot of time
            table = torch.cat([table[:, :1], table[:, 1:].repeat(1, slots[0], 1)], 1)
    return table, refusal


def _refusal(
    encoder: TransformerEncoder,
    old: tuple[int, ...],
    new: tuple[int, ...],
    theirs: Convention | None,
    stream: str,
) -> str:
    """Return why a table of grid `old` is not resampled to `new`, and what to do instead."""
    ours, option = convention_of(encoder), f"--encoders.{stream}.position"
    high, wide = (n * p for n, p in zip(old, encoder.spec.patch[-2:], strict=True))
    native = f"views of {high} x {wide}" + f" (--modality.size {high})" * (high == wide)
    start = (
        f"the position table of these weights is {old[0]} x {old[1]} and would be resampled to {new[0]} x {new[1]}. "
        f"This encoder does that with position.offset={ours.offset} and position.antialias={ours.antialias}, "
    )
    slots = encoder.tokenizer.grid[:-2]
    if theirs is None:
        kept = " ".join(map(str, (*slots, *old)))
        return (
            f"{start}and their names do not tell how their own code does it (DINO, MAE, timm and others share them): "
            f"take {native}, or keep the table as it is, {option}.grid {kept}, with {option}.offset and "
            f"{option}.antialias as in that code"
        )
    same = f"{option}.offset {theirs.offset} {option}.antialias {theirs.antialias}, or "
    return (
        f"{start}{theirs.whose} with {theirs.offset} and {theirs.antialias}: take "
        f"{'' if slots and theirs.antialias else same}{native}"  # antialias works on two axes
    )


def inflate(weight: Tensor, length: int) -> Tensor:
    """Return a kernel of picture patches [D, C, p, p] as one of tubelets [D, C, length, p, p].

    It is repeated along time and divided by the length: a clip that stands still gives the tokens of its picture.
    """
    return weight[:, :, None].repeat(1, 1, length, 1, 1) / length
