"""Videos: clips of one decode, cut and colored as a whole, with tubes, blocks and targets of tubelets.

Tubelets and tube masks are VideoMAE's (Tong et al., NeurIPS 2022, arXiv 2203.12602), block masks V-JEPA's (Bardes et
al. 2024, arXiv 2404.08471), pairs of clips those of Feichtenhofer et al. (CVPR 2021, arXiv 2104.14558), long and short
clips SVT's (Ranasinghe et al., CVPR 2022, arXiv 2112.01514). The worker decodes the frames that any view needs, once,
and cuts uint8 clips; flip, colors and normalization run on the device, with one draw per clip. Clips are not mirrored
unless that is asked for: a mirrored motion is another motion. The audio track is not read.
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, T frames, S pixels per side, N tokens in the
order time, row, column, D = 3*t*p*p values of a tubelet, color fastest.  State: means and deviations of the colors.
"""

from __future__ import annotations

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
from multissl.contract.modality import Modality, Need
from multissl.contract.plans import Plans, StreamSpec
from multissl.devices import constant
from multissl.modalities.image import ops
from multissl.modalities.image.crops import TRIES, crop_box, share_of
from multissl.modalities.image.draws import draw_changes
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.unions import Lasting
from multissl.modalities.table_config import TableConfig
from multissl.modalities.video.baselines import clip_floor, flow_floor, frame_floor
from multissl.modalities.video.clips import (
    Span,
    center_box,
    choose_frames,
    resize_clip,
    tubelet_centers,
    tubelets,
)
from multissl.modalities.video.demo import demo_split
from multissl.modalities.video.figures import clip_panel, pixels
from multissl.modalities.video.files import SUFFIXES, examined, frames_of, load_clip, open_videos, unreadable
from multissl.modalities.video.preparation import ClipPreparation, preparation_of
from multissl.modalities.video.sizes import check_sizes, sizes_for
from multissl.modalities.views import Payloads, build_views, draw_roles, ids_of, with_masks
from multissl.random import RowRandom
from multissl.sources.payloads import describe_file
from multissl.sources.splits import SplitSamples

LIMITS = {
    **dict.fromkeys(("frames", "tubelet"), (1, math.inf)),
    **dict.fromkeys(("size", "local_size", "patch", "stride"), (0, math.inf)),
    **dict.fromkeys(("mask_group", "clean_zoom"), (1, math.inf)),
    **dict.fromkeys(("flip", "jitter", "grayscale", "solarize"), (0, 1)),
    **dict.fromkeys(
        ("brightness", "contrast", "saturation", "seconds", "local_frames", "union"), (0, math.inf)
    ),
    "hue": (0, 0.5),
}


class Video(Modality):
    """Video files, folders of frames or arrays as clips."""

    @dataclass(kw_only=True, slots=True)
    class Config(TableConfig):
        """Options of videos."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"grey": "grayscale", "solarise": "solarize"})
        sizes: ClassVar[tuple[str, ...]] = ("size", "local_size", "patch", "stride")
        sides = ("local_size", "size")

        data: str = ""
        """A folder of videos or of folders of frames, a list (.txt), table (.csv), .parquet or .tar (a pattern names
        several); empty: the built-in demo of eight motions."""
        frames: int = 16
        """Of clean and global clips."""
        size: int = 224
        """Side of clean and global clips in pixels; 0: the short side of the usual training video, up to 112."""
        local_frames: int = 0
        """Of local clips; 0: half of `frames`."""
        local_size: int = 96
        """Side of local views, in pixels; a multiple of patch. 0: three sevenths of size."""
        patch: int = 16
        """Side of a token, in pixels; 0: 16, or less where that is not a quarter of size."""
        tubelet: int = 2
        """Frames of a token."""
        stride: int = 4
        """Every so many frames is taken (Kinetics: 4, Something-Something: 2); 0: 4, or less for a clip to cover at
        most half of the usual training video."""
        seconds: float = 0.0
        """Time that a global clip covers, whatever the frame rate, instead of stride; local ones take the same pace.
        0: stride counts."""
        clips: Literal["anywhere", "apart", "same"] = "anywhere"
        """Where the global clips of a video lie: each anywhere; each in its own part of the video, the parts equal; or
        all the same frames, cropped and colored anew."""
        global_scale: tuple[float, float] = (0.5, 1.0)
        """Range of a crop's share of the frame's area; the crop stays the same over a clip."""
        local_scale: tuple[float, float] = (0.1, 0.5)
        """Smallest and largest area of a local crop, as a fraction of the whole."""
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Range of a crop's width over height, drawn log-uniformly."""
        flip: float = 0.0
        """Probability, as for jitter, grayscale and solarize; drawn once per clip, like every color."""
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
        solarize: float = 0.0
        """Probability of inverting bright pixels, on the second global view only; 0 to 1."""
        mask: Literal["tube", "block", "random"] = "tube"
        """tube: random cells, hidden in every frame; block: rectangles, hidden in every frame; random: tokens."""
        union: int = 0
        """With mask=block, for predictions from a context: blocks whose union is the one target, the context is all
        the rest (V-JEPA: 8 blocks of 0.15, or 2 of 0.7). 0: every block is a target."""
        union_time: tuple[float, float] = (1.0, 1.0)
        """With union, range of the share of the clip that its blocks last (V-JEPA: 1 1)."""
        context_time: float = 1.0
        """With union, share of the clip, from its first frame on, in which the context shows tokens."""
        context_keep: float = 1.0
        """With union, largest share of all tokens that the context shows; what is more is left out at random."""
        mask_group: int = 32
        """Samples over which mask ratios are spread evenly; the largest divisor of a rank's samples up to it counts."""
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        """Of each color, values 0 to 1; ImageNet's, as is usual for videos."""
        std: tuple[float, ...] = (0.229, 0.224, 0.225)
        """Standard deviation of each color, values 0 to 1."""
        clean: Literal["clip", "frame", "shuffled"] = "clip"
        """What is evaluated: the clip; its middle frame alone, standing still; or its frames in an order drawn for
        each video. A frame that does as well as the clip means that no motion was learned."""
        clean_zoom: float = 1.0
        """Clean clips: the middle square of side short/clean_zoom."""

        def __post_init__(self) -> None:
            for name, (low, high) in LIMITS.items():
                if not low <= getattr(self, name) <= high:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want {low:g} to {high:g}")
            for name, top in (("global_scale", 1.0), ("local_scale", 1.0), ("ratio", math.inf)):
                low, high = getattr(self, name)
                if not 0 < low <= high <= top:
                    raise ValueError(f"modality.{name}={low, high}: want 0 < low <= high <= {top:g}")
            check_sizes(self)
            if self.union and self.mask != "block":
                raise ValueError(f"modality.union={self.union}: want modality.mask=block, got {self.mask}")
            low, high = self.union_time
            if not 0 < low <= high <= 1:
                raise ValueError(f"modality.union_time={low, high}: want 0 < low <= high <= 1")
            for name in ("context_time", "context_keep"):
                if not 0 < getattr(self, name) <= 1:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want more than 0, at most 1")
            if not self.union and self.lasting() != Lasting():
                raise ValueError(
                    "modality.union_time, modality.context_time and modality.context_keep are read with"
                    " modality.union alone: set modality.union=8, or leave them"
                )
            if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
                raise ValueError(
                    f"modality.mean={self.mean} modality.std={self.std}: want 3 of each, std above 0"
                )

        def lasting(self) -> Lasting:
            """Return how unions of blocks and their context lie in time."""
            return Lasting(self.union_time, self.context_time, self.context_keep)

    needs: ClassVar[frozenset[Need]] = frozenset({"local", "mask", "masks", "drop", "target", "coords"})
    suffixes = SUFFIXES
    plural = "videos"
    shows = MappingProxyType({"width": ("size", 1), "height": ("size", 1)})
    columns = ("video", "clip", "video_bytes", "video_path")

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._sources: dict[str, SplitSamples] = {}
        self._statistics = (tuple(cfg.mean), tuple(cfg.std))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}  # a worker opens its videos by itself

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, height and width of a token."""
        return self.cfg.tubelet, self.cfg.patch, self.cfg.patch

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, rows and columns."""
        side = self.cfg.size // self.cfg.patch
        return self.cfg.frames // self.cfg.tubelet, side, side

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Take sizes that are not given from the training videos."""
        self.choose_sizes(payloads, said=bool(self.cfg.data))
        return self

    def sizes_of(self, payloads: Sequence[Any] | None) -> tuple[dict[str, Any], str]:
        """Return the sizes that suit up to 64 training videos, of which a frame is decoded."""
        data = self.dataset("train") if payloads is None else Payloads(payloads)
        return sizes_for(data, self.cfg)

    def streams(self) -> dict[str, StreamSpec]:
        """One grid of time, rows and columns."""
        cfg = self.cfg
        if cfg.open_sizes():
            raise self.not_fitted()
        spec = StreamSpec(
            kind="grid", shape=(3, cfg.frames, cfg.size, cfg.size), patch=self.patch, num_tokens=math.prod(self.grid),
            target_dim=3 * math.prod(self.patch), channels=("red", "green", "blue"),
        )  # fmt: skip
        return {"video": spec}

    def dataset(self, split: str) -> Samples:
        """The videos of a split: "train", "val", "test", or "all" of the user's data."""
        if split not in self._sources:
            data = self.cfg.data
            self._sources[split] = (
                open_videos(data, split, self.cfg.table_options()) if data else demo_split(split)
            )
        return self._sources[split]

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return the files; of the built-in videos, which are drawn, none is a copy."""
        return super().contents(split) if self.cfg.data else []

    def shown(self) -> dict[str, tuple[float, str]]:
        """Return the side of a view, and the frames or seconds that it covers."""
        if self.cfg.seconds:
            return {**super().shown(), "seconds": (self.cfg.seconds, "seconds")}
        return {**super().shown(), "frames": (self.cfg.frames * self.cfg.stride, "stride")}

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return frames, seconds, frames per second, and width and height in pixels; a few frames are decoded."""
        return self.examined(sample)[0]

    def examined(self, sample: Sample) -> tuple[dict[str, float], np.ndarray | None]:
        """Return `extent`, and the first, middle and last frame as 16 x 16 pixels, float32 [16, 16, 9].

        `thumbnail` stays None: at the start of a training no video is decoded to look for near-duplicates.
        """
        return examined(sample)

    def _shape(self, role: Role) -> tuple[int, int]:
        """Frames and pixels per side of a role's clips."""
        cfg = self.cfg
        if role != "local":
            return cfg.frames, cfg.size
        half = max(cfg.frames // 2 // cfg.tubelet, 1) * cfg.tubelet
        return cfg.local_frames or half, cfg.local_size

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Decode once and cut: uint8 [V*B, T, 3, S, S] by role, masks, and who the samples are."""
        plan, count = plans["video"], len(samples)
        draws = {role: rng.fork(role).rand(plan.count(role), TRIES + 1, 4) for role in ROLES}
        raw: Raw = {}
        boxes = {role: torch.zeros(count, plan.count(role), 6) for role in ROLES}
        for b, sample in enumerate(samples):
            clip = load_clip(sample)
            spans = {role: self._spans(role, clip.times, draws[role][b], sample) for role in ROLES}
            wanted = [i for role in ROLES for span in spans[role] for i in span.frames]
            try:
                frames = frames_of(clip, wanted)
            except Exception as error:  # decoders raise almost anything on a damaged file
                raise unreadable(sample, error) from None
            parts = iter(frames.split([len(s.frames) for role in ROLES for s in spans[role]]))
            height, width = frames.shape[2:]
            for role in ROLES:
                length, size = self._shape(role)
                for v, span in enumerate(spans[role]):
                    box = self._box(role, height, width, draws[role][b, v])
                    top_left = share_of(box, height, width).tolist()
                    boxes[role][b, v] = torch.tensor([span.begin, *top_left[:2], span.length, *top_left[2:]])
                    if role not in raw:
                        raw[role] = torch.empty(
                            plan.count(role) * count, length, 3, size, size, dtype=torch.uint8
                        )
                    raw[role][v * count + b] = resize_clip(next(parts), box, size)
        if plan.coords:  # [V*B, 6]
            raw |= {f"{role}_box": box.transpose(0, 1).flatten(0, 1) for role, box in boxes.items()}
        if plan.mask_ratio is not None and plan.num_global:
            cfg, lines = self.cfg, rng.fork("masks")
            lasting = cfg.lasting()
            masks = draw_masks(
                plan, cfg.mask, self.grid, cfg.mask_group, lines, union=cfg.union, lasting=lasting
            )
            with_masks(raw, masks)
        return {"video": raw | ids_of(samples)}

    def _spans(self, role: Role, times: np.ndarray, draws: Tensor, sample: Sample) -> list[Span]:
        """The frames of each view of a role; draws [V, TRIES + 1, 4], the last line is the clip's place in time."""
        cfg, (frames, _) = self.cfg, self._shape(role)
        seconds = cfg.seconds * frames / cfg.frames
        found = []
        for v, draw in enumerate(draws):
            place = float(draw[TRIES, 0])
            if role == "clean":
                place = 0.5
            elif role == "global" and sample.place is not None:
                place = sample.place
            elif role == "global" and cfg.clips == "same":
                place = float(draws[0, TRIES, 0])
            elif role == "global" and cfg.clips == "apart":
                place = (v + place) / len(draws)
            span = choose_frames(times, frames, cfg.stride, seconds, place)
            if role == "clean" and cfg.clean == "frame":
                span = span._replace(frames=[span.frames[frames // 2]] * frames)
            elif role == "clean" and cfg.clean == "shuffled":
                # an order of its own for each video, the same in every evaluation
                order = np.random.default_rng((0, sample.index)).permutation(frames)
                span = span._replace(frames=[span.frames[i] for i in order])
            found.append(span)
        return found

    def _box(self, role: Role, height: int, width: int, draw: Tensor) -> tuple[int, int, int, int]:
        cfg = self.cfg
        if role == "clean":
            return center_box(height, width, cfg.size, cfg.clean_zoom)
        scale = cfg.local_scale if role == "local" else cfg.global_scale
        return crop_box(height, width, draw[:TRIES].tolist(), scale, cfg.ratio)

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Everything photometric, on the device of the clips; what is drawn on the host goes there in one copy."""
        clips, plan = raw["video"], plans["video"]
        device = clips["sample_id"].device
        mean, std = (constant(values, device) for values in self._statistics)
        batch: list[Views] = []
        for role, changes in draw_roles(plan, clips, rng, self._draw).items():
            frames = clips[role].shape[1]
            # a draw for each clip, the same for all its frames
            drawn = {name: values.repeat_interleave(frames, 0) for name, values in changes.items()}
            x = clips[role].flatten(0, 1)  # [R*T, 3, S, S]
            clean = role == "clean"
            x = ops.normalize(torch.div(x, 255), mean, std) if clean else ops.photometric(x, drawn, mean, std)
            x = x.unflatten(0, (-1, frames)).transpose(1, 2).contiguous()  # [R, 3, T, S, S]
            views = build_views(x, "video", role, clips)
            if plan.coords and role != "clean":
                grid = [n // p for n, p in zip(x.shape[2:], self.patch, strict=True)]
                views.coords = tubelet_centers(clips[f"{role}_box"], grid, changes["flip"])
            if plan.target and role == "global":
                views.target = tubelets(x, self.patch)
            batch.append(views)
        return Batch(batch)

    def _draw(self, role: Role, count: int, rng: RowRandom) -> dict[str, Tensor]:
        """Return what changes so many clips of a role, tensors [V*B, ...] by name; clean ones stay."""
        return {} if role == "clean" else draw_changes(self.cfg, role, count, rng)

    def preparation(self, stream: str) -> ClipPreparation:
        """Return how clips of chosen frames become clean views."""
        return preparation_of(self.cfg, *self._statistics)

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        """Pixels of the clip, of one frame, and how patches move."""
        return {"raw": clip_floor, "frame": frame_floor, "flow": flow_floor}

    def describe(self, sample: Sample) -> dict[str, str]:
        """Return the file of a sample."""
        return describe_file(sample.data)

    def figures(self, batch: Batch) -> list[Figure]:
        """The clips of some videos as strips, with their masks."""
        return clip_panel([v for v in batch if v.stream == "video"], *self._statistics, self.patch)

    def pictures(self, views: Views) -> np.ndarray:
        """First, middle and last frame of clean clips side by side, uint8 [R, S, 3*S, 3]."""
        x = pixels(views.x, *self._statistics)
        frames = [x[:, :, t] for t in (0, x.shape[2] // 2, x.shape[2] - 1)]
        return (torch.cat(frames, -1).movedim(1, -1) * 255).round().to(torch.uint8).numpy()

    def state(self) -> dict[str, Any]:
        """The color statistics in use."""
        mean, std = self._statistics
        return {"mean": list(mean), "std": list(std), **self.sizes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Normalize, and cut, as in training."""
        self.restore_sizes(state)
        self._statistics = (tuple(state["mean"]), tuple(state["std"]))
