"""BYOL and SimSiam: a view predicts what the other becomes, without negatives.

BYOL: Grill et al., NeurIPS 2020, arXiv 2006.07733, equation 2: 2 - 2 cos(q(z), sg(z')) for every ordered pair of
views, z' by a teacher of encoders and projectors (not of the predictor) whose batch norms take each batch's own
statistics. SimSiam: Chen and He, CVPR 2021, arXiv 2011.10566: z' is the student's own projection (`target=student`).
Convention: the mean over ordered pairs, 0 to 4. The paper and solo-learn sum over them (`reduction=sum`); SimSiam and
lightly report -cos, which is (ours - 2) / 2. Heads take the views one by one, so that batch norm has each view's own
statistics. With an action between views (`Views.condition`) the predictor reads it too, and a view predicts only the
next one (SPR with one step: Schwarzer et al., ICLR 2021, arXiv 2007.05929).
Shapes: V views, B samples on this rank, P projector width, A width of a condition.
State: projector and predictor per stream; the teacher.  Collectives: batch norm of the heads; sums of counts where
samples lack a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses.byol import byol_loss
from multissl.losses.common import embedding_std
from multissl.objectives.common import head, presence, project, shared_space, views_per_stream


class BYOL(Objective):
    """Views predict each other's projection by a slow teacher, or by the student itself."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of BYOL; SimSiam is target=student, a projector of 3 layers of 2048, a predictor of 512."""

        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=4096, layers=2))
        """Head between the features and the loss."""
        predictor: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=4096, layers=2))
        """Head that predicts the teacher's projection from the student's."""
        use_predictor: bool = True
        """Without one, and without a teacher or a stopped gradient, everything becomes one point."""
        target: Literal["teacher", "student"] = "teacher"
        """Whose projection is predicted: the teacher's (BYOL), or the student's own (SimSiam)."""
        stop_gradient: bool = True
        """Where target=student: no gradient into what is predicted."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(ema=0.996, buffers="keep", batch_norm="batch")
        )
        """The slow copy of the student that makes the targets."""
        reduction: Literal["mean", "sum"] = "mean"
        """Over ordered pairs of views: their mean, or their sum as in the paper."""
        scale: float = 1.0
        """Factor on the loss, which matters where rates do: half of the mean is SimSiam's -cos, less a constant."""
        constant_predictor_lr: bool = False
        """Keep the predictor's learning rate where others warm up and decay (SimSiam)."""
        export: Literal["student", "teacher"] = "student"
        """Whose encoders are evaluated and shipped."""

        def __post_init__(self) -> None:
            if self.use_predictor and self.predictor.out != self.projector.out:
                raise ValueError(
                    f"objective.predictor.out={self.predictor.out}: want objective.projector.out="
                    f"{self.projector.out}, which it predicts"
                )
            if self.scale <= 0:
                raise ValueError(f"objective.scale={self.scale}: want more than 0")
            if self.target == "student" and self.export == "teacher":
                raise ValueError("objective.export=teacher: there is no teacher, use export=student")
            if self.target == "teacher" and not self.stop_gradient:
                raise ValueError(
                    "objective.stop_gradient=False: the teacher never has a gradient, use objective.target=student"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, 2)
        self.condition = next(iter(streams.values())).condition_dim if len(streams) == 1 else 0  # A
        if self.condition and not cfg.use_predictor:
            raise ValueError(
                "objective.use_predictor=False leaves nobody to read the actions between views: set it to True"
            )
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        dim = cfg.projector.out + self.condition
        self.predictors = PerStream({s: cfg.predictor.build(dim) for s in streams if cfg.use_predictor})
        teaches = cfg.target == "teacher"
        self.teacher: Teacher | None = cfg.teacher.build(self.students(encoders)) if teaches else None

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "projectors": self.projectors}

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return dict.fromkeys(self.projectors, self.plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        z = project(encoders, self.projectors, batch, apart=True)  # [V, B, P]
        target, there = self.targets(z, batch), presence(batch)  # [V, B, P], [V, B]
        if self.condition:
            p, target = self.predict(batch[0], z, there, self.actions(batch)), target[1:]  # [V-1, B, P]
            pairs = torch.eye(len(p), dtype=torch.bool, device=z.device)
        else:
            views = [v.num_views for v in batch]
            here = [None] * len(batch) if there is None else there.split(views)
            parts = zip(batch, z.split(views), here, strict=True)
            p = torch.cat([self.predict(*part) for part in parts])  # [V, B, P]
            pairs = ~torch.eye(len(p), dtype=torch.bool, device=z.device)
        predicts = None if there is None else there[: len(p)]
        if there is not None:
            pairs = pairs[:, :, None] & there[: len(p), None] & there[-len(target) :]  # [V, V, B]
        loss = byol_loss(p, target, pairs, self.cfg.reduction)
        stats = {"std": embedding_std(z, there), "prediction_std": embedding_std(p, predicts)}
        return Losses.weigh({"prediction": loss}, {"prediction": self.cfg.scale}, stats)

    def targets(self, z: Tensor, batch: Batch) -> Tensor:
        """What is predicted, [V, B, P]; z is the student's projection."""
        if self.teacher is None:
            return z.detach() if self.cfg.stop_gradient else z
        with torch.no_grad():
            return project(self.teacher.encoders, self.teacher["projectors"], batch, apart=True)

    def actions(self, batch: Batch) -> Tensor:
        """What leads from every view to the next, [V-1, B, A]."""
        (views,) = batch
        if views.condition is None:
            raise ValueError(f"{views.stream} promises conditions of {self.condition} values and gives none")
        return views.condition.unflatten(0, (views.num_views, -1))[1:]

    def predict(
        self, views: Views, z: Tensor, present: Tensor | None = None, actions: Tensor | None = None
    ) -> Tensor:
        """Predictions [V, B, P] from projections z [V, B, P], or [V-1, B, P] from all but the last and actions.

        present bool [V, B] keeps the rows that are not there out of batch norm's statistics.
        """
        if not self.cfg.use_predictor:
            return z
        predictor = self.predictors[views.stream]
        x = z if actions is None else torch.cat([z[:-1], actions.to(z.dtype)], dim=-1)
        narrow = next(predictor.parameters()).dtype  # z was widened; in mixed precision the weights were not
        keep = None if present is None else present[: len(x)].flatten()
        return head(predictor, x.flatten(0, 1).to(narrow), len(x), apart=True, keep=keep)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        if self.teacher is not None:
            self.teacher.update(self.students(encoders), progress)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point, and which option lets them."""
        guards = {n: getattr(self.cfg, n) for n in ("use_predictor", "stop_gradient")}
        return point_alarm("byol", history, "lower optim.lr, or raise objective.teacher.ema", **guards)

    def exported(self, encoders: Encoders) -> Encoders:
        """The student's encoders, as the official code ships, or the teacher's; towers where nothing predicts."""
        if self.cfg.export == "student":
            return super().exported(encoders)
        assert self.teacher is not None
        space = None if self.predictors else shared_space(self.teacher["projectors"])
        return self.teacher.encoders if space is None else space.towers(self.teacher.encoders)

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams and no predictor behind them.

        With one a prediction, not the projection itself, comes to lie beside another stream's projection.
        """
        return None if self.predictors else shared_space(self.projectors)

    def param_rules(self) -> list[ParamRule]:
        """The predictor keeps its learning rate where that is asked for."""
        return [ParamRule(of=self.predictors, constant=True)] if self.cfg.constant_predictor_lr else []

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks; heads are small and called once per view."""
        return [] if self.teacher is None else self.teacher.encoders.shard_units()
