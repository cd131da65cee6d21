"""What every evaluator shares: features of a labelled split on clean views.

Shapes: S samples of a split, D width.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from multissl.config import Component, config_name
from multissl.config import Config as BaseConfig
from multissl.random import RowRandom
from multissl.registry import suggest
from multissl.types import CLEAN, Encode, Modality, Panel, Progress, Raw, Sample, Unreadable, Views

log = logging.getLogger("multissl")

Featurize = Callable[[Views], Tensor]
"""From clean views to features [R, D]: an encoder's pooled output, or a modality's floor."""


class Evaluator(Component):
    """Base of evaluators."""

    group: ClassVar[str] = "evaluators"
    titles: ClassVar[dict[str, str]] = {}
    """What the report calls its figures, by name."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an evaluator."""

        every: int = 0
        """Steps between runs; 0 runs it before the first step and after the last one only."""
        stream: str = ""
        """Whose encoder is measured where the modality feeds several; empty: the first one's."""

        def __post_init__(self) -> None:
            if self.every < 0:
                raise ValueError(f"every={self.every}: want 0 (start and end only) or a number of steps")

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._told = False

    def labelled(self, modality: Modality, *splits: str) -> bool:
        """Whether all of the splits have labels; where one has none, says so once. Looks at 64 samples of each."""
        for split in splits:
            data = modality.dataset(split)
            count = len(data)  # type: ignore[arg-type]
            if not any(data[i * count // min(64, count)].label >= 0 for i in range(min(64, count))):
                self.nothing(f"the {split} split has no labels")
                return False
        return True

    def nothing(self, why: str) -> None:
        """Warn, once, that there is nothing to measure."""
        if not self._told:
            log.warning("%s: %s, nothing to measure", config_name(type(self.cfg)), why)
            self._told = True

    def run(self, encoders: Encode, modality: Modality, progress: Progress) -> dict[str, float]:
        """Figures by name."""
        raise NotImplementedError

    def floors(self, modality: Modality) -> dict[str, float]:
        """Figures of the modality's classical features, measured once at the start; none by default."""
        return {}

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Whether the run learned, and a sentence that says so, from this evaluator's figures over time."""
        return None

    def panels(self, encoders: Encode, modality: Modality) -> list[Panel]:
        """Pictures for the report; none by default."""
        return []


def learned(
    what: str, figure: str, history: list[dict[str, float]], margin: float
) -> tuple[bool, str] | None:
    """The verdict of a figure in percent: its last value against its first (the untrained encoder) and `raw`.

    Floors are what only the first entry has; those other than `raw` are told, not demanded. None where the
    figure was measured less than twice.
    """
    if (measured := first_and_last(figure, history)) is None:
        return None
    first, last = measured
    floors = {k: v for k, v in first.items() if k not in last and "/" not in k}
    now, gates = last[figure], {"the untrained encoder's": first[figure]}
    if "raw" in floors:
        gates = {"the raw input's": floors.pop("raw"), **gates}
    told = {name: f"{name} {value:.1f} %" for name, value in gates.items()}
    missed = [text for name, text in told.items() if not now >= gates[name] + margin]  # a NaN is a miss
    also = [f"{name} {value:.1f} %" for name, value in floors.items()]
    if not missed:
        beside = f" ({', '.join(also)})" if also else ""
        return True, f"learned: {what} {now:.1f} % against {' and '.join(told.values())}{beside}"
    also = [text for text in told.values() if text not in missed] + also
    beside = f" ({', '.join(also)})" if also else ""
    return (
        False,
        f"not learned: {what} {now:.1f} % is not {margin:g} points above {' and '.join(missed)}{beside}",
    )


def first_and_last(
    figure: str, history: list[dict[str, float]]
) -> tuple[dict[str, float], dict[str, float]] | None:
    """The first and the last entry that tell a figure; None where it was measured less than twice."""
    measured = [{k: number(v) for k, v in entry.items()} for entry in history if figure in entry]
    return (measured[0], measured[-1]) if len(measured) > 1 else None


def number(value: float | None) -> float:
    """A figure read back from `metrics.jsonl`, where null stands for what was not finite."""
    return math.nan if value is None else value


def device_of(encoders: Encode) -> torch.device:
    """Where the encoders compute: their `device`, else that of their parameters, else the CPU."""
    if isinstance(encoders, nn.Module):
        first = next(encoders.parameters(), None)
        return torch.device("cpu") if first is None else first.device
    return torch.device(getattr(encoders, "device", "cpu"))


@contextlib.contextmanager
def evaluating(encoders: Encode) -> Iterator[Featurize]:
    """The encoders' pooled output as features, in evaluation mode meanwhile (batch norm, drop path)."""
    modules = list(encoders.modules()) if isinstance(encoders, nn.Module) else []
    modes = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield Pooled(encoders)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class Pooled:
    """The encoder's pooled output as features.

    Where the encoders carry a `memory`, a dict that lives as long as their weights stay, what was made of a split
    is kept there, so that evaluators of the same moment share one pass over it.
    """

    def __init__(self, encoders: Encode) -> None:
        self.encoders, self.memory = encoders, getattr(encoders, "memory", None)

    def __call__(self, views: Views) -> Tensor:
        """Features [R, D] in fp32."""
        return self.encoders.encode([views])[0].pooled.float()


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
    places = drawn(len(modality.dataset(split)), limit)  # type: ignore[arg-type]
    return featurize_places(featurize, modality, split, places, batch_size, device, stream)[:2]


def drawn(count: int, limit: int) -> list[int]:
    """`limit` of `count` positions in order, the same every time; all of them for 0."""
    # not every so many: that would miss classes where labels come in a fixed turn
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return sorted(order[: limit or count])


@torch.no_grad()
def featurize_places(
    featurize: Featurize,
    modality: Modality,
    split: str,
    places: list[int],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    stream: str = "",
) -> tuple[Tensor, Tensor, list[int]]:
    """Features [S, D], labels [S] and positions of the readable ones of some samples of a split."""
    data, stream = modality.dataset(split), stream_of(modality, stream)
    memory, key = getattr(featurize, "memory", None), (split, stream, tuple(places))
    if memory is not None and key in memory:
        return memory[key]
    features, labels, kept = [], [], []
    for start in range(0, len(places), batch_size):
        samples = {i: data[i] for i in places[start : start + batch_size]}
        views, readable = readable_views(modality, [*samples.values()], stream, device)
        found, here = featurize(views).cpu(), views.present
        if here is not None:  # a sample without this stream has a stand-in there
            found, readable = (
                found[here.cpu()],
                [s for s, h in zip(readable, here.tolist(), strict=True) if h],
            )
        features.append(found)
        labels += [s.label for s in readable]
        names = {id(s) for s in readable}
        kept += [i for i, s in samples.items() if id(s) in names]
    result = torch.cat(features), torch.tensor(labels), kept
    if memory is not None:
        memory[key] = result
    return result


def labelled_split(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """`featurize_split` without its unlabelled samples."""
    features, labels = featurize_split(*args, **options)
    return features[labels >= 0], labels[labels >= 0]


def stream_of(modality: Modality, stream: str) -> str:
    """The stream of that name, or the modality's first for an empty one."""
    streams = modality.streams()
    if stream and stream not in streams:
        raise ValueError(f"stream={stream!r} is none of the modality's{suggest(stream, streams)}")
    return stream or next(iter(streams))


def lone(modality: Modality, stream: str, data: Any) -> Any:
    """What `Sample.data` is where a sample has one stream only: the data itself, or a mapping if there are several."""
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
    modality: Modality, raw: Raw, count: int, streams: Sequence[str], device: torch.device | str
) -> dict[str, Views]:
    """The clean views of so many samples, by stream, from what a worker made of them."""
    rng = RowRandom((0, 0), 0, count, count).to(device)
    raw = tree_map_only(Tensor, lambda t: t.to(device), raw)
    batch = modality.views(raw, dict.fromkeys(streams, CLEAN), rng)
    return {v.stream: v for v in batch if v.role == "clean"}


def collated(
    modality: Modality, samples: list[Sample], streams: Sequence[str]
) -> tuple[Raw | None, list[Sample], list[Unreadable]]:
    """A worker's part for clean views of those samples that can be read, or None; those samples; why others cannot."""
    problems: list[Unreadable] = []
    while samples:
        rng = RowRandom((0, 0), 0, len(samples), len(samples))
        try:
            return modality.collate(samples, dict.fromkeys(streams, CLEAN), rng), samples, problems
        except Unreadable as bad:
            problems.append(bad)
            samples = [s for s in samples if s.index != bad.index]
    return None, [], problems


def readable_views(
    modality: Modality, samples: list[Sample], stream: str, device: torch.device | str = "cpu"
) -> tuple[Views, list[Sample]]:
    """The clean views of the readable ones of some samples, and those samples."""
    views, readable = readable_streams(modality, samples, [stream], device)
    return views[stream], readable


def readable_streams(
    modality: Modality, samples: list[Sample], streams: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, Views], list[Sample]]:
    """The clean views of the readable ones of some samples in several streams, and those samples."""
    raw, readable, _ = collated(modality, samples, streams)
    if raw is None:
        raise ValueError("none of the samples to evaluate on can be read")
    return views_of(modality, raw, len(readable), streams, device), readable
