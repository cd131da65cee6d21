"""Raw batches by step: what a rank trains on depends on (seed, step) and on nothing else.

Samples come in one endless sequence: epoch e is a permutation drawn from (seed, e), and step s takes the next
batch_size of them, so a batch may straddle two epochs and every epoch sees each sample once, on any number of ranks.
An unreadable sample is listed, and the next readable one takes its place.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from multissl.config import Config
from multissl.contract.data import Batch, Raw, Sample, Unreadable
from multissl.contract.modality import Modality
from multissl.contract.plans import Plans
from multissl.devices import copied
from multissl.engine.deaths import named_deaths
from multissl.random import RowRandom

WORKER, DEVICE = 0, 1
"""The lines of random numbers of a step: what workers draw, and what is drawn on the device."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to end; they often reach its workers, too."""
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
    """Where color, blur and the like are computed."""

    def num_workers(self, ranks: int) -> int:
        """Return the number of workers of each rank."""
        if self.workers >= 0:
            return self.workers
        return max(0, min(16, (os.cpu_count() or 1) // ranks - 1))


class Fetched(NamedTuple):
    """A batch, which samples could not be read for it, and how long the training waited for it in seconds."""

    batch: Batch
    skipped: list[tuple[int, str]]
    waited: float


class StepBatches(Dataset[Any]):
    """Item `step` is this rank's raw batch of that step, and the samples that were skipped for it."""

    def __init__(
        self,
        modality: Modality,
        plans: Plans,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        final: bool,
        begins: tuple[int, int] = (0, 0),
    ) -> None:
        """`begins`: a step, and how many samples of the sequence were drawn before it by batches of other sizes."""
        self.begins = begins
        self.modality, self.plans, self.seed, self.final = modality, plans, seed, final
        self.samples = modality.dataset("train")
        self.total = batch_size
        self.rows = batch_size // world
        self.first = rank * self.rows
        self._order: tuple[int, Tensor] | None = None
        self._broken: dict[int, str] = {}

    def __getitem__(self, step: int) -> tuple[Any, list[tuple[int, str]]]:
        start = self.drawn(step) + self.first
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

    def drawn(self, step: int) -> int:
        """Return how many samples all ranks draw before a step."""
        return self.begins[1] + (step - self.begins[0]) * self.total

    def random(self, step: int, line: int) -> RowRandom:
        """Return the random numbers of this rank's rows."""
        return RowRandom((self.seed, step, line), self.first, self.rows, self.total)

    def views(self, raw: Raw, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return the views of a raw batch that lies on `device`, each with its samples' places among all ranks'."""
        batch = self.modality.views(raw, self.plans, self.random(step, DEVICE).to(device))
        place = torch.arange(self.first, self.first + self.rows, device=device)
        return Batch(replace(views, place=place) for views in batch)

    def index(self, position: int) -> int:
        """Return which sample stands at a position of the endless sequence."""
        count = len(self.samples)
        epoch, place = divmod(position, count)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(count, generator=generator))
        return int(self._order[1][place])

    def indices(self, step: int) -> Tensor:
        """Return which samples all ranks' rows of a step are, where all can be read: int64 [batch_size]."""
        count, position, parts = len(self.samples), self.drawn(step), list[Tensor]()
        end = position + self.total
        while position < end:
            self.index(position)  # the order of its epoch
            assert self._order
            place = position % count
            parts.append(self._order[1][place : place + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def readable(self, index: int, skipped: list[tuple[int, str]]) -> Sample:
        """Return the sample, or the next one that can be read; the unreadable ones join `skipped`."""
        count = len(self.samples)
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
        count = len(self.samples)
        if len(self._broken) >= min(PATIENCE, count):
            index, reason = next(iter(self._broken.items()))
            raise ValueError(
                f"modality.data: {len(self._broken)} of {count} samples cannot be read, the first being {index} "
                f"({reason}); check the folder or the format"
            )


def batches_of(
    steps: StepBatches, start: int, stop: int, cfg: Data, ranks: int, device: torch.device
) -> Generator[Fetched, None, None]:
    """Yield the batches of steps start..stop-1 on a device, prepared ahead by workers, which end when it is closed."""
    batches = _batches(steps, start, stop, cfg, ranks, device)
    _OPEN.add(batches)
    return batches


_OPEN: weakref.WeakSet[Generator[Fetched, None, None]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what was left open: at exit multiprocessing waits for workers, after a SIGTERM that they ignore."""
    for batches in list(_OPEN):
        batches.close()


def _batches(
    steps: StepBatches, start: int, stop: int, cfg: Data, ranks: int, device: torch.device
) -> Generator[Fetched, None, None]:
    raws = loaded(steps, range(start, stop), cfg.num_workers(ranks), cfg.prefetch, pin=device.type == "cuda")
    with contextlib.closing(raws):
        for step in range(start, stop):
            before = time.perf_counter()
            raw, skipped = next(raws)
            waited = time.perf_counter() - before
            batch = raw.to(device) if steps.final else steps.views(copied(raw, device), step, device)
            yield Fetched(batch, skipped, waited)


def loaded(
    items: Dataset[Any], order: Sequence[int], workers: int, prefetch: int = 2, *, pin: bool = False
) -> Generator[Any, None, None]:
    """Yield items in an order, made ahead by workers, which hear no signal and end when it is closed."""
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin,
        worker_init_fn=_begin_worker if workers else None,
    )
    with _held_back_signals():
        made = iter(loader)
    try:
        for _ in order:
            with named_deaths(made):
                item = next(made)
            yield item
    finally:
        _end_workers(made)


@contextlib.contextmanager
def _held_back_signals() -> Iterator[None]:
    """Hold back the signals of `ENDING`; processes that are started meanwhile hold them back for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(_worker: int) -> None:
    """Prepare a worker: one thread, deaf to the signals of `ENDING`, which are the trainer's to answer."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Wait for the end of the training process and end this worker, even one that waits for a full queue or a read."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _end_workers(batches: Any) -> None:
    """End the workers of a loader's iterator, also one that is stuck, for which torch has the SIGTERM they ignore."""
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        try:
            batches._shutdown_workers()
        finally:
            for worker in batches._workers:
                worker.kill()
