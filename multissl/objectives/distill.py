"""Distillation: a student has the features of frozen teachers, pooled and token by token.

A teacher is an encoder of another run or a published one; its weights are no part of a checkpoint, its digest is. It
sees the views that the student sees, or, on pairs, another stream of the same samples (SoundNet: a teacher of pictures,
a student of sounds). A head of the student for each teacher and kind of feature leads to the teacher's width. The loss:
  sum over teachers of weight * (pooled_weight * distance of pooled + tokens_weight * distance of tokens)
Tokens are compared within a stream alone; a teacher's grid is resampled to the student's. Several teachers are balanced
by PHI-S (`losses/phi_s.py`): each channel of their features then has a variance of 1, and "mse" is the paper's metric.
Shapes: V views, B samples on this rank, R = V*B rows, N tokens, D width.
State: the student's heads; of each teacher its digest and, where they are balanced, mean and matrix of its features.
Collectives: sums over ranks in the first step where balance=phi_s; sums of counts where samples lack a stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Role, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.frozen import UNTRAINED, Balance, FrozenTeacher, spec_of
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std, mean_of
from multissl.losses.distill import Metric, feature_errors, grid_of, resample
from multissl.parallel.ranks import is_main
from multissl.precision import at_least_fp32
from multissl.registry import suggest

log = logging.getLogger("multissl")


def _default() -> dict[str, FrozenTeacher.Config]:
    return {"main": FrozenTeacher.Config()}


class Distill(Objective):
    """A student of one stream or several has what frozen teachers see."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of distillation."""

        teachers: dict[str, FrozenTeacher.Config] = field(default_factory=_default)
        """The teachers by a name of your own, which their figures bear."""
        students: tuple[str, ...] = ()
        """Streams whose encoders are trained; empty: all. A stream that is not among them ships its teacher."""
        num_views: int = 1
        """Global views of a sample where there is one stream; of several, each has a clean view."""
        pooled: Metric = "cosine"
        """Distance of pooled features: cosine, smooth_l1, mse, or mixed of the first two."""
        pooled_weight: float = 1.0
        """Weight of the pooled features; 0 leaves them out."""
        tokens: Metric = "smooth_l1"
        """Distance of tokens; AM-RADIO's is mixed."""
        tokens_weight: float = 1.0
        """Weight of the tokens, of teachers that read the student's stream; 0 leaves them out."""
        balance: Literal["none", "phi_s"] = "none"
        """Take a teacher's features as they are, or turned and scaled so that each channel has a variance of 1."""
        head: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=2048, layers=2, norm="layer")
        )
        """Head of the student for each teacher and kind of feature; `out` is the teacher's width, whatever it says."""

        def __post_init__(self) -> None:
            if not self.teachers:
                raise ValueError(
                    "objective.teachers is empty: name one, --objective.teachers.NAME.weights FILE"
                )
            for name in self.teachers:
                if "." in name or "/" in name or not name:
                    raise ValueError(f"objective.teachers.{name}: want a name without dots and slashes")
            for name in ("pooled_weight", "tokens_weight"):
                if getattr(self, name) < 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            if not self.pooled_weight and not self.tokens_weight:
                raise ValueError("objective.pooled_weight and tokens_weight are both 0: set one above 0")
            if self.num_views < 1:
                raise ValueError(f"objective.num_views={self.num_views}: want 1 or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.specs = cfg, dict(streams)
        self.students = cfg.students or tuple(streams)
        for stream in self.students:
            if stream not in streams:
                raise ValueError(f"objective.students names {stream!r}, no stream{suggest(stream, streams)}")
        self.reads_tokens = cfg.tokens_weight > 0
        self.role: Role = "global" if len(streams) == 1 else "clean"
        self.teachers: PerStream[FrozenTeacher] = PerStream(
            {name: self.hire(name, each, encoders) for name, each in cfg.teachers.items()}
        )
        self.heads: PerStream[nn.Module] = PerStream()
        self.balances: PerStream[Balance] = PerStream()
        widths = encoders.widths()
        for name, teacher in self.teachers.items():
            width = teacher.encoder.dim
            for kind in self.kinds(teacher):
                if cfg.balance == "phi_s":
                    self.balances[f"{name}/{kind}"] = Balance(width)
                for stream in self.students:
                    if kind == "pooled" or stream == teacher.stream:
                        head = cfg.head.replace(out=width)
                        self.heads[f"{name}/{kind}/{stream}"] = head.build(widths[stream])
        if not len(self.heads):
            raise ValueError(
                "objective.pooled_weight=0 leaves nothing to compare: no teacher reads the stream of a student, and "
                "tokens are compared within a stream alone"
            )

    def hire(self, name: str, cfg: FrozenTeacher.Config, encoders: Encoders) -> FrozenTeacher:
        """Return a teacher with the weights that it begins with; `build` fills it."""
        stream = cfg.stream or next(iter(self.specs))
        if stream not in self.specs:
            raise ValueError(
                f"objective.teachers.{name}.stream={stream} is none of the data's{suggest(stream, self.specs)}"
            )
        spec = spec_of(cfg, name, self.specs[stream])
        if cfg.encoder is None and spec is not self.specs[stream]:
            raise ValueError(
                f"objective.teachers.{name}.patch={cfg.patch} wants an architecture: give "
                f"objective.teachers.{name}.encoder, or weights that tell it"
            )
        if cfg.weights == UNTRAINED and is_main():
            log.warning("objective.teachers.%s.weights=%s: its student learns little", name, UNTRAINED)
        own = copy.deepcopy(encoders[stream]) if cfg.encoder is None else cfg.encoder.build(spec)
        own.locked = False
        return FrozenTeacher(cfg, f"objective.teachers.{name}", stream, spec, own)

    def kinds(self, teacher: FrozenTeacher) -> list[str]:
        """Which features of a teacher are compared."""
        kinds = ["pooled"] if self.cfg.pooled_weight else []
        if self.cfg.tokens_weight and teacher.stream in self.students:
            kinds.append("tokens")
        return kinds

    def plans(self) -> Plans:
        """Global views of a single stream, or one clean view of each of several."""
        alone = len(self.specs) == 1
        plan = ViewPlan(num_global=self.cfg.num_views) if alone else ViewPlan(num_clean=1)
        return dict.fromkeys(self.specs, plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The distances of this rank's rows from every teacher."""
        cfg, views = self.cfg, {s: batch.of(s, self.role) for s in self.specs}
        features = dict(zip(self.students, encoders.encode([views[s] for s in self.students]), strict=True))
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for name, teacher in self.teachers.items():
            options, shown = cfg.teachers[name], views[teacher.stream]
            if shown.valid is not None and teacher.spec is not self.specs[teacher.stream]:
                raise ValueError(
                    f"objective.teachers.{name}.patch={options.patch}: views of {teacher.stream} have padding, "
                    "which is known of the student's patches alone: leave it empty"
                )
            with torch.no_grad():
                (seen,) = teacher.encoders.encode([shown], "none")
            for kind in self.kinds(teacher):
                target = self.target(name, kind, seen, shown)
                for stream, own in features.items():
                    key = f"{name}/{kind}/{stream}"
                    if key in self.heads:
                        term = f"{name}/{kind}" if len(self.students) == 1 else key
                        terms[term] = self.distance(key, kind, own, views[stream], target, shown)
                        share = cfg.pooled_weight if kind == "pooled" else cfg.tokens_weight
                        weights[term] = options.weight * share
        first = self.students[0]
        z = at_least_fp32(features[first].pooled).unflatten(0, (views[first].num_views, -1))
        present = views[first].present
        return Losses.weigh(terms, weights, {"std": embedding_std(z, present)})

    @torch.no_grad()
    def target(self, name: str, kind: str, seen: Features, shown: Views) -> Tensor:
        """A teacher's features, balanced where that is asked for: [R, D] or, of its own grid, [R, N, D]."""
        target = at_least_fp32(seen.pooled if kind == "pooled" else seen.tokens)
        key = f"{name}/{kind}"
        if key not in self.balances:
            return target
        keep = shown.present_rows if kind == "pooled" else shown.real_tokens(target.shape[1])
        flat = self.balances[key](target.flatten(0, -2), None if keep is None else keep.flatten())
        return flat.view_as(target)

    def distance(
        self, key: str, kind: str, own: Features, views: Views, target: Tensor, shown: Views
    ) -> Tensor:
        """The distance of a student's pooled features or tokens from a target, the mean over what is there."""
        if kind == "pooled":
            keep = views.present_rows  # [R]
            if shown.present_rows is not None:
                keep = shown.present_rows if keep is None else keep & shown.present_rows
            pred = self.heads[key](own.pooled, keep)  # [R, D]
            return mean_of(feature_errors(pred, target, self.cfg.pooled), keep)
        count = own.tokens.shape[1]
        real = views.real_tokens(count)  # [R, N]
        target = self.placed(key, target, count, views)
        pred = self.heads[key](own.tokens.flatten(0, 1), None if real is None else real.flatten())
        errors = feature_errors(pred.unflatten(0, (-1, count)), target, self.cfg.tokens)  # [R, N]
        return mean_of(errors, real)

    def placed(self, key: str, target: Tensor, count: int, views: Views) -> Tensor:
        """A teacher's tokens [R, N', D] at the places of the student's [R, N, D]."""
        if target.shape[1] == count:
            return target
        name, _, stream = key.split("/", 2)
        grid = self.specs[stream].grid if self.specs[stream].kind == "grid" else ()
        try:
            if views.valid is not None:
                raise ValueError("of views with padding")
            return resample(target, grid_of(target.shape[1], grid), grid_of(count, grid))
        except ValueError as error:
            raise ValueError(
                f"objective.tokens_weight={self.cfg.tokens_weight}: teacher {name} gives {target.shape[1]} tokens of "
                f"{stream} where the student gives {count} ({error}), and they cannot be resampled; set it to 0, or "
                "give both the same patches"
            ) from None

    def exported(self, encoders: Encoders) -> Encoders:
        """The students; of a stream that none reads, the teacher that reads it."""
        readers = {teacher.stream: teacher for teacher in self.teachers.values()}
        return Encoders(
            {
                stream: encoder
                if stream in self.students or stream not in readers
                else readers[stream].encoder
                for stream, encoder in encoders.items()
            }
        )

    def shard_units(self) -> list[nn.Module]:
        """The teachers' blocks."""
        return [unit for teacher in self.teachers.values() for unit in teacher.shard_units()]
