"""I-JEPA: from a context, predict what a teacher makes of other parts of the view, in its feature space.

Assran et al., CVPR 2023, arXiv 2301.08243, section 3. The student encodes the context only; a narrow predictor gets it
with mask tokens at the places of each target; the teacher encodes the whole view, its tokens are layer-normed without
scale and shift. Loss: smooth L1, mean over everything (the official code); metric=power is V-JEPA's |.|^p / p
(Bardes et al. 2024, arXiv 2404.08471). The official encoder has no class token; ours has one, which neither is
predicted nor given to the predictor, so evaluate with pooling=mean.
Shapes: R rows, N tokens, C contexts of K tokens each, T targets of Q tokens each, D encoder width, d predictor width.
Collectives: a sum of counts where streams are missing or padded; else every rank has equally many targets.
State: teacher encoders, predictor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.layers.init import init_linear
from multissl.layers.joint import mean_token
from multissl.layers.teacher import Teacher
from multissl.losses.common import deviation_of_tokens, embedding_std
from multissl.losses.ijepa import Metric, latent_loss, latent_targets
from multissl.objectives.common import same_plan, single_stream


class IJEPA(Objective):
    """Predicts the teacher's tokens of several targets from each context, in one stream."""

    reads_present = True
    maskings = frozenset({"drop", "none"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of I-JEPA; the defaults are the published ones with a predictor of 6 blocks."""

        targets: int = 4
        """Targets of a view."""
        target_ratio: tuple[float, float] = (0.15, 0.2)
        """Range of a target's share of the tokens."""
        context_ratio: tuple[float, float] = (0.85, 1.0)
        """Range of the context's share, before the targets are taken out of it."""
        target_aspect: tuple[float, float] = (0.75, 1.5)
        """Range of a target's height over its width, where tokens form a grid."""
        contexts: int = 1
        """Contexts of a view; all targets are predicted from each of them."""
        metric: Metric = "smooth_l1"
        """Distance between prediction and target: smooth L1, or a power of the difference."""
        power: float = 1.0
        """p of metric=power."""
        predictor: Decoder.Config = field(
            default_factory=lambda: Decoder.Config(dim=384, depth=6, heads=12, init_std=0.02)
        )
        """Transformer that predicts features of the targets from the context."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(ema=0.996, final_ema=1.0, ema_shape="linear")
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            for name in ("targets", "contexts"):
                if getattr(self, name) < 1:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want 1 or more")
            if not 0 < self.target_aspect[0] <= self.target_aspect[1]:
                raise ValueError(
                    f"objective.target_aspect={self.target_aspect}: want 0 < low <= high, such as 0.75 1.5"
                )
            for name, top in (("target_ratio", 0.999), ("context_ratio", 1.0)):
                low, high = getattr(self, name)
                if not 0 < low <= high <= top:
                    raise ValueError(f"objective.{name}={low, high}: want 0 < low <= high <= {top:g}")
            if self.power < 1:
                raise ValueError(f"objective.power={self.power}: want 1 or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("ijepa", streams)
        width = encoders.widths()[self.stream]
        kernel = encoders.kernel(self.stream)
        self.predictor: Decoder = cfg.predictor.build(width, streams[self.stream], kernel)
        self.out = nn.Linear(cfg.predictor.dim, width)
        init_linear(self.out, cfg.predictor.init_std)
        self.teacher: Teacher = cfg.teacher.build({"encoders": encoders})

    def plans(self) -> Plans:
        """One global view with a mask for each context and one for each target."""
        cfg = self.cfg
        plan = ViewPlan(
            num_global=1, num_masks=cfg.targets, mask_ratio=cfg.target_ratio, context_ratio=cfg.context_ratio,
            num_contexts=cfg.contexts, target_aspect=cfg.target_aspect,
        )  # fmt: skip
        return same_plan([self.stream], plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's targets."""
        views = batch.find(self.stream, "global")
        first = self.cfg.contexts
        if views is None or len(views.masks) != first + self.cfg.targets:
            raise ValueError(
                f"ijepa wants a global view with {first} + {self.cfg.targets} masks, for contexts and targets,"
                f" got {len(views.masks) if views else 'no view'}"
            )
        seen = [places(m)[0] for m in views.masks[:first]]  # C times [R, K]
        # [T*R, Q] target-major, as the official
        wanted = torch.cat([places(m)[1] for m in views.masks[first:]])
        whole = self.teach(views)  # [R, N, D]
        contexts = encoders.encode([views.with_mask(m) for m in views.masks[:first]], "drop")
        pred = torch.cat(
            [self.predict(c.tokens, at, wanted, views.valid) for c, at in zip(contexts, seen, strict=True)]
        )  # [C*T*R, Q, D]
        target = gather_tokens(whole.repeat(self.cfg.targets, 1, 1), wanted).repeat(first, 1, 1)
        real, rows = views.real_tokens(whole.shape[1]), views.present_rows  # [R, N], [R]
        keep = (
            None if real is None else gather_tokens(real.repeat(self.cfg.targets, 1), wanted).repeat(first, 1)
        )
        loss = latent_loss(pred, target, self.cfg.metric, self.cfg.power, keep)
        shown = None if views.valid is None else views.valid.gather(1, seen[0])
        stats = {
            "std": embedding_std(mean_token(contexts[0].tokens, shown), rows),
            "target_std": deviation_of_tokens(whole, real),
            "prediction_std": deviation_of_tokens(pred.detach(), keep),
            "context_share": torch.full((), seen[0].shape[1] / whole.shape[1], device=whole.device),
        }
        return Losses.weigh({"predict": loss}, {"predict": 1.0}, stats)

    @torch.no_grad()
    def teach(self, views: Any) -> Tensor:
        """The teacher's layer-normed tokens of the whole view [R, N, D]."""
        (features,) = self.teacher.encoders.encode([views.with_mask(None)], "none")
        return latent_targets(features.tokens)

    def predict(self, context: Tensor, seen: Tensor, wanted: Tensor, valid: Tensor | None = None) -> Tensor:
        """Context tokens [R, K, D] at [R, K] to predictions [T*R, Q, D] at the wanted places [T*R, Q]."""
        times = len(wanted) // len(seen)
        real = None if valid is None else valid.gather(1, seen).repeat(times, 1)
        _, tokens = self.predictor(
            context.repeat(times, 1, 1), seen.repeat(times, 1), wanted, None, real
        )  # [T*R, Q, d]
        return self.out(tokens.to(self.out.weight.dtype))

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.update({"encoders": encoders}, progress)

    def exported(self, encoders: Encoders) -> Encoders:
        """The teacher's encoders, unless the teacher never learns."""
        return encoders if self.cfg.teacher.rule == "frozen" else self.teacher.encoders

    def shard_units(self) -> list[nn.Module]:
        """The teacher's and the predictor's blocks."""
        return [*self.teacher.shard_units(), *self.predictor.shard_units()]
