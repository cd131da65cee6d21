"""What pictures or clips released weights want to see: their size, patches, and constants of normalization.

What a library says beside the weights comes first (Hugging Face's `preprocessor_config.json`, timm's `pretrained_cfg`),
then the table of released models by the file's name, then what tensors and `config.json` tell. What nobody says is
224 pixels and ImageNet's constants, and that is said.
Shapes: T, H, W tokens of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from multissl.weights.containers import PREPROCESSOR, Source, read_config
from multissl.weights.conventions import Context
from multissl.weights.loading import OFFICIAL_PATCHES, published_layout
from multissl.weights.released import released_as
from multissl.weights.unwrapping import unwrap

USUAL_SIZE, USUAL_ZOOM = 224, 256 / 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Inputs(NamedTuple):
    """What weights want to see."""

    size: int
    """Side of a picture or frame in pixels, a multiple of the patch."""
    patch: tuple[int, ...]
    """Pixels of a token along each axis, (H, W) or with frames (T, H, W); () where nothing tells."""
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zoom: float
    """The short side of a picture before its center is cut out, over the size."""
    said_by: str
    """Who says so, for messages."""


def inputs_of(source: Source) -> Inputs:
    """Return what the weights of a place want to see, as far as they are a network of pictures or clips."""
    config = source.config
    kernel = patches_of(source)
    patch = tuple(kernel.shape[2:]) if kernel is not None else config_patch(config)
    channels = kernel.shape[1] if kernel is not None else int(config.get("num_channels", 3))
    beside = _from_preprocessor(source) or _from_timm(config) or _from_table(source) or _from_config(config)
    size, zoom, mean, std, said_by = beside or (
        USUAL_SIZE, USUAL_ZOOM, *IMAGENET, "nobody: 224 pixels and ImageNet's constants are assumed"
    )  # fmt: skip
    square = patch[-1] if patch else 1
    if len(mean) != channels:
        mean, std = (), ()
    return Inputs(max(size // square, 1) * square, patch, channels, mean, std, zoom, said_by)


def patches_of(source: Source) -> Tensor | None:
    """Return the kernel that makes tokens of patches [D, C, ...], None where no layout of transformers is known."""
    network = unwrap(source.contents)
    if not network.state:
        return None
    layout = published_layout(network, source.layout, source.config, source.path)
    if layout is None:
        return None
    return layout.official(network, Context(source.config)).get(OFFICIAL_PATCHES)


def config_patch(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the patch that Hugging Face's `config.json` names, () where it names none."""
    patch = config.get("patch_size")
    if isinstance(patch, int):
        return (patch, patch)
    return tuple(patch) if isinstance(patch, list) else ()


Said = tuple[int, float, tuple[float, ...], tuple[float, ...], str]
"""Size, zoom, mean, std, and who says so."""


def _from_preprocessor(source: Source) -> Said | None:
    if source.path is None:
        return None
    values = read_config(source.path.parent / PREPROCESSOR)
    short, crop = _side(values.get("size")), _side(values.get("crop_size"))
    size = crop if crop and values.get("do_center_crop", True) else short
    if not size:
        return None
    zoom = short / size if short else 1.0
    mean, std = (tuple(map(float, values.get(name) or ())) for name in ("image_mean", "image_std"))
    if not mean or len(mean) != len(std):
        mean, std = IMAGENET
    return size, max(zoom, 1.0), mean, std, PREPROCESSOR


def _side(value: Any) -> int:
    """Return pixels of a size as preprocessors write it: a number, or a mapping; 0 where it is none of these."""
    if isinstance(value, int):
        return value
    if isinstance(value, list) and value:
        return int(value[0])
    if isinstance(value, Mapping):
        return int(next((value[n] for n in ("shortest_edge", "height") if value.get(n)), 0))
    return 0


def _from_timm(config: Mapping[str, Any]) -> Said | None:
    values = config.get("pretrained_cfg")
    if not isinstance(values, Mapping) or not values.get("input_size"):
        return None
    size = int(values["input_size"][-1])
    mean, std = (tuple(map(float, values.get(name) or ())) for name in ("mean", "std"))
    share = float(values.get("crop_pct") or 0.875)
    return size, 1 / share, mean or IMAGENET[0], std or IMAGENET[1], "timm"


def _from_table(source: Source) -> Said | None:
    model = released_as(source.path)
    if model is None:
        return None
    return model.view_size, USUAL_ZOOM, model.mean, model.std, f"the table of released models ({model.name})"


def _from_config(config: Mapping[str, Any]) -> Said | None:
    size = _side(config.get("image_size"))
    if not size or not math.isfinite(size):
        return None
    return (
        size,
        USUAL_ZOOM,
        *IMAGENET,
        "config.json, which has the size alone: ImageNet's constants are assumed",
    )
