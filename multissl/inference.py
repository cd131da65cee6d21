"""From data to clean views to features: what evaluators, loaded runs, the report and `encode` share.

Shapes: S samples of a split, R rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Raw, Sample, Unreadable, Views
from multissl.contract.encoder import EncodeFunction
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.finite import NotFinite, check_finite
from multissl.contract.modality import Modality
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.devices import copied
from multissl.random import RowRandom
from multissl.registry import suggest
from multissl.waiting import followed

Featurize = Callable[[Views], Tensor]
"""From clean views to features [R, D]: an encoder's pooled output, or a modality's baseline."""
Measured = TypeVar("Measured")


def measured_baselines(
    modality: Modality, measure: Callable[[Featurize, Modality, str], Measured | None]
) -> Iterator[tuple[str, Measured]]:
    """Yield by name what is measured of each of the modality's classical features, where something is."""
    for name, baseline in modality.baselines().items():
        if measured := measure(baseline, modality, "cpu"):
            yield name, measured


class Pooled:
    """The encoder's pooled output as features.

    What was made of a split is kept in the frozen encoders' memory, so that evaluators of the same moment share one
    pass over it.
    """

    def __init__(self, encoders: FrozenEncoders) -> None:
        self.encoders = encoders

    @property
    def kind(self) -> tuple[Any, ...]:
        """Return what tells these features from others of the same encoders."""
        return ("pooled",)

    def __call__(self, views: Views) -> Tensor:
        """Return features [R, D] in fp32."""
        return pooled(self.encoders, views)


class Blocks(Pooled):
    """What stands for a row in each of the last blocks, oldest first, then the mean of its tokens, side by side."""

    def __init__(self, encoders: FrozenEncoders, count: int) -> None:
        super().__init__(encoders)
        self.count = count

    @property
    def kind(self) -> tuple[Any, ...]:
        """Return the number of blocks."""
        return ("blocks", self.count)

    def __call__(self, views: Views) -> Tensor:
        """Return features [R, (n + 1) * D] in fp32; of one block it is what the encoder pools itself."""
        inner = self.count if self.count > 1 else 0
        (features,) = self.encoders.encode([views], inner=inner)
        rows = features.inner_pooled if inner else (features.pooled,)
        parts = [*rows, mean_token(features.tokens, views.valid)]
        return torch.cat([part.float() for part in parts], dim=1)


class Tokens(Pooled):
    """All tokens of a row as features."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Return what tells them from pooled features."""
        return ("tokens",)

    def __call__(self, views: Views) -> Tensor:
        """Return features [R, N, D] in fp32."""
        return self.encoders.encode([views])[0].tokens.float()


def mean_token(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of the real tokens [R, N, D] in fp32: [R, D]; of all where padding cannot be seen."""
    if valid is None or valid.shape != tokens.shape[:2]:
        return tokens.float().mean(1)
    weight = valid.float() / valid.sum(1, keepdim=True).clamp(min=1)  # [R, N]
    return (tokens.float() * weight[:, :, None]).sum(1)


def pooled(encoders: EncodeFunction, views: Views) -> Tensor:
    """Return the pooled features of views [R, D] in fp32."""
    return encoders.encode([views])[0].pooled.float()


def featurize_split(
    featurize: Featurize,
    modality: Modality,
    split: str,
    limit: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    stream: str = "",
) -> tuple[Tensor, Tensor]:
    """Features [S, D] and labels [S] of a split's samples, `limit` of them (0: all), always the same ones.

    Unreadable samples are left out. Without a stream it is the modality's first.
    """
    places = drawn(len(modality.dataset(split)), limit)
    return featurize_places(featurize, modality, split, places, batch_size, device, stream)[:2]


def drawn(count: int, limit: int) -> list[int]:
    """`limit` of `count` positions in order, the same every time; all of them for 0."""
    # not every so many: that would miss classes where labels come in a fixed turn
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return sorted(order[: limit or count])


class Featurized(NamedTuple):
    """The readable ones of some samples of a split."""

    features: Tensor
    """[S, D], or what else is made of a row."""
    labels: Tensor
    """int64 [S], -1 without one."""
    places: list[int]
    """Their positions in the split."""
    groups: Tensor
    """int64 [S], -1 without one."""


def featurize_places(*args: Any, **options: Any) -> tuple[Tensor, Tensor, list[int]]:
    """Features [S, D], labels [S] and positions of what `featurized` returns."""
    return featurized(*args, **options)[:3]


@torch.no_grad()
def featurized(
    featurize: Featurize,
    modality: Modality,
    split: str,
    places: list[int],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    stream: str = "",
    plan: ViewPlan = CLEAN,
) -> Featurized:
    """Return features of the readable ones of some samples of a split; each sample is read once.

    Raises `NotFinite` with the sample's name where features are not finite.
    """
    data, stream = modality.dataset(split), stream_of(modality, stream)
    memory = featurize.encoders.memory if isinstance(featurize, Pooled) else None
    key = (*featurize.kind, split, stream, plan.size, tuple(places)) if isinstance(featurize, Pooled) else ()
    if memory is not None and key in memory:
        return memory[key]
    features, labels, kept, groups = [], [], [], []
    starts = range(0, len(places), batch_size)
    for start in followed(starts, f"features of {split}, in batches of {batch_size}", len(starts)):
        samples = {i: data[i] for i in places[start : start + batch_size]}
        views, readable = readable_views(modality, [*samples.values()], stream, device, plan)
        found = finite_features(featurize, views, modality, readable, f"the {split} split")
        here = views.present
        if here is not None:  # a sample without this stream has a stand-in there
            found, readable = (
                found[here.cpu()],
                [s for s, h in zip(readable, here.tolist(), strict=True) if h],
            )
        features.append(found)
        labels += [s.label for s in readable]
        groups += [s.group for s in readable]
        names = {id(s) for s in readable}
        kept += [i for i, s in samples.items() if id(s) in names]
    numbers = torch.tensor(groups, dtype=torch.int64)
    result = Featurized(torch.cat(features), torch.tensor(labels), kept, numbers)
    if memory is not None:
        memory[key] = result
    return result


def finite_features(
    featurize: Featurize, views: Views, modality: Modality, samples: Sequence[Sample], source: str
) -> Tensor:
    """Features [R, D] of clean views of some samples, on the CPU.

    Raises `NotFinite` where they are not finite: by file or index, the first sample of the source that it concerns.
    """
    try:
        features = featurize(views).cpu()
        check_finite(features, views.present)
    except NotFinite as bad:
        raise bad.named(sample_name(modality, samples[bad.rows[0]], source)) from None
    return features


def sample_name(modality: Modality, sample: Sample, source: str) -> str:
    """How a sample is called in messages: by its file where it has one, else by its index."""
    return f"sample {modality.describe(sample).get('file', sample.index)} of {source}"


def labeled_split(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """`featurize_split` without its unlabeled samples."""
    features, labels = featurize_split(*args, **options)
    return features[labels >= 0], labels[labels >= 0]


def scored_split(
    featurize: Featurize,
    modality: Modality,
    split: str,
    limit: int = 0,
    device: torch.device | str = "cpu",
    stream: str = "",
) -> tuple[Tensor, Tensor, np.ndarray]:
    """`featurize_split` without its unlabeled samples, and the groups int64 [S] of the others, -1 without one."""
    places = drawn(len(modality.dataset(split)), limit)
    found = featurized(featurize, modality, split, places, device=device, stream=stream)
    known = found.labels >= 0
    return found.features[known], found.labels[known], found.groups[known].numpy()


def stream_of(modality: Modality, stream: str) -> str:
    """The stream of that name, or the modality's first for an empty one."""
    streams = modality.streams()
    if stream and stream not in streams:
        raise ValueError(f"stream={stream!r} is none of the modality's{suggest(stream, streams)}")
    return stream or next(iter(streams))


def single_stream(modality: Modality, stream: str, data: Any) -> Any:
    """Return the `Sample.data` of a sample of one stream: the data itself, or a mapping where several are fed."""
    return {stream: data} if len(modality.streams()) > 1 else data


def clean_views(
    modality: Modality, samples: list[Sample], stream: str, device: torch.device | str = "cpu"
) -> Views:
    """The clean views of some samples on a device; raises `Unreadable` for the first that cannot be read."""
    return clean_streams(modality, samples, [stream], device)[stream]


def clean_streams(
    modality: Modality, samples: list[Sample], streams: Sequence[str], device: torch.device | str = "cpu"
) -> dict[str, Views]:
    """The clean views of some samples in several streams; raises `Unreadable` as `clean_views` does."""
    rng = RowRandom((0, 0), 0, len(samples), len(samples))
    raw = modality.collate(samples, dict.fromkeys(streams, CLEAN), rng)
    return views_of(modality, raw, len(samples), streams, device)


def views_of(
    modality: Modality, raw: Raw, count: int, streams: Sequence[str], device: torch.device | str,
    plan: ViewPlan = CLEAN,
) -> dict[str, Views]:  # fmt: skip
    """The clean views of so many samples, by stream, from what a worker made of them."""
    rng = RowRandom((0, 0), 0, count, count).to(device)
    batch = modality.views(copied(raw, device), dict.fromkeys(streams, plan), rng)
    return {v.stream: v for v in batch if v.role == "clean"}


def collated(
    modality: Modality, samples: list[Sample], streams: Sequence[str], plan: ViewPlan = CLEAN
) -> tuple[Raw | None, list[Sample], list[Unreadable]]:
    """A worker's part for clean views of those samples that can be read, or None; those samples; why others cannot."""
    problems: list[Unreadable] = []
    while samples:
        rng = RowRandom((0, 0), 0, len(samples), len(samples))
        try:
            return modality.collate(samples, dict.fromkeys(streams, plan), rng), samples, problems
        except Unreadable as bad:
            problems.append(bad)
            samples = [s for s in samples if s.index != bad.index]
    return None, [], problems


def readable_views(
    modality: Modality, samples: list[Sample], stream: str, device: torch.device | str = "cpu",
    plan: ViewPlan = CLEAN,
) -> tuple[Views, list[Sample]]:  # fmt: skip
    """The clean views of the readable ones of some samples, and those samples."""
    views, readable = readable_streams(modality, samples, [stream], device, plan)
    return views[stream], readable


def readable_streams(
    modality: Modality, samples: list[Sample], streams: Sequence[str], device: torch.device | str = "cpu",
    plan: ViewPlan = CLEAN,
) -> tuple[dict[str, Views], list[Sample]]:  # fmt: skip
    """The clean views of the readable ones of some samples in several streams, and those samples."""
    raw, readable, problems = collated(modality, samples, streams, plan)
    if raw is None:
        raise ValueError(f"none of the samples to evaluate on can be read: {problems[0].reason}")
    return views_of(modality, raw, len(readable), streams, device, plan), readable
