"""SPR: from one view, step by step with the actions taken, the latents of the K views that follow.

Schwarzer et al., ICLR 2021, arXiv 2007.05929, equations 1 to 4: z_0 = f(o_0), z_k = h(z_{k-1}, a_{k-1}), and the loss
is the distance of unit vectors between q(g(z_k)) and the teacher's g'(f'(o_k)), here 2 - 2 cos (0 to 4; the paper's
-cos is half of that less one), meaned over steps and samples. Latents are scaled to 0..1 as the official code does.
With `inverse` the action is read from the latents before and after it, which offline data needs (SGI: Schwarzer et
al., NeurIPS 2021, arXiv 2106.04799); by squared error, which for actions as one of A is the Brier score.
Differences: the official transition is convolutional on the last map; ours is an MLP on the pooled features, which are
what is evaluated and shipped. Without a reward heads carry batch norm, as BYOL's do. A stream that says nothing of
what happens between its views is rolled out blindly.
Shapes: V = 1+K views, B samples on this rank, D encoder width, P projector width, A width of a condition.
State: transition, projector, predictor, the reader of actions; the teacher.  Collectives: batch norm of the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std, mean_of
from multissl.losses.spr import spr_loss
from multissl.objectives.common import head, same_plan, single_stream
from multissl.precision import at_least_fp32


class SPR(Objective):
    """Rolls a latent forward through actions and compares each step with what was seen."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of SPR."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"renormalise": "renormalize"})

        steps: int = 5
        """K, the views after the first that are predicted."""
        weight: float = 1.0
        """Of the prediction."""
        inverse: float = 0.0
        """Weight of reading the action from the latents around it (SGI: 1); 0 leaves it out."""
        renormalize: bool = True
        """Scale every latent to 0..1, whole vectors at a time."""
        transition: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=512, layers=2, norm="layer")
        )
        """What it adds to a latent; its width `out` is always the encoder's."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=512, out=256, layers=2)
        )
        """Head between the features and the loss."""
        predictor: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=512, out=256, layers=2)
        )
        """Head that predicts the teacher's projection from the student's."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(
                ema=0.99, final_ema=0.99, buffers="keep", batch_norm="batch"
            )
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ValueError(f"objective.steps={self.steps}: want 1 or more, SPR has 5")
            for name in ("weight", "inverse"):
                if getattr(self, name) < 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            if self.predictor.out != self.projector.out:
                raise ValueError(
                    f"objective.predictor.out={self.predictor.out}: want objective.projector.out="
                    f"{self.projector.out}, which it predicts"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("spr", streams, "rolls one stream forward")
        self.condition = streams[self.stream].condition_dim  # A
        if cfg.inverse and not self.condition:
            raise ValueError(
                f"objective.inverse={cfg.inverse} reads actions, {self.stream} has none between its views: set it to 0"
            )
        dim = encoders.widths()[self.stream]
        self.transition = cfg.transition.replace(out=dim).build(dim + self.condition)
        self.projector = cfg.projector.build(dim)
        self.predictor = cfg.predictor.build(cfg.projector.out)
        self.inverse = cfg.transition.replace(out=self.condition).build(2 * dim) if cfg.inverse else None
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "projector": self.projector}

    def plans(self) -> Plans:
        """One view and the K that follow."""
        return same_plan([self.stream], ViewPlan(num_global=1 + self.cfg.steps))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        views = batch.of(self.stream, "global")
        actions = self.actions(views)  # [K, B, A]
        seen = views if self.inverse is not None else views.part(0, 1)
        z = self.latents(encoders, seen)  # [V or 1, B, D]
        present = views.present
        keep = None if present is None else present.expand(self.cfg.steps, -1)  # [K, B]
        rolled = self.roll(z[0], actions, present)  # [K, B, D]
        p = self.head(self.predictor, self.head(self.projector, rolled, keep), keep)  # [K, B, P]
        with torch.no_grad():
            ahead = self.latents(self.teacher.encoders, views.part(1, self.cfg.steps))
            target = self.head(self.teacher["projector"], ahead, keep)  # [K, B, P]
        terms = {"prediction": spr_loss(p, target, keep)}
        if self.inverse is not None:
            read = self.head(self.inverse, torch.cat([z[:-1], z[1:]], -1), keep)  # [K, B, A]
            terms["inverse"] = mean_of((read - at_least_fp32(actions)).square().sum(-1), keep)
        stats = {"std": embedding_std(target, keep), "prediction_std": embedding_std(p, keep)}
        return Losses.weigh(terms, {"prediction": self.cfg.weight, "inverse": self.cfg.inverse}, stats)

    def actions(self, views: Views) -> Tensor:
        """What leads from every view to the next, [K, B, A]; A is 0 where nothing is said."""
        if views.num_views != 1 + self.cfg.steps:
            raise ValueError(
                f"spr wants {1 + self.cfg.steps} global views, as its plan says, got {views.num_views}"
            )
        if not self.condition:
            return views.x.new_zeros(self.cfg.steps, views.batch, 0)
        if views.condition is None:
            raise ValueError(f"{views.stream} promises conditions of {self.condition} values and gives none")
        return views.condition.unflatten(0, (views.num_views, -1))[1:]

    def latents(self, encoders: EncodeFunction, views: Views) -> Tensor:
        """Pooled features, scaled where asked, [V, B, D]."""
        (features,) = encoders.encode([views])
        return self.scaled(at_least_fp32(features.pooled)).unflatten(0, (views.num_views, -1))

    def roll(self, z: Tensor, actions: Tensor, present: Tensor | None = None) -> Tensor:
        """From the latent z [B, D] of a view through actions [K, B, A], one after the other: [K, B, D]."""
        found, keep = [], None if present is None else present[None]
        for action in actions:
            step = self.head(self.transition, torch.cat([z, action.to(z.dtype)], -1)[None], keep)[0]
            z = self.scaled(z + step)
            found.append(z)
        return torch.stack(found)

    def scaled(self, z: Tensor) -> Tensor:
        """z [..., D] scaled to 0..1, if that is asked for."""
        if not self.cfg.renormalize:
            return z
        low, high = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
        return (z - low) / (high - low + 1e-5)

    def head(self, module: nn.Module, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """A head on x [K, B, *], one step at a time: batch norm has each step's own statistics; fp32 again.

        Samples outside `keep` (bool [K, B]) have no part in them.
        """
        narrow = next(module.parameters()).dtype  # x was widened; in mixed precision the weights were not
        rows = None if keep is None else keep.flatten()
        return head(module, x.flatten(0, 1).to(narrow), len(x), apart=True, keep=rows)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.update(self.students(encoders), progress)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point."""
        return point_alarm(
            "spr", history, "lower optim.lr, or raise objective.teacher.ema or objective.inverse"
        )

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks."""
        return self.teacher.encoders.shard_units()
