"""Raw batches by step: what a rank trains on depends on (seed, step) and on nothing else.

Samples come in one endless stream: epoch e is a permutation drawn from (seed, e), and step s takes the next
batch_size of them, so a batch may straddle two epochs and every epoch sees each sample once, on any number of ranks.
An unreadable sample is listed, and the next readable one takes its place.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from multissl.config import Config
from multissl.random import RowRandom
from multissl.types import Batch, Modality, Plans, Raw, Sample, Unreadable

WORKER, DEVICE = 0, 1
"""The lines of random numbers of a step: what workers draw, and what is drawn on the device."""
PATIENCE = 1000
"""Unreadable samples in a row after which the data is taken to be broken."""


@dataclass(kw_only=True, slots=True)
class Data(Config):
    """How batches are prepared."""

    workers: int = -1
    """Processes a rank that decode and crop; 0 does it in the training process; -1 leaves one core to the training."""
    prefetch: int = 2
    """Batches that each worker holds ready."""
    views_on: Literal["device", "worker"] = "device"
    """Where colour, blur and the like are computed."""

    def num_workers(self, ranks: int) -> int:
        """Workers of each rank."""
        if self.workers >= 0:
            return self.workers
        return max(0, min(16, (os.cpu_count() or 1) // ranks - 1))


class Fetched(NamedTuple):
    """A batch, which samples could not be read for it, and how long the training waited for it in seconds."""

    batch: Batch
    skipped: list[tuple[int, str]]
    waited: float


class Steps(Dataset[Any]):
    """Item `step` is this rank's raw batch of that step, and the samples that were skipped for it."""

    def __init__(
        self, modality: Modality, plans: Plans, batch_size: int, seed: int, rank: int, world: int, final: bool
    ) -> None:
        self.modality, self.plans, self.seed, self.final = modality, plans, seed, final
        self.samples = modality.dataset("train")
        self.total = batch_size
        self.rows = batch_size // world
        self.first = rank * self.rows
        self._order: tuple[int, Tensor] | None = None
        self._broken: dict[int, str] = {}

    def __getitem__(self, step: int) -> tuple[Any, list[tuple[int, str]]]:
        start = step * self.total + self.first
        wanted = [self.index(position) for position in range(start, start + self.rows)]
        skipped: list[tuple[int, str]] = []
        while True:
            samples = [self.readable(index, skipped) for index in wanted]
            try:
                raw = self.modality.collate(samples, self.plans, self.random(step, WORKER))
                return (self.views(raw, step) if self.final else raw), skipped
            except Unreadable as bad:
                self._broken[bad.index] = bad.reason
                self.give_up_if_all_broken()

    def random(self, step: int, line: int) -> RowRandom:
        """The random numbers of this rank's rows."""
        return RowRandom((self.seed, step, line), self.first, self.rows, self.total)

    def views(self, raw: Raw, step: int, device: torch.device | str = "cpu") -> Batch:
        """The views of a raw batch that lies on `device`."""
        return self.modality.views(raw, self.plans, self.random(step, DEVICE).to(device))

    def index(self, position: int) -> int:
        """Which sample stands at a position of the endless stream."""
        count = len(cast(Sized, self.samples))
        epoch, place = divmod(position, count)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(count, generator=generator))
        return int(self._order[1][place])

    def readable(self, index: int, skipped: list[tuple[int, str]]) -> Sample:
        """The sample, or the next one that can be read; the unreadable ones join `skipped`."""
        count = len(cast(Sized, self.samples))
        while True:
            if index not in self._broken:
                try:
                    return self.samples[index]
                except Unreadable as bad:
                    self._broken[index] = bad.reason
                    self.give_up_if_all_broken()
            if (index, self._broken[index]) not in skipped:
                skipped.append((index, self._broken[index]))
            index = (index + 1) % count

    def give_up_if_all_broken(self) -> None:
        """Stop where it is not a matter of a few bad files."""
        count = len(cast(Sized, self.samples))
        if len(self._broken) >= min(PATIENCE, count):
            index, reason = next(iter(self._broken.items()))
            raise ValueError(
                f"modality.data: {len(self._broken)} of {count} samples cannot be read, the first being {index} "
                f"({reason}); check the folder or the format"
            )


def stream(
    steps: Steps, start: int, stop: int, cfg: Data, ranks: int, device: torch.device
) -> Iterator[Fetched]:
    """The batches of steps start..stop-1 on a device, prepared ahead by workers."""
    workers = cfg.num_workers(ranks)
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=cast(Any, range(start, stop)),
        num_workers=workers,
        prefetch_factor=cfg.prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_quiet if workers else None,
    )
    batches = iter(loader)
    for step in range(start, stop):
        before = time.perf_counter()
        raw, skipped = next(batches)
        waited = time.perf_counter() - before
        if steps.final:
            batch = [v.to(device) for v in raw]
        else:
            batch = steps.views(
                tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), raw), step, device
            )
        yield Fetched(batch, skipped, waited)


def _quiet(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer decides when its workers end. One thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
