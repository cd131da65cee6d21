"""Exact large batches on small memory, for every objective.

A few samples are encoded at a time without gradient, the loss sees all rows, then each chunk is encoded again with the
gradient that the loss left on its features (Gao et al. 2021, arXiv 2101.06983).
Shapes: B samples, c samples of a chunk, V views, R = V*B rows, D width, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking


@dataclass(slots=True)
class Chunk:
    """Some samples' part of a batch, as it was encoded without gradient."""

    views: list[Views]
    """Of the whole batch: a copy of each chunk's would be a second batch in memory."""
    piece: Tensor
    """The samples of this chunk."""
    masking: Masking
    inner: int
    random: tuple[Tensor, Tensor | None]
    leaves: list[Features]
    """The features of all rows that the loss saw, as leaves of its graph; one per item of `views`."""
    rows: list[list[Tensor]]
    """Which rows of each leaf this chunk made: for pooled, tokens and every inner output of each item."""

    def gradients(self, features: Sequence[Features]) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors of the features made again, each with the gradient that the loss left on its leaf."""
        return [
            (again, first.grad[rows])
            for feature, leaf, row_sets in zip(features, self.leaves, self.rows, strict=True)
            for again, first, rows in zip(_tensors(feature), _tensors(leaf), row_sets, strict=True)
            if first.grad is not None and again.requires_grad
        ]


class Chunked(EncodeFunction):
    """Encoders holding the activations of `size` samples at a time; without `tokens` features have none: [R, 0, D]."""

    def __init__(self, encoders: Encoders, size: int, record: list[Chunk], tokens: bool = True) -> None:
        self.encoders, self.size, self.record, self.tokens = encoders, size, record, tokens

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of all samples, computed `size` samples at a time."""
        batch, device = views[0].batch, views[0].x.device
        pieces = torch.arange(batch, device=device).split(self.size)
        parts, state = [], _get_random_state()
        for piece in pieces:
            some = [v.samples(piece) for v in views]
            # every chunk sees the draws of the whole batch and takes its rows' part of them
            _set_random_state(state)
            with torch.no_grad():
                features = self.encoders.encode(some, masking, inner)
            if not self.tokens:
                features = [replace(f, tokens=f.tokens[:, :0].clone()) for f in features]
            parts.append(features)
        rows = [[v.rows_of(piece) for v in views] for piece in pieces]
        leaves = [
            _join([p[i] for p in parts], torch.cat([r[i] for r in rows]).argsort()) for i in range(len(views))
        ]
        if torch.is_grad_enabled():
            for leaf in leaves:
                for tensor in _tensors(leaf):
                    tensor.requires_grad_()
            for piece, row in zip(pieces, rows, strict=True):
                sets = [[r] * len(_tensors(leaf)) for r, leaf in zip(row, leaves, strict=True)]
                self.record.append(Chunk([*views], piece, masking, inner, state, leaves, sets))
        return leaves


def _tensors(feature: Features) -> list[Tensor]:
    return [feature.pooled, feature.tokens, *feature.inner]


def _join(parts: list[Features], order: Tensor) -> Features:
    joined = [torch.cat(tensors)[order] for tensors in zip(*map(_tensors, parts), strict=True)]
    return Features(pooled=joined[0], tokens=joined[1], inner=tuple(joined[2:]))


def _get_random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


class replayed:
    """Replays the draws of a chunk's first pass (drop path), then returns to the present ones."""

    def __init__(self, state: tuple[Tensor, Tensor | None]) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.before = _get_random_state()
        _set_random_state(self.state)

    def __exit__(self, *_: object) -> None:
        _set_random_state(self.before)
