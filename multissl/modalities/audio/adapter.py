"""Sound: segments of recordings as log-mel spectrograms, changed as sound and as spectrograms.

Huang et al., NeurIPS 2022, arXiv 2207.06405 (AudioMAE: 128 mel bins, patches of 16 x 16, dataset mean and twice the
deviation); Niizumi et al., IJCNN 2021, arXiv 2103.06695 (BYOL-A: mixing, stretching); Park et al., Interspeech 2019,
arXiv 1904.08779 (SpecAugment). The worker decodes, resamples and cuts segments of sound; on the device they are turned
in a circle, made louder or softer, given noise, become spectrograms, are mixed with another recording, normalized,
stretched, and lose stretches of time and bands of frequency. BYOL-A normalizes each batch again; we do not, because
views would then depend on the number of ranks. A recording shorter than a view ends in silence, which is marked in
`valid` and neither normalized as sound nor hidden as such.
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, S samples of sound, T frames, F mel bins, N
tokens. State: mean and deviation of the training data's log-mel, and the value of padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import HasRecordings
from multissl.contract.data import Batch, Raw, Role, Sample, Samples, Unreadable, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Need
from multissl.contract.plans import Plans, StreamSpec, ViewPlan, tokens_along
from multissl.modalities.audio import spectrogram as ops
from multissl.modalities.audio.channels import check_channel
from multissl.modalities.audio.demo import demo_split
from multissl.modalities.audio.figures import drawn, mel_floor, sound_panel, statistics_floor
from multissl.modalities.audio.files import FILMS, SUFFIXES, Clip, measure, relabeled
from multissl.modalities.audio.preparation import WavePreparation, preparation_of
from multissl.modalities.audio.resampling import FASTEST, SLOWEST
from multissl.modalities.audio.sizes import check_sizes, sizes_for
from multissl.modalities.audio.views import centers, draw_changes, silence, spectrograms
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.bands import Band
from multissl.modalities.table_config import TableConfig
from multissl.modalities.views import Payloads, build_views, draw_roles, ids_of, rand_rows, roles, with_masks
from multissl.random import RowRandom
from multissl.sources.opening import open_source
from multissl.sources.payloads import describe_file
from multissl.sources.splits import SplitSamples

LIMITS = {
    "rate": (SLOWEST, FASTEST),
    **dict.fromkeys(("mels", "mask_group", "spans"), (1, math.inf)),
    **dict.fromkeys(("frames", "local_frames"), (0, math.inf)),
    **dict.fromkeys(("noise", "roll", "time_mask", "frequency_mask"), (0, 1)),
    "mixup": (0, 0.9),
    **dict.fromkeys(("gain", "equalize"), (0, 60)),
    **dict.fromkeys(("trim", "dynamics"), (0, 120)),
    "warp": (0, 0.5),
    "std": (0, math.inf),
}


class Audio(HasRecordings):
    """Sound files as spectrograms."""

    @dataclass(kw_only=True, slots=True)
    class Config(TableConfig):
        """Options of sounds."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"equalise": "equalize", "centre": "center"})
        sizes: ClassVar[tuple[str, ...]] = ("frames", "local_frames")
        sides = ("local_frames", "frames")

        data: str = ""
        """A folder, list (.txt), table (.csv), .parquet or .tar (a pattern names several); empty: the built-in demo of
        eight gestures."""
        label_pattern: str = ""
        """Regular expression whose first parenthesis is the class in a file's name, such as (\\d)_\\w+_\\d+; empty: as
        the source says."""
        group_pattern: str = ""
        """The same for the speaker or recording; a group stays in one split."""
        hold_out: str = ""
        """The group that is the validation split, all others being trained on."""
        rate: int = 16_000
        """Samples per second, 100 to 10,000,000; files of other rates are resampled."""
        channel: str = "mean"
        """What is heard of several channels: mean of all, left, right, first, or a number from 0 on."""
        mels: int = 128
        """Mel bands of a spectrogram."""
        frames: int = 1024
        """Length of clean and global views in frames of 10 ms; 0: three fifths of the usual training recording, up to
        10.24 s."""
        local_frames: int = 256
        """Frames of local views; 0: half of `frames`."""
        patch: tuple[int, int] = (16, 16)
        """Frames and mel bins of a token: 16 16 for events, 2 128 (the full band) for speech."""
        stride: tuple[int, int] = (0, 0)
        """Frames and mel bins from one token to the next, where tokens overlap (AST: 10 10); 0 0: the size of a token.
        What does not fill a last token is in none, and tokens show a part of what their neighbors hide."""
        short: Literal["pad", "repeat", "fit"] = "pad"
        """Recordings shorter than a view: silence at the end, which is masked out, the recording over again, or
        stretched in time to fit: words spoken slowly and fast become alike."""
        trim: float = 0.0
        """Cut what is softer than so many decibels below the loudest frame off both ends of a recording (30: the
        silence around a word); 0: nothing."""
        dynamics: float = 0.0
        """Measure levels from the loudest of a view down to so many decibels below it (60), softer ones as that; 0: as
        they are."""
        roll: float = 0.0
        """Probability of turning a segment around in a circle by a random share of it."""
        gain: float = 6.0
        """Louder or softer by up to so many decibels."""
        noise: float = 0.5
        """Probability of white noise."""
        snr: tuple[float, float] = (5.0, 20.0)
        """Decibels by which that noise lies below the sound."""
        equalize: float = 0.0
        """A smooth filter, drawn for each view, makes bands louder or softer by up to so many decibels: what tells
        microphones, rooms and codecs apart."""
        mixup: float = 0.0
        """Largest share of another recording in a global view, uniform from 0; BYOL-A: 0.4."""
        stretch: tuple[float, float] = (1.0, 1.0)
        """Range of the length in time and frequency of a box that is cut from a spectrogram and resized to all of it;
        BYOL-A: 0.6 1.5."""
        warp: float = 0.0
        """Largest change, as a share, of the length and the place of a view in time and frequency around the whole
        sound: as if another voice said the same."""
        time_mask: float = 0.2
        """Widest stretch of time that is wiped out, as a share of the view."""
        frequency_mask: float = 0.2
        """Widest band of frequency that is wiped out, as a fraction of the view."""
        spans: int = 1
        """Stretches of time, and bands of frequency, that are wiped out."""
        mask: Band = "random"
        """What is hidden from encoders that are asked to fill in: random tokens, blocks, time, frequency or both."""
        mask_group: int = 32
        """Samples over which mask ratios are spread evenly; the largest divisor of a rank's samples up to it counts."""
        mean: float = 0.0
        """Of the log-mel values, used where std is given; AudioSet: -4.268 and 4.569."""
        std: float = 0.0
        """0: mean and std are measured on the training data."""
        center: bool = False
        """Subtract each view's own mean in every band too, and with it the average voice and microphone."""

        def __post_init__(self) -> None:
            for name, (low, high) in LIMITS.items():
                if not low <= getattr(self, name) <= high:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want {low:g} to {high:g}")
            for name, top in (("snr", math.inf), ("stretch", 1.5)):
                low, high = getattr(self, name)
                if not (low <= high <= top and (name == "snr" or low > 0)):
                    raise ValueError(f"modality.{name}={low, high}: want low <= high, at most {top:g}")
            check_channel(self.channel)
            check_sizes(self)
            if self.warp and self.stretch != (1.0, 1.0):
                raise ValueError(
                    f"modality.warp={self.warp} and modality.stretch={self.stretch} both resize: set one, the other"
                    " to 0 or to 1 1"
                )
            if self.hold_out and not self.data:
                raise ValueError("modality.hold_out needs modality.data: the demo has no groups")

        def grid(self, frames: int) -> tuple[int, int]:
            """Tokens along time and frequency of a view."""
            time, frequency = tokens_along((frames, self.mels), self.patch, self.steps())
            return time, frequency

        def steps(self) -> tuple[int, int]:
            """Frames and mel bins from one token to the next."""
            return self.stride if self.stride[0] else self.patch

    needs: ClassVar[frozenset[Need]] = frozenset({"local", "mask", "masks", "drop", "target", "coords"})
    suffixes = SUFFIXES + FILMS
    plural = "recordings"
    label_option, group_option = "label_pattern", "group_pattern"
    shows = MappingProxyType({"seconds": ("frames", 0.01)})
    columns = ("audio", "sound", "audio_bytes", "audio_path")

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._sources: dict[str, SplitSamples] = {}
        self._statistics: tuple[float, float] | None = (cfg.mean, cfg.std) if cfg.std else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}  # a worker gets its samples by itself

    def streams(self) -> dict[str, StreamSpec]:
        """One grid of time and frequency."""
        if self.cfg.open_sizes():
            raise self.not_fitted()
        cfg, (t, f) = self.cfg, self.cfg.grid(self.cfg.frames)
        spec = StreamSpec(
            kind="grid", shape=(1, cfg.frames, cfg.mels), patch=cfg.patch, num_tokens=t * f,
            stride=cfg.stride if cfg.stride[0] else (), target_dim=math.prod(cfg.patch), channels=("log-mel",),
        )  # fmt: skip
        return {"audio": spec}

    def dataset(self, split: str) -> Samples:
        """The recordings of a split: "train", "val", "test", or "all" of the user's data."""
        cfg = self.cfg
        if split not in self._sources:
            names = {"label": cfg.label_pattern, "group": cfg.group_pattern, "hold_out": cfg.hold_out}
            known = functools.partial(relabeled, **names)
            self._sources[split] = (
                open_source(cfg.data, split, SUFFIXES, "audio", relabel=known, table=cfg.table_options())
                if cfg.data
                else demo_split(split)
            )
        return self._sources[split]

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return the files; of the built-in sounds, which are drawn, none is a copy."""
        return super().contents(split) if self.cfg.data else []

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return the seconds of a recording and the rate of its file, in samples per second."""
        clip = Clip(sample, self.cfg.rate, channel=self.cfg.channel)
        clip.cut(max(clip.length - self.cfg.rate, 0), self.cfg.rate)  # the end of one that was not read whole
        return {"seconds": clip.length / self.cfg.rate, "samples per second": clip.native}

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Decode and cut: sound [V*B, S] by role, how much of it is real, masks, and who the samples are."""
        plan, cfg = plans["audio"], self.cfg
        clips = [self._clip(sample) for sample in samples]
        raw: Raw = {}
        for role, views in roles(plan):
            places = rng.fork(role).rand(views).tolist()  # [B][V]
            length = ops.num_samples(cfg.local_frames if role == "local" else cfg.frames, cfg.rate)
            if role != "local":  # these may be placed
                given = [0.5 if role == "clean" else s.place for s in samples]
                places = [p if g is None else [g] * views for p, g in zip(places, given, strict=True)]
            cuts = [
                self._cut(clip, length, place[v])
                for v in range(views)
                for clip, place in zip(clips, places, strict=True)
            ]
            raw[role] = torch.stack([wave for wave, _, _ in cuts])
            raw[f"{role}_real"] = torch.tensor([real for _, real, _ in cuts])  # [V*B], samples
            raw[f"{role}_box"] = torch.tensor([box for _, _, box in cuts])  # [V*B, 2]
        if cfg.mixup and plan.num_global:
            raw["other"] = self._others(plan.num_global, rng.fork("mixup"))
        if plan.mask_ratio is not None and plan.num_global:
            self._hide(raw, plan, rng.fork("masks"))
        return {"audio": raw | ids_of(samples)}

    def _clip(self, sample: Sample) -> Clip:
        return Clip(sample, self.cfg.rate, self.cfg.trim, self.cfg.channel)

    def _cut(self, clip: Clip, length: int, place: float) -> tuple[Tensor, int, tuple[float, float]]:
        """A segment [S] without its mean, its real samples, and where in the recording it starts and how long it is."""
        room = clip.length - length
        start = int(place * (room + 1)) if room > 0 else 0
        wave = clip.cut(start, length)
        if self.cfg.short == "repeat":
            wave = wave.repeat(-(-length // len(wave)))[:length]
        real, box = len(wave), (start / clip.length, length / clip.length)
        return torch.nn.functional.pad(wave - wave.mean(), (0, length - real)), real, box

    def _others(self, views: int, rng: RowRandom) -> Tensor:
        """A segment of another training recording for every global view [V*B, S]; silence where it cannot be read."""
        data, length = self.dataset("train"), ops.num_samples(self.cfg.frames, self.cfg.rate)
        draws = rand_rows(rng, views, 2).tolist()  # [V*B][2]
        found = []
        for which, place in draws:
            try:
                sample = data[int(which * len(data))]  # type: ignore[arg-type]
                found.append(self._cut(self._clip(sample), length, place)[0])
            except Unreadable:  # the loader counts it when it is that recording's own turn
                found.append(torch.zeros(length))
        return torch.stack(found)

    def _hide(self, raw: Raw, plan: ViewPlan, rng: RowRandom) -> None:
        grid = self.cfg.grid(self.cfg.frames)
        samples = (
            raw["global_real"]
            if self.cfg.short == "pad"
            else torch.full_like(raw["global_real"], raw["global"].shape[1])
        )
        columns = self._columns(samples, grid[0])  # [V*B]
        if plan.context_ratio is not None and bool((columns < grid[0]).any()):
            raise ValueError(
                "modality.short=pad: targets and a context are cut from whole views, and a recording is shorter than"
                f" modality.frames={self.cfg.frames}; set modality.short=repeat or fewer frames"
            )
        with_masks(raw, draw_masks(plan, self.cfg.mask, grid, self.cfg.mask_group, rng, real=columns))

    def _columns(self, samples: Tensor, columns: int) -> Tensor:
        """Columns of tokens whose middle is sound, 1 at least, of so many samples [R]."""
        size, hop = ops.window_of(self.cfg.rate)
        frames = (samples - size) // hop + 1
        patch, step = self.cfg.patch[0], self.cfg.steps()[0]
        return ((frames + step - patch // 2 - 1) // step).clamp(1, columns)

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Spectrograms of the segments, on their device; what is drawn on the host goes there in one copy."""
        given, plan = raw["audio"], plans["audio"]
        batch: list[Views] = []
        for role, changes in draw_roles(plan, given, rng, self._draw).items():
            other = given.get("other") if role == "global" else None
            x, real, box = spectrograms(
                self.cfg, self.statistics(), given[role], given[f"{role}_real"], changes or None, other
            )
            grid = self.cfg.grid(x.shape[1])
            views = build_views(x[:, None], "audio", role, given)
            if self.cfg.short == "pad":
                at = torch.arange(grid[0], device=x.device) < self._columns(real, grid[0])[:, None]  # [R, T']
                views.valid = at.repeat_interleave(grid[1], 1)
            if plan.coords and role != "clean":
                views.coords = centers(self._middles(x), given[f"{role}_box"], box)
            if plan.target and role == "global":
                views.target = ops.patchify(x, self.cfg.patch, self.cfg.steps())
            batch.append(views)
        return Batch(batch)

    def _draw(self, role: Role, count: int, rng: RowRandom) -> dict[str, Tensor]:
        """Return what changes so many views of a role, tensors [V*B, ...] by name; clean views stay."""
        return {} if role == "clean" else draw_changes(self.cfg, count, rng)

    def _middles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the middles of columns and of rows of tokens lie in spectrograms [R, T, F], in shares of them."""
        grid, steps, patch = self.cfg.grid(x.shape[1]), self.cfg.steps(), self.cfg.patch
        time, frequency = (
            (torch.arange(n, device=x.device) * step + size / 2) / whole
            for n, step, size, whole in zip(grid, steps, patch, x.shape[1:], strict=True)
        )
        return time, frequency

    def statistics(self) -> tuple[float, float]:
        """Mean and deviation of log-mel values; measured once where they are not given."""
        self.fit()
        assert self._statistics is not None
        return self._statistics

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Take lengths, mean and deviation, where they are not given, from the training recordings."""
        self.choose_sizes(payloads, said=bool(self.cfg.data))
        cfg = self.cfg
        if self._statistics is None:
            data = self.dataset("train") if payloads is None else Payloads(payloads)
            self._statistics = measure(data, cfg.rate, cfg.mels, cfg.trim, cfg.dynamics, cfg.channel)
        return self

    def sizes_of(self, payloads: Sequence[Any] | None) -> tuple[dict[str, Any], str]:
        """Return the lengths that suit up to 64 training recordings, by their headers."""
        data = self.dataset("train") if payloads is None else Payloads(payloads)
        return sizes_for(data, self.cfg)

    @property
    def mixing_option(self) -> str:
        """`mixup`, where it is on."""
        return "mixup" if self.cfg.mixup else ""

    def parts(self, sample: Sample) -> tuple[Sample, Sample]:
        """The first and the second half of a recording as recordings of their own, at the modality's rate.

        Raises `Unreadable` where a half is silent or shorter than a frame.
        """
        clip = Clip(sample, self.cfg.rate, channel=self.cfg.channel)
        half = clip.length // 2
        halves = [replace(sample, data=clip.cut(start, half).numpy()) for start in (0, clip.length - half)]
        for part in halves:
            Clip(part, self.cfg.rate)
        return halves[0], halves[1]

    def preparation(self, stream: str) -> WavePreparation:
        """Return how sound at the modality's rate becomes clean views."""
        return preparation_of(self.cfg, self.statistics())

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        """The spectrogram in 32 steps of time, and the mean and deviation of its bins."""
        return {"raw": mel_floor, "mean_std": functools.partial(statistics_floor, grid=self.cfg.grid)}

    def describe(self, sample: Sample) -> dict[str, str]:
        """Return the file of a sample."""
        return describe_file(sample.data)

    def figures(self, batch: Batch) -> list[Figure]:
        """The spectrograms of some samples with their masks."""
        return sound_panel([v for v in batch if v.stream == "audio"], self.cfg.grid)

    def pictures(self, views: Views) -> np.ndarray:
        """Clean views as pictures, uint8 [R, F, T, 3], low sounds below."""
        return drawn(views.x[:, 0])

    def state(self) -> dict[str, Any]:
        """The statistics in use."""
        mean, std = self.statistics()
        return {
            "mean": mean,
            "std": std,
            "pad": (silence(self.cfg.dynamics) - mean) / (2 * std),
            **self.sizes(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Normalize, and cut, as in training."""
        self.restore_sizes(state)
        self._statistics = (state["mean"], state["std"])
