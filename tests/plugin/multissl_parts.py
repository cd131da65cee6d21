"""One small part of each kind, as a package of somebody else would add them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoder, Encoders
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.logger import Kind, Logger, Session
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.engine.optim.base import Optimizer
from multissl.exporting.base import Exporter, Subject
from multissl.exporting.programs import program_of
from multissl.inference import clean_views
from multissl.layers.heads import MLPHead
from multissl.layers.kernels.base import Kernel, Layout
from multissl.sources.base import Listing, Request, Source
from multissl.weights.files import State
from multissl.weights.layouts.base import Layout as Naming


class Agreement(Objective):
    """Two views of a sample agree, and samples do not: the cosines of a batch are those of one-hot vectors."""

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of agreement."""

        width: int = 16
        """Of the space in which views are compared."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        (self.stream,) = streams
        self.head = nn.Linear(encoders.widths()[self.stream], cfg.width)

    def plans(self) -> Plans:
        """Two views of every sample."""
        return {self.stream: ViewPlan(num_global=2)}

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The mean squared distance of cosines from 1 between views of a sample, and from 0 otherwise."""
        (views,) = batch
        z = nn.functional.normalize(self.head(encoders.encode([views])[0].pooled.float()), dim=1)
        one, other = z.unflatten(0, (2, -1))
        cosines = one @ other.T  # [B, B]
        total = (cosines - torch.eye(len(cosines), device=z.device)).pow(2).mean()
        return Losses(total=total, terms={"agreement": total.detach()})


class Pooled(Encoder):
    """The mean of each channel over space, through one linear."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of pooling."""

        dim: int = 8

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.linear = nn.Linear(2 * spec.shape[0], cfg.dim)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item, one token each."""
        outputs = []
        for v in views:
            x = v.x.flatten(2)
            outputs.append(self.linear(torch.cat([x.mean(2), x.std(2)], 1)))
        return [Features(pooled=y, tokens=y[:, None]) for y in outputs]


class Width(Evaluator):
    """How far features of held-out samples lie from their mean."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the width."""

        samples: int = 16

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """Return the mean deviation."""
        data, stream = modality.dataset("val"), next(iter(modality.streams()))
        some = [data[i] for i in range(min(self.cfg.samples, len(data)))]
        (features,) = encoders.encode([clean_views(modality, some, stream, encoders.device)])
        return {"deviation": features.pooled.float().std(0).mean().item()}


class Written(Kernel):
    """Attention as its formula is written, for groups without padding."""

    name = "written"

    def __call__(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Attend, group by group."""
        outputs: list[Tensor] = []
        for part, (rows, tokens) in zip(qkv.split(layout.lengths), layout.sizes, strict=True):
            q, k, v = part.view(rows, tokens, *part.shape[1:]).permute(2, 0, 3, 1, 4)  # each [R, H, N, d]
            scores = q @ k.mT / q.shape[-1] ** 0.5
            outputs.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


class OldNames(Naming):
    """The names that `Pooled` had once: `scale`, transposed, and `shift`."""

    name = "old_names"

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether there are those two names."""
        return set(names) == {"scale", "shift"}

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Rename, and turn the matrix."""
        return {"linear.weight": state["scale"].T, "linear.bias": state["shift"]}


class Signs(Optimizer):
    """Steps of the same size for every number (signSGD)."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizer.Config):
        """Options of sign steps."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the torch optimizer."""
        return TorchSigns(groups, {"lr": self.lr, "weight_decay": 0.0})


class TorchSigns(torch.optim.Optimizer):
    """Moves every parameter by the learning rate against the sign of its gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())


class WideHead(MLPHead):
    """A projector with another default."""

    @dataclass(kw_only=True, slots=True)
    class Config(MLPHead.Config):
        """Options of the head."""

        hidden: int = 64


class Lines(Logger):
    """A line of text for each metric."""

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        """Options of lines."""

        digits: int = 3

    def __init__(self, cfg: Config, session: Session) -> None:
        self.cfg, self.path = cfg, session.folder / "lines.txt"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the numbers."""
        numbers = [(name, value) for name, value in metrics.items() if not isinstance(value, str)]
        with self.path.open("a") as file:
            file.writelines(f"{step} {kind} {name} {value:.{self.cfg.digits}f}\n" for name, value in numbers)


class Stripes(Source):
    """Striped pictures, `stripes:COUNT`."""

    def matches(self, path: str) -> bool:
        """Return whether the path begins as ours do."""
        return path.startswith("stripes:")

    def stamp(self, request: Request) -> Hashable:
        """Return the path, which says all."""
        return request.path

    def list_samples(self, request: Request) -> Listing:
        """Return the pictures, of which every other one lies across."""
        count = int(request.path.partition(":")[2])
        lines = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] % 4 * 80, (32, 32, 3))
        pictures = [lines if i % 2 else lines.swapaxes(0, 1) for i in range(count)]
        return Listing([p.copy() for p in pictures], [i % 2 for i in range(count)], [""] * count)


class Program(Exporter):
    """A program of torch.export under another name."""

    name = "program"
    reads = "torch.export.load"

    def check(self, subject: Subject) -> None:
        """Accept everything."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Trace and save."""
        torch.export.save(program_of(subject), folder / "net.pt2")

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that load it."""
        load = f"import torch\nprogram = torch.export.load({str(folder / 'net.pt2')!r}).module()\n"
        return load + "def encode(*x):\n    return program(*map(torch.from_numpy, x)).detach().numpy()\n"
