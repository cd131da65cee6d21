"""The learner: encoders and an objective as one module, so that sharding, state and gradients have one root.

`Chunked` gives exact large batches on small memory to every objective: it encodes a few samples at a time without
gradient, lets the loss see all rows, then replays each chunk with the gradient the loss left on its features
(Gao et al. 2021, arXiv 2101.06983).
Shapes: B samples, c samples a chunk, V views, R = V*B rows, D width, N tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from multissl.parallel.sharding import uncompiled
from multissl.types import Batch, Features, Losses, Masking, Progress, Views

Which = Literal["exported", "student"]


class Learner(nn.Module):
    """What is trained: `encoders` (stream -> encoder) driven by `objective`."""

    def __init__(self, encoders: nn.ModuleDict, objective: nn.Module, chunk: int = 0) -> None:
        super().__init__()
        self.encoders, self.objective, self.chunk = encoders, objective, chunk
        self._replay: list[_Chunk] = []
        norms = [m for m in encoders.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if chunk and any(m.training for m in norms):  # a locked encoder's statistics stand still
            raise ValueError(
                f"chunk={chunk}: an encoder holds batch norm, whose statistics depend on the chunk; "
                "use chunk=0 or an encoder without batch norm"
            )

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """The objective's losses on this rank's rows."""
        self._replay = []
        if not self.chunk:
            return self.objective(self.encoders, batch, progress)
        tokens = bool(self.objective.reads_tokens)
        return self.objective(Chunked(self.encoders, self.chunk, self._replay, tokens), batch, progress)

    def backward(self, losses: Losses) -> None:
        """Gradients of the total, then those of the chunks."""
        losses.total.backward()
        for chunk in self._replay:
            self.replay(chunk)
        self._replay = []

    def replay(self, chunk: _Chunk) -> None:
        """Encode a chunk again, with gradient, and pass on what the loss asked of its features."""
        some = [v.samples(chunk.piece) for v in chunk.views]
        with _random_state(chunk.random):
            features = cast(Any, self.encoders).encode(some, chunk.masking, chunk.inner)
        pairs = [
            (again, first.grad[rows])
            for feature, leaves, row_sets in zip(features, chunk.leaves, chunk.rows, strict=True)
            for (again, first), rows in zip(_paired(feature, leaves), row_sets, strict=True)
            if first.grad is not None and again.requires_grad
        ]
        if pairs:
            torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])

    def encode(
        self, which: Which, views: Sequence[Views], masking: Masking = "none", inner: int = 0
    ) -> list[Features]:
        """Features outside a training step, uncompiled: by what is shipped, or by the student."""
        encoders = self.encoders if which == "student" else self.shipped()
        with uncompiled():
            return cast(Any, encoders).encode(views, masking, inner)

    def errors(self, views: Views) -> Tensor:
        """What the objective's predictions of the parts of views cost, one by one; see the objective's `errors`."""
        with uncompiled():
            return cast(Any, self.objective).errors(self.encoders, views)

    def handle(self, which: Which, device: torch.device) -> Handle:
        """One of the two sides, for evaluators."""
        errors = self.errors if hasattr(self.objective, "errors") else None
        return Handle(functools.partial(self.encode, which), device, errors=errors)

    def shipped(self) -> nn.ModuleDict:
        """Return the encoders that the objective exports: what is evaluated, checked and written."""
        return cast(Any, self.objective).exported(self.encoders)

    def has_teacher(self) -> bool:
        """Whether what is shipped is not the student itself."""
        return not {*self.shipped().modules()}.issuperset(self.encoders.values())

    def shard_units(self) -> list[nn.Module]:
        """Blocks and heads to checkpoint, compile and shard one by one."""
        return [*cast(Any, self.encoders).shard_units(), *cast(Any, self.objective).shard_units()]

    def entry_points(self) -> list[str]:
        """The methods besides `forward` that may encode."""
        return ["encode", "replay", "errors"]

    def clip_groups(self, per: Literal["all", "module", "parameter"]) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters, grouped as their gradients are clipped: encoders and heads are the modules."""
        named = {n: p for n, p in self.named_parameters() if p.requires_grad}
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in named.items():
            # encoders.image.trunk... and objective.dino_head.mlp... are clipped as encoders.image, objective.dino_head.
            key = {"all": "all", "module": ".".join(name.split(".")[:2]), "parameter": name}[per]
            groups.setdefault(key, []).append(parameter)
        return groups


@dataclass(slots=True)
class Handle:
    """Encoders as evaluators see them: a way in, and where they lie."""

    door: Callable[[Sequence[Views], Masking, int], list[Features]]
    device: torch.device
    memory: dict[Any, Any] = field(default_factory=dict)
    """Features that evaluators share; a handle lives while the weights stay as they are."""
    errors: Callable[[Views], Tensor] | None = None
    """The objective's errors where it tells them and is at hand: a saved encoder comes without its objective."""

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item."""
        return self.door(views, masking, inner)


@dataclass(slots=True)
class _Chunk:
    views: list[Views]
    """Of the whole batch: a copy of each chunk's would be a second batch in memory."""
    piece: Tensor
    """The samples of this chunk."""
    masking: Masking
    inner: int
    random: tuple[Tensor, Tensor | None]
    leaves: list[Features]
    """The features of all rows that the loss saw, as leaves of its graph; one an item of `views`."""
    rows: list[list[Tensor]]
    """Which rows of each leaf this chunk made: for pooled, tokens and every inner output of each item."""


class Chunked:
    """Encoders holding the activations of `size` samples at a time; without `tokens` features have none: [R, 0, D]."""

    def __init__(self, encoders: nn.ModuleDict, size: int, record: list[_Chunk], tokens: bool = True) -> None:
        self.encoders, self.size, self.record, self.tokens = encoders, size, record, tokens

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of all samples, computed `size` samples at a time."""
        batch, device = views[0].batch, views[0].x.device
        pieces = torch.arange(batch, device=device).split(self.size)
        states, parts = [], []
        for piece in pieces:
            some = [v.samples(piece) for v in views]
            states.append(_get_random_state())
            with torch.no_grad():
                found = cast(Any, self.encoders).encode(some, masking, inner)
            parts.append(
                found if self.tokens else [replace(f, tokens=f.tokens[:, :0].clone()) for f in found]
            )
        rows = [[_rows(v, piece) for v in views] for piece in pieces]
        leaves = [
            _join([p[i] for p in parts], torch.cat([r[i] for r in rows]).argsort()) for i in range(len(views))
        ]
        if torch.is_grad_enabled():
            for leaf in leaves:
                for tensor in _tensors(leaf):
                    tensor.requires_grad_()
            for state, piece, row in zip(states, pieces, rows, strict=True):
                sets = [[r] * len(_tensors(leaf)) for r, leaf in zip(row, leaves, strict=True)]
                self.record.append(_Chunk([*views], piece, masking, inner, state, leaves, sets))
        return leaves


def _rows(views: Views, piece: Tensor) -> Tensor:
    return (torch.arange(views.num_views, device=piece.device)[:, None] * views.batch + piece).flatten()


def _tensors(feature: Features) -> list[Tensor]:
    return [feature.pooled, feature.tokens, *feature.inner]


def _paired(a: Features, b: Features) -> list[tuple[Tensor, Tensor]]:
    return list(zip(_tensors(a), _tensors(b), strict=True))


def _join(parts: list[Features], order: Tensor) -> Features:
    joined = [torch.cat(tensors)[order] for tensors in zip(*map(_tensors, parts), strict=True)]
    return Features(pooled=joined[0], tokens=joined[1], inner=tuple(joined[2:]))


def _get_random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


class _random_state:
    """Replays the draws of a chunk's first pass (drop path), then returns to the present ones."""

    def __init__(self, state: tuple[Tensor, Tensor | None]) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.before = _get_random_state()
        self._set(self.state)

    def __exit__(self, *_: object) -> None:
        self._set(self.before)

    @staticmethod
    def _set(state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1])
