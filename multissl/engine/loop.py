"""Options of the loop, whatever is trained; a recipe adds what is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from multissl.config import Config
from multissl.contract.logger import Logger
from multissl.engine.batches import Data
from multissl.engine.best import Best
from multissl.engine.checkpoint import Save
from multissl.engine.learner import ChunkNorm
from multissl.engine.loggers.tensorboard import TensorBoard
from multissl.parallel.sharding import Parallel


@dataclass(kw_only=True, slots=True)
class Loop(Config):
    """Options of the loop itself; a recipe adds what is trained."""

    renamed: ClassVar[Mapping[str, str]] = {"tensorboard": "loggers"}

    batch_size: int = 256
    """Samples per step, over all ranks."""
    steps: int = 10_000
    """Steps to train."""
    seed: int = 0
    """Seed of initial weights, of views and of the order of samples."""
    clip: float = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    clip_per: Literal["all", "module", "parameter"] = "all"
    """What is clipped together: everything, each encoder and head (DINOv2), or each parameter (DINO)."""
    chunk: int = 0
    """Samples encoded at a time on a rank: exact large batches on small memory; 0 encodes all at once."""
    chunk_norm: ChunkNorm = "whole"
    """What an encoder's batch norm normalizes by. whole: all rows of the rank, which rules out chunks; micro: each
    chunk's own rows, as if the encoder saw smaller batches, which makes the chunk a part of the result."""
    parallel: Parallel = field(default_factory=Parallel)
    """How the run is distributed over devices."""
    data: Data = field(default_factory=Data)
    """How samples are read."""
    save: Save = field(default_factory=Save)
    """When checkpoints are written, and which are kept."""
    best: Best = field(default_factory=Best)
    """The figure by which the best checkpoint is kept, and by which a run that gets no better ends."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    loggers: dict[str, Logger.Config] = field(default_factory=lambda: {"tensorboard": TensorBoard.Config()})
    """Where metrics go besides the run's own record, by a name that is also that of their folder in the run."""
    eval_seconds: float = 0.0
    """The most seconds that evaluators take at a time while the run goes on, by how long they took last; which are left
    out is said. The first and the last time all are run. 0: no limit."""
    patience: int = 5
    """Steps in a row with a non-finite loss or gradient after which the run stops; each is skipped and dumped."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "log_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: want 1 or more")
        for name in ("clip", "chunk", "eval_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: want 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where the steps of a stage lie in the run that it is part of; by default the stage is the whole run."""

    stage: str = ""
    """What its checkpoints say they belong to."""
    start: int = 0
    """Steps of the run before it."""
    samples: int = 0
    """Samples that were drawn before it."""
    total: int = 0
    """Steps of the whole run; 0: those of the stage."""
    borders: tuple[int, ...] = ()
    """The steps at which stages end that another one follows; their checkpoints are kept."""
