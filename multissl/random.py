"""Random numbers that depend on (seed, step, row) and on nothing else.

Every draw is made for the whole global batch and a rank keeps its rows, so a run makes the same views on any number
of ranks and resumes exactly without saving a generator. What must not disturb what else is drawn (a role, a kind of
mask, an augmentation) draws from a stream of its own, `fork("masks")`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


class RowRandom:
    """Draws for `rows` consecutive rows, starting at row `first` of a global batch of `total` rows.

    Draws follow each other in the order of the calls, as with any generator; `fork(tag)` opens an independent stream.
    Values are drawn on the CPU, so that every device sees the same, and moved to `device`.
    """

    def __init__(
        self, key: tuple[int, ...], first: int, rows: int, total: int, device: torch.device | str = "cpu"
    ) -> None:
        self.key, self.first, self.rows, self.total = key, first, rows, total
        self.device = torch.device(device)
        state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        self._generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))

    def fork(self, tag: str) -> RowRandom:
        """Return the stream of draws of that name for the same rows, from its start.

        It depends on the key and the tag alone: neither on earlier draws nor on which other streams there are.
        """
        return RowRandom((*self.key, number_of(tag)), self.first, self.rows, self.total, self.device)

    def to(self, device: torch.device | str) -> RowRandom:
        """Return the same stream of draws from its start, delivered on another device."""
        return RowRandom(self.key, self.first, self.rows, self.total, device)

    def _mine(self, everyone: Tensor) -> Tensor:
        return everyone[self.first : self.first + self.rows].to(self.device, non_blocking=True)

    def rand(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32 [rows, *shape]."""
        return self._mine(torch.rand(self.total, *shape, generator=self._generator))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return uniform numbers in [low, high), float32 [rows, *shape]."""
        return low + (high - low) * self.rand(*shape)

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 [rows, *shape]."""
        return self._mine(torch.randn(self.total, *shape, generator=self._generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return uniform integers in 0..high-1, int64 [rows, *shape]."""
        return self._mine(torch.randint(high, (self.total, *shape), generator=self._generator))

    def hit(self, probability: float, *shape: int) -> Tensor:
        """Return True with a probability, bool [rows, *shape]."""
        return self.rand(*shape) < probability

    def common(self) -> np.random.Generator:
        """Return a numpy generator that is the same on every rank, for what a whole step has in common."""
        return np.random.default_rng(np.random.SeedSequence(self.key))

    def group(self, size: int) -> list[np.random.Generator]:
        """Return a numpy generator for each whole group of `size` consecutive rows of this rank.

        For draws that are stratified inside a group (block masks). Raises where a rank owns part of a group.
        """
        if self.first % size or self.rows % size:
            raise ValueError(f"{self.rows} rows from row {self.first} are not whole groups of {size}")
        lanes = range(self.first // size, (self.first + self.rows) // size)
        return [np.random.default_rng(np.random.SeedSequence((*self.key, lane))) for lane in lanes]


def number_of(tag: str) -> int:
    """Return 64 bits of the tag's digest, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=8).digest(), "little")
