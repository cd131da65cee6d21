"""Images: multi-crop views, block masks and patch targets from photographs or any pixels on a grid.

Crops and colors follow DINOv2 (Oquab et al., TMLR 2024, arXiv 2304.07193) after DINO and BYOL. What an image
shows is settled in the worker on uint8 (decode, crop, bicubic resize with antialias); flip, color, blur,
solarize and normalize run on the device, a batch at a time. Files of 16 bits become floats of 0 to 255 in crops.
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, N tokens, T = C*p*p floats of a
patch. State: means and deviations of the channels, where they were measured on the training data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import ROLES, Batch, Raw, Role, Sample, Samples, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Need
from multissl.contract.plans import Plans, StreamSpec
from multissl.devices import constant
from multissl.modalities.image import files, ops
from multissl.modalities.image.baselines import histogram_floor, pixel_floor
from multissl.modalities.image.crops import (
    TRIES,
    center,
    crop_box,
    pair,
    patchify,
    put,
    resize,
    share_of,
    size_of_plan,
    token_centers,
)
from multissl.modalities.image.draws import draw_blur, draw_changes
from multissl.modalities.image.figures import colors, crop_panel, to_bytes
from multissl.modalities.image.files import SUFFIXES, channel_statistics, load, measure_range, say_once
from multissl.modalities.image.pixel_labels import PixelLabelConfig, PixelLabels
from multissl.modalities.image.preparation import PixelPreparation, preparation_of
from multissl.modalities.image.sizes import check_sizes, sizes_for
from multissl.modalities.image.values import Reading
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.rows import Kind
from multissl.modalities.views import Payloads, build_views, draw_roles, ids_of, with_masks
from multissl.random import RowRandom
from multissl.sources.opening import open_source
from multissl.sources.payloads import describe_file
from multissl.sources.splits import SplitSamples

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BLUR = {
    "official": (0.0, 0.9, 0.5),
    "paper": (1.0, 0.1, 0.5),
    "half": (0.5, 0.5, 0.5),
    "none": (0.0, 0.0, 0.0),
}
LIMITS = {
    **dict.fromkeys(("channels", "mask_group", "mask_smallest", "clean_zoom"), (1, math.inf)),
    **dict.fromkeys(("patch", "blur_kernel"), (0, math.inf)),
    **dict.fromkeys(("flip", "jitter", "grayscale", "solarize", "background"), (0, 1)),
    **dict.fromkeys(("brightness", "contrast", "saturation"), (0, math.inf)),
    "hue": (0, 0.5),
}


class Image(PixelLabels):
    """Image files or arrays as crops."""

    @dataclass(kw_only=True, slots=True)
    class Config(PixelLabelConfig):
        """Options of images."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"grey": "grayscale", "solarise": "solarize"})
        sizes: ClassVar[tuple[str, ...]] = ("size", "local_size", "patch", "blur_kernel")
        sides = ("local_size", "size")

        data: str = ""
        """A folder, list (.txt), table (.csv), .parquet, .tar (a pattern names several), `torchvision:NAME?root=...`
        or `hf:NAME`; empty: the built-in demo of ten motifs."""
        size: int | tuple[int, int] = 224
        """Side of clean and global views in pixels, or their height and width; multiples of patch. 0: the short side of
        the usual training picture, up to 224."""
        local_size: int | tuple[int, int] = 96
        """Side of local views in pixels, or their height and width; multiples of patch. 0: three sevenths of size."""
        patch: int = 16
        """Side of a token, in pixels; 0: 14, or less where that is not a seventh of size."""
        channels: int = 3
        """Channels of a picture: 3 for color, 1 for gray, or as many as the files have."""
        range: tuple[float, ...] = ()
        """What is black and white in pictures of more than 8 bits, floats or signed numbers, as 0 4095; empty: measured
        on the training images."""
        background: float = 1.0
        """Brightness behind what is transparent, 0 to 1."""
        global_scale: tuple[float, float] = (0.32, 1.0)
        """Range of a crop's share of the image area."""
        local_scale: tuple[float, float] = (0.05, 0.32)
        """Smallest and largest area of a local crop, as a fraction of the whole."""
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Range of a crop's width over height, beside that of the view, drawn log-uniformly."""
        flip: float = 0.5
        """Probability, as for jitter, grayscale and solarize."""
        jitter: float = 0.8
        """Probability of changing brightness, contrast, saturation and hue, 0 to 1."""
        brightness: float = 0.4
        """Largest change of brightness as a fraction; 0 leaves it alone."""
        contrast: float = 0.4
        """Largest change of contrast as a fraction; 0 leaves it alone."""
        saturation: float = 0.2
        """Largest change of saturation as a fraction; 0 leaves it alone."""
        hue: float = 0.1
        """Largest turn of the hue as a fraction of the color circle, 0 to 0.5."""
        grayscale: float = 0.2
        """Probability of dropping color, 0 to 1."""
        blur: Literal["official", "paper", "half", "none"] = "official"
        """Probabilities for view 1, view 2 and local views. official: 0, 0.9, 0.5, as the released models were
        trained; paper: 1, 0.1, 0.5; half: 0.5 for all."""
        blur_kernel: int = 9
        """Side of the blur's kernel, in pixels; an odd number. 0: 9, or less in views below 64 pixels."""
        solarize: float = 0.2
        """On the second global view only."""
        mask: Kind = "block"
        """Kind of mask: rectangular blocks, or random tokens."""
        mask_group: int = 32
        """Samples over which mask ratios are spread evenly; the largest divisor of a rank's samples up to it counts."""
        mask_patch: int = 0
        """Side in pixels of the squares that mask=random hides or keeps as a whole (SimMIM: 32); 0: one patch."""
        mask_smallest: int = 4
        """Tokens from which the area of a block of mask=block is drawn up (DINOv2: 4; BEiT, data2vec and iBOT: 16)."""
        mask_reference: bool = False
        """Where a plan asks for targets and a context, draw them as I-JEPA's code does: never from the last row and
        column, contexts cut from the end to the shortest of the batch."""
        mean: tuple[float, ...] = ()
        """Of each channel, values 0 to 1. Empty: ImageNet's for 3 channels, else measured."""
        std: tuple[float, ...] = ()
        """Standard deviation of each channel after scaling to 0 to 1; empty with an empty mean."""
        measure: bool = False
        """Measure mean and std on the training images where 3 channels would take ImageNet's."""
        clean_zoom: float = 256 / 224
        """Clean views: the short side becomes size * clean_zoom (of two, what covers both), then the center is cut out.
        An image that already has the size stays as it is."""
        clean_whole: bool = False
        """Clean views show the whole image, squeezed into the size, instead of its center."""

        def __post_init__(self) -> None:
            PixelLabelConfig.__post_init__(self)
            for name, (low, high) in LIMITS.items():
                if not low <= getattr(self, name) <= high:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want {low:g} to {high:g}")
            for name, top in (("global_scale", 1.0), ("local_scale", 1.0), ("ratio", math.inf)):
                low, high = getattr(self, name)
                if not 0 < low <= high <= top:
                    raise ValueError(f"modality.{name}={low, high}: want 0 < low <= high <= {top:g}")
            if not self.open_sizes():
                check_sizes(self)
            if self.range and (len(self.range) != 2 or not self.range[0] < self.range[1]):
                raise ValueError(
                    f"modality.range={self.range}: want the values of black and white, as 0 4095, or none"
                )
            if len(self.mean) != len(self.std) or len(self.std) not in (0, self.channels) or 0 in self.std:
                given = f"modality.mean={self.mean} modality.std={self.std}"
                raise ValueError(f"{given}: want {self.channels} of each, or none to have them measured")

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"local", "mask", "masks", "drop", "target", "coords", "size", "larger"}
    )
    suffixes = SUFFIXES
    plural = "images"
    columns = ("image", "image_bytes", "img", "picture", "image_path")

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._sources: dict[str, SplitSamples] = {}
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._range: tuple[float, ...] | None = cfg.range or None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}  # a worker gets its samples by itself

    def streams(self) -> dict[str, StreamSpec]:
        """One grid of pixels."""
        if self.cfg.open_sizes():
            raise self.not_fitted()
        c, (height, width), p = self.cfg.channels, pair(self.cfg.size), self.cfg.patch
        names = ("red", "green", "blue") if c == 3 else ()
        tokens = (height // p) * (width // p)
        spec = StreamSpec(
            kind="grid", shape=(c, height, width), patch=(p, p), num_tokens=tokens, target_dim=c * p * p, channels=names
        )  # fmt: skip
        return {"image": spec}

    def dataset(self, split: str) -> Samples:
        """The images of a split: "train", "val", "test", or "all" of the user's data."""
        if split not in self._sources:
            data = self.cfg.data
            table = self.cfg.table_options()
            self._sources[split] = open_source(data, split, SUFFIXES, table=table) if data else _demo(split)
        return self._sources[split]

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return the files; of the built-in pictures, which are drawn, none is a copy."""
        return super().contents(split) if self.cfg.data else []

    def thumbnail(self, sample: Sample) -> np.ndarray | None:
        """Return an image as 16 x 16 pixels, float32 [16, 16, C]; None where it cannot be read."""
        return files.thumbnail(sample, self.cfg.channels, self.reading())

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return width and height in pixels."""
        return self.examined(sample)[0]

    def examined(self, sample: Sample) -> tuple[dict[str, float], np.ndarray | None]:
        """Return width and height in pixels of an image that is decoded once, and its thumbnail."""
        return files.examined(sample, self.cfg.channels, self.reading())

    def shown(self) -> dict[str, tuple[float, str]]:
        """Return width and height in pixels."""
        height, width = pair(self.cfg.size)
        return {"width": (width, "size"), "height": (height, "size")}

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Decode and crop: uint8 [V*B, C, H, W] by role, masks, and who the samples are."""
        plan, cfg, count = plans["image"], self.cfg, len(samples)
        whole = size_of_plan(plan, pair(cfg.size), cfg.mask_patch or cfg.patch)
        scales = {"global": cfg.global_scale, "local": cfg.local_scale}
        draws = {role: rng.fork(role).rand(plan.count(role), TRIES, 4) for role in ROLES}
        boxes = {role: torch.zeros(count, plan.count(role), 4) for role in ROLES}
        raw: Raw = {}
        for b, sample in enumerate(samples):
            image = load(sample, cfg.channels, self.reading())
            height, width = image.shape[1:]
            if plan.num_clean and not cfg.clean_whole and max(height, width) > 2 * min(height, width):
                notice = f"an image of {width} x {height} pixels is judged by its center"
                say_once("long", f"{notice}; modality.clean_whole=True squeezes all of it into the view")
            for role in ROLES:
                size = pair(cfg.local_size) if role == "local" else whole
                ratio = [each * (size[1] / size[0]) for each in cfg.ratio]
                for v, draw in enumerate(draws[role][b].tolist()):
                    if role == "clean":
                        crop = (
                            resize(image, (0, 0, height, width), size)
                            if cfg.clean_whole
                            else center(image, size, cfg.clean_zoom)
                        )
                    else:
                        box = crop_box(height, width, draw, scales[role], ratio)
                        crop = resize(image, box, size)
                        if plan.larger and role == "global":
                            detail = resize(image, box, (plan.larger[0], plan.larger[1]))
                            put(raw, "larger", detail, v * count + b, plan.num_global * count)
                        boxes[role][b][v] = share_of(box, height, width)
                    put(raw, role, crop, v * count + b, plan.count(role) * count)
        if plan.mask_ratio is not None and plan.num_global:
            square = (cfg.mask_patch or cfg.patch) // cfg.patch
            masks = draw_masks(
                plan,
                cfg.mask,
                (whole[0] // cfg.patch, whole[1] // cfg.patch),
                cfg.mask_group,
                rng.fork("masks"),
                square,
                reference=cfg.mask_reference,
                smallest=cfg.mask_smallest,
            )
            with_masks(raw, masks)
        if plan.coords:  # [V*B, 4]
            raw |= {f"{role}_box": box.transpose(0, 1).flatten(0, 1) for role, box in boxes.items()}
        return {"image": raw | ids_of(samples)}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Everything photometric, on the device of the crops; what is drawn on the host goes there in one copy."""
        crops, plan = raw["image"], plans["image"]
        device = crops["sample_id"].device
        mean, std = (constant(values, device) for values in self.statistics())
        batch: list[Views] = []
        for role, drawn in draw_roles(plan, crops, rng, self._draw).items():
            if role == "clean":
                x = ops.normalize(torch.div(crops[role].contiguous(), 255), mean, std)
            else:
                x = ops.photometric(crops[role], drawn, mean, std, self.cfg.blur_kernel)
            views = build_views(x, "image", role, crops)
            if plan.coords and role != "clean":
                grid = (x.shape[-2] // self.cfg.patch, x.shape[-1] // self.cfg.patch)
                views.coords = token_centers(crops[f"{role}_box"], grid, drawn["flip"])
            if plan.larger and role == "global":
                plain = ops.normalize(torch.div(crops["larger"].contiguous(), 255), mean, std)
                views.larger = ops.apply_to(plain, drawn["flip"], ops.flip)
            if plan.target and role == "global":
                views.target = patchify(x, self.cfg.patch)
            batch.append(views)
        return Batch(batch)

    def _draw(self, role: Role, count: int, rng: RowRandom) -> dict[str, Tensor]:
        """Return what changes so many views of a role, tensors [V*B, ...] by name; clean views stay."""
        if role == "clean":
            return {}
        changes = draw_changes(self.cfg, role, count, rng)
        if self.cfg.blur == "none":
            return changes
        one, two, local = BLUR[self.cfg.blur]
        chances = [local] * count if role == "local" else [(one, two)[v % 2] for v in range(count)]
        return changes | draw_blur(chances, rng)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, values 0 to 1; measured once where they are not given."""
        self.fit()
        assert self._statistics
        return self._statistics

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Take sizes and statistics of the channels, where they are not given, from the training images."""
        cfg = self.cfg
        if self._range is None:
            data = Payloads(payloads) if payloads is not None else self.dataset("train") if cfg.data else ()
            self._range = measure_range(data, cfg.channels)
        self.choose_sizes(payloads, said=bool(self.cfg.data))
        if self._statistics is None and cfg.mean:
            self._statistics = (cfg.mean, cfg.std)
        elif self._statistics is None and cfg.channels == 3 and not cfg.measure:
            self._statistics = IMAGENET
        elif self._statistics is None:
            data = self.dataset("train") if payloads is None else Payloads(payloads)
            self._statistics = channel_statistics(data, cfg.channels, self.reading())
        return self

    def sizes_of(self, payloads: Sequence[Any] | None) -> tuple[dict[str, Any], str]:
        """Return the sizes that suit up to 64 training images, by their headers."""
        data = self.dataset("train") if payloads is None else Payloads(payloads)
        return sizes_for(data, self.cfg, self.reading())

    def reading(self) -> Reading:
        """Return how the values of pictures are read, as given, measured or restored."""
        low, high = self._range or (0.0, 0.0)
        return Reading(low, high, self.cfg.background, given=bool(self.cfg.range))

    def preparation(self, stream: str) -> PixelPreparation:
        """Return how pictures of the right size become clean views."""
        return preparation_of(self.cfg, *self.statistics())

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        """Pixels, and histograms of gradients and colors."""
        mean, std = self.statistics()
        return {
            "raw": functools.partial(pixel_floor, mean=mean, std=std),
            "hog": functools.partial(histogram_floor, mean=mean, std=std),
        }

    def describe(self, sample: Sample) -> dict[str, str]:
        """Return the file of a sample."""
        return describe_file(sample.data)

    def figures(self, batch: Batch) -> list[Figure]:
        """The views of some samples with their masks."""
        return crop_panel([v for v in batch if v.stream == "image"], *self.statistics(), self.cfg.patch)

    def pictures(self, views: Views) -> np.ndarray:
        """Clean views as pictures, uint8 [R, H, W, 3]."""
        return to_bytes(colors(views.x, *self.statistics()))

    def state(self) -> dict[str, Any]:
        """The channel statistics in use."""
        mean, std = self.statistics()
        return {"mean": list(mean), "std": list(std), "range": list(self._range or ()), **self.sizes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Normalize, and cut, as in training."""
        self.restore_sizes(state)
        self._statistics = (tuple(state["mean"]), tuple(state["std"]))
        self._range = tuple(state.get("range", ()))  # runs from before it was kept had 8 or 16 bits


@functools.cache
def _demo(split: str) -> SplitSamples:
    from multissl.modalities.image.demo import CLASSES, motifs

    images, labels = motifs("train" if split == "all" else split)
    rows, no_groups = np.arange(len(labels)), np.full(len(labels), -1)
    return SplitSamples(data=images, labels=labels, groups=no_groups, classes=list(CLASSES), rows=rows)
