"""The learner: encoders and an objective as one module, so that sharding, state and gradients have one root."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.abilities import PredictsParts, Shardable
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders, depths_of
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking
from multissl.engine.buffers import Buffers
from multissl.engine.chunked import Chunk, Chunked, replayed
from multissl.parallel.compiling import uncompiled

Which = Literal["exported", "student"]
ChunkNorm = Literal["whole", "micro"]


class Learner(Shardable):
    """What is trained: `encoders` (stream -> encoder) driven by `objective`."""

    def __init__(
        self, encoders: Encoders, objective: Objective, chunk: int = 0, chunk_norm: ChunkNorm = "whole"
    ) -> None:
        super().__init__()
        self.encoders: Encoders = encoders
        self.objective: Objective = objective
        self.chunk = chunk
        self._replay: list[Chunk] = []
        self.trains_batch_norm = any(encoder.trains_batch_norm() for encoder in encoders.values())
        if chunk and self.trains_batch_norm and chunk_norm == "whole":
            raise ValueError(
                f"chunk={chunk}: an encoder holds batch norm, whose statistics depend on the chunk; set "
                "chunk_norm=micro to normalize by each chunk's rows, or use chunk=0 or an encoder without batch norm"
            )
        self._statistics = Buffers(encoders) if chunk and self.trains_batch_norm else None

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """Return the objective's losses on this rank's rows."""
        self._replay = []
        if not self.chunk:
            return self.objective(self.encoders, batch, progress)
        tokens = self.objective.reads_tokens
        return self.objective(Chunked(self.encoders, self.chunk, self._replay, tokens), batch, progress)

    def backward(self, losses: Losses) -> None:
        """Compute the gradients of the total, then those of the chunks."""
        losses.total.backward()
        if self._statistics:  # running statistics count a batch once, though it is encoded twice
            self._statistics.keep()
        for chunk in self._replay:
            self.replay(chunk)
        if self._statistics:
            self._statistics.restore()
        self._replay = []

    def replay(self, chunk: Chunk) -> None:
        """Encode a chunk again, with gradient, and pass on the gradient that the loss left on its features."""
        some = [v.samples(chunk.piece) for v in chunk.views]
        with replayed(chunk.random):
            features = self.encoders.encode(some, chunk.masking, chunk.inner)
        pairs = chunk.gradients(features)
        if pairs:
            torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])

    def encode(
        self, which: Which, views: Sequence[Views], masking: Masking = "none", inner: int = 0
    ) -> list[Features]:
        """Return features outside a training step, uncompiled: by what is shipped, or by the student."""
        encoders = self.encoders if which == "student" else self.shipped()
        with uncompiled():
            return encoders.encode(views, masking, inner)

    def part_errors(self, views: Views) -> Tensor:
        """Return what the objective's predictions of parts cost, where it makes such predictions."""
        assert isinstance(self.objective, PredictsParts)
        with uncompiled():
            return self.objective.part_errors(self.encoders, views)

    def frozen(self, which: Which, device: torch.device) -> FrozenEncoders:
        """Return one of the two sides for evaluators."""
        errors = self.part_errors if isinstance(self.objective, PredictsParts) else None
        depths = depths_of(self.encoders)
        return FrozenEncoders(
            functools.partial(self.encode, which), device, part_errors=errors, depths=depths
        )

    def shipped(self) -> Encoders:
        """Return the encoders that the objective exports: what is evaluated, checked and written."""
        return self.objective.exported(self.encoders)

    def has_teacher(self) -> bool:
        """Return whether what is shipped is not the student itself."""
        return not {*self.shipped().modules()}.issuperset(self.encoders.values())

    def shard_units(self) -> list[nn.Module]:
        """Return blocks and heads to checkpoint, compile and shard one by one."""
        return [*self.encoders.shard_units(), *self.objective.shard_units()]

    def entry_points(self) -> list[str]:
        """Return the methods besides `forward` that may encode."""
        return ["encode", "replay", "part_errors"]

    def clip_groups(self, per: Literal["all", "module", "parameter"]) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters in groups whose gradients are clipped together.

        The modules are each stream's encoder and what the objective names, its heads; parameters outside them are
        groups of their own.
        """
        named = {n: p for n, p in self.named_parameters() if p.requires_grad}
        if per == "all":
            return {"all": list(named.values())}
        if per == "parameter":
            return {name: [parameter] for name, parameter in named.items()}
        modules = {f"encoders.{stream}": encoder for stream, encoder in self.encoders.items()}
        modules |= {f"objective.{name}": module for name, module in self.objective.clip_modules().items()}
        owners = {id(p): name for name, module in reversed(modules.items()) for p in module.parameters()}
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in named.items():
            groups.setdefault(owners.get(id(parameter), name), []).append(parameter)
        return groups
