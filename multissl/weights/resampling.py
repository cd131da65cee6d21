"""Position tables and patch kernels on another grid, resampled only where the code they come from does it alike.

Shapes: a position table is [1, 1+N, D], the class token first; D width, C channels, p pixels of a patch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import resample
from multissl.layers.tokenizers import GridTokenizer
from multissl.weights.conventions import Resampling

PROJECTION = "tokenizer.patch_embed.proj.weight"
STEM = re.compile(r"tokenizer\.patch_embed\.stem\.conv\d+\.weight")
"""Names of a transformer's tensors: of its patches or what a stem leaves of them, and of a stem's convolutions."""


def convention_of(encoder: TransformerEncoder) -> Resampling:
    """Return how an encoder resamples its own table."""
    how = encoder.tokenizer.position
    return Resampling(how.offset, how.antialias, "this encoder", how.interpolation)


def alike(one: Resampling, other: Resampling) -> bool:
    """Return whether two codes resample alike."""
    return (*one[:2], one.interpolation) == (*other[:2], other.interpolation)


def fit_positions(
    encoder: TransformerEncoder,
    table: Tensor,
    axes: int,
    theirs: Resampling | None,
    stream: str,
    native: tuple[int, ...] = (),
) -> tuple[Tensor, str]:
    """Return a table of a grid of `axes` on the encoder's grid, and why it must not be used there, or nothing.

    `native` is the grid of the table, () where it is a square or the encoder's own.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, GridTokenizer) or tokenizer.pos_embed is None or len(tokenizer.grid) < 2:
        return table, ""
    *slots, height, width = tokenizer.grid
    rows, shape = tokenizer.class_rows, tokenizer.pos_embed.shape
    old, new = (height, width), (height, width)
    if native and len(native) == 2:
        old = native
    elif table.shape != shape:
        side = math.isqrt(table.shape[1] - rows)
        if axes != 2 or side * side != table.shape[1] - rows:
            return table, ""  # only the square table of pictures tells its grid
        old = (side, side)
    ours, refusal = convention_of(encoder), ""
    seen = encoder.spec.grid[-2:]
    if theirs is None and old != new:
        refusal = _refusal(encoder, old, new, None, stream)
    elif theirs is not None and not alike(theirs, ours) and (old != new or new != seen):
        refusal = _refusal(encoder, old, seen, theirs, stream)
    if table.shape != shape or old != new:
        table = resample(
            table, old, new, ours.offset, ours.antialias, prefix=rows, interpolation=ours.interpolation
        )
        if slots:  # the same in every slot of time
            table = torch.cat([table[:, :rows], table[:, rows:].repeat(1, slots[0], 1)], 1)
    return table, refusal


def _refusal(
    encoder: TransformerEncoder,
    old: tuple[int, ...],
    new: tuple[int, ...],
    theirs: Resampling | None,
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
            f"say whose they are, as in --init dino:FILE (dino, ibot, moco_v3, mae, timm_vit, timm_dinov2), take "
            f"{native}, or keep the table as it is, {option}.grid {kept}, with {option}.offset and "
            f"{option}.antialias as in that code"
        )
    same = f"{option}.offset {theirs.offset} {option}.antialias {theirs.antialias}, or "
    return (
        f"{start}{theirs.whose} with {theirs.offset} and {theirs.antialias}: take "
        f"{'' if slots and theirs.antialias else same}{native}"  # antialias works on two axes
    )


def fit_patches(weight: Tensor, shape: torch.Size) -> tuple[Tensor, list[str]]:
    """Return a kernel of patches [D, C, *patch] in another shape, and what was done; axes that do not fit stay.

    Channels as timm adapts them, patches by FlexiViT's pseudo-inverse, pictures to clips by repeating.
    """
    said: list[str] = []
    if len(shape) == weight.dim() + 1 == 5:
        weight = inflate(weight, shape[2])
        said.append(f"patches of pictures are repeated over {shape[2]} frames")
    if len(shape) == weight.dim() - 1 == 4:
        weight = weight.sum(2)  # as if every frame of a tubelet were the picture
        said.append("patches of clips are summed over their frames")
    if weight.shape[1] != shape[1]:
        said.append(f"patches of {weight.shape[1]} channels are made ones of {shape[1]}")
        weight = adapt_channels(weight, shape[1])
    if len(shape) == weight.dim() == 4 and weight.shape[2:] != shape[2:]:
        old, new = ("x".join(map(str, s[2:])) for s in (weight.shape, shape))
        said.append(f"patches of {old} are resampled to {new} (FlexiViT)")
        weight = resample_patches(weight, (shape[2], shape[3]))
    return weight, said


def check_stems(own: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size], stream: str) -> bool:
    """Return whether a convolutional stem makes the tokens: its kernels are not resampled.

    `own` and `theirs` are the shapes of the encoder's tensors and of the weights', by name. Raises a ValueError where
    one of them alone has a stem, or their stems are of other patches.
    """
    ours, given = (sorted(n for n in shapes if STEM.search(n)) for shapes in (own, theirs))
    if bool(ours) != bool(given):
        has, want = ("a convolutional stem", True) if given else ("no convolutional stem", False)
        raise ValueError(
            f"these weights have {has}: want --encoders.{stream}.conv_stem {want} (here {not want}), or weights of "
            "another encoder"
        )
    kernels = [shapes[PROJECTION][2:] for shapes in (own, theirs) if ours and PROJECTION in shapes]
    if ours != given or len({*kernels}) > 1:
        here, there = (_stem_patch(shapes) for shapes in (own, theirs))
        raise ValueError(
            f"these weights have a convolutional stem for tokens of {there} pixels, here they have {here}: a stem is "
            f"not resampled as patches are. Want tokens as there (--modality.patch {there.split(' ')[0]})"
        )
    return bool(ours)


def _stem_patch(shapes: Mapping[str, torch.Size]) -> str:
    """Return the patch of a stem: every convolution halves it, and the last one takes what is left."""
    halved = 2 ** sum(STEM.search(name) is not None for name in shapes)
    return " x ".join(str(side * halved) for side in shapes[PROJECTION][2:])


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a kernel [D, C, *patch] for other channels, as timm does: summed for one, else repeated and scaled."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    before = weight.shape[1]
    times = [1] * weight.dim()
    times[1] = math.ceil(channels / before)
    return weight.repeat(times)[:, :channels] * (before / channels)


def resample_patches(
    weight: Tensor, size: tuple[int, int], mode: str = "bicubic", antialias: bool = True
) -> Tensor:
    """Return a kernel [D, C, p, p'] of patches of another size, by the pseudo-inverse of resizing a patch.

    FlexiViT (Beyer et al. 2023, arXiv 2212.08013, section 3.4): tokens of a picture that is resized to the new patch
    are those of before where patches grow. timm resizes bicubically with antialias, big_vision bilinearly without.
    """
    old = (weight.shape[2], weight.shape[3])
    if old == size:
        return weight
    unit = torch.eye(math.prod(old), dtype=torch.float64).view(-1, 1, *old)
    resize = torch.nn.functional.interpolate(unit, size=size, mode=mode, antialias=antialias).flatten(
        1
    )  # [p p', q q']
    inverse = torch.linalg.pinv(resize)  # [q q', p p']
    flat = weight.flatten(2).double() @ inverse.mT
    return flat.unflatten(2, size).to(weight.dtype)


def inflate(weight: Tensor, length: int) -> Tensor:
    """Return a kernel of picture patches [D, C, p, p] as one of tubelets [D, C, length, p, p].

    It is repeated along time and divided by the length: a clip that stands still gives the tokens of its picture.
    """
    return weight[:, :, None].repeat(1, 1, length, 1, 1) / length
