"""data2vec: a student that sees mask tokens predicts the mean of a teacher's last blocks, which see everything.

Baevski et al., ICML 2022, arXiv 2202.03555, sections 3.3 and 3.4. Targets: outputs of the teacher's last k blocks,
each normalized, averaged, perhaps normalized again; loss on hidden tokens, squared or smooth L1, times 1/sqrt(D).
Layers are block outputs, as in data2vec 2.0 (arXiv 2212.07525); the first version took those of the feed-forward nets.
The official trainer sums over channels and tokens and divides by the number of tokens: so do we; sum_channels=False
averages the channels too, which is D times less. With `masks` above 1 the teacher looks once at a view that the student
reads under so many masks, as in data2vec 2.0, whose student and decoder see kept tokens alone where here mask tokens go
through. `row_weight` adds EAT's loss of a whole sound (arXiv 2401.03497): what the encoder pools, the class token,
against the mean of the targets of all its tokens, squared errors summed over channels and averaged over rows; the
official trainer sums over rows, so that its weight of 1 is here the number of rows, masks times samples.
The teacher's rate goes linearly to its final
value over the whole run, in the official code within a number of steps of its own. What is shipped is the student, as
in the official fine-tuning.
Shapes: R rows, M masks, N tokens, Q hidden tokens, D width.  State: teacher encoders, a linear head.
Collectives: a sum of counts where streams are missing or padded; else every rank hides equally many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.decoder import gather_tokens, places
from multissl.layers.init import init_linear
from multissl.layers.joint import mean_token
from multissl.layers.teacher import Teacher
from multissl.losses.common import deviation_of_tokens, embedding_std, mean_of
from multissl.losses.data2vec import LayerNorm, average_layers, row_errors, scaled_errors
from multissl.objectives.common import same_plan, single_stream


class Data2Vec(Objective):
    """Regresses the teacher's averaged layers at the hidden tokens of one stream."""

    reads_present = True
    maskings = frozenset({"replace", "none"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of data2vec; the defaults are its vision ones."""

        mask_ratio: float = 0.6
        """Share of the tokens that are hidden, the same in every row."""
        masks: int = 1
        """Masks under which the student reads each view that the teacher sees once (data2vec 2.0: 8 to 16)."""
        top_k: int = 6
        """Last blocks of the teacher whose outputs are averaged."""
        layer_norm: LayerNorm = "instance"
        """Of each block's output before the mean: every channel over the tokens of a row, every token over its
        channels, or none."""
        final_norm: LayerNorm = "none"
        """The same of the mean."""
        beta: float = 2.0
        """Where smooth L1 turns from squares to lines; 0: squared error."""
        scale: float = 0.0
        """Factor on the loss; 0: 1/sqrt(D)."""
        sum_channels: bool = True
        """Sum the errors over the D channels, as the official trainer does; False: their mean."""
        row_weight: float = 0.0
        """Weight of the squared error of what is pooled from a row against the mean of its tokens' targets (EAT); 0
        leaves it out."""
        min_target_std: float = 0.1
        """Alarm when the targets' deviation is below it after guard_steps steps; 0: never."""
        min_prediction_std: float = 0.01
        """Raise an alarm when the predictions' deviation is below it after guard_steps steps; 0 never does."""
        guard_steps: int = 5000
        """Steps before the two alarms may be raised."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(ema=0.999, final_ema=0.9999, ema_shape="linear")
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            if not 0 < self.mask_ratio < 1:
                raise ValueError(
                    f"objective.mask_ratio={self.mask_ratio}: want more than 0, less than 1, such as 0.6"
                )
            limits = {
                "masks": 1,
                "top_k": 1,
                "beta": 0,
                "scale": 0,
                "row_weight": 0,
                "min_target_std": 0,
                "min_prediction_std": 0,
            }
            for name, low in {**limits, "guard_steps": 0}.items():
                if getattr(self, name) < low:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want {low} or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("data2vec", streams)
        depth, width = encoders[self.stream].depth, encoders.widths()[self.stream]
        if (
            0 < depth < cfg.top_k
        ):  # an encoder without blocks is refused with its reason by the check of masks
            raise ValueError(
                f"objective.top_k={cfg.top_k}: encoders.{self.stream} has {depth} blocks, choose that many or fewer"
            )
        self.head = nn.Linear(width, width)
        init_linear(self.head, 0.02)
        self.teacher: Teacher = cfg.teacher.build({"encoders": encoders})

    def plans(self) -> Plans:
        """One global view under masks of a fixed ratio, and the teacher's last blocks."""
        ratio = (self.cfg.mask_ratio, self.cfg.mask_ratio)
        plan = ViewPlan(num_global=1, mask_ratio=ratio, num_masks=self.cfg.masks, inner=self.cfg.top_k)
        return same_plan([self.stream], plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's hidden tokens."""
        cfg = self.cfg
        views = batch.find(self.stream, "global")
        if views is None or len(views.masks) != cfg.masks:
            got = len(views.masks) if views else "no view"
            raise ValueError(
                f"data2vec wants a global view with a mask for each of objective.masks={cfg.masks}, got {got}: hand it "
                "the views that its plan asks for"
            )
        hidden = torch.cat([places(m)[1] for m in views.masks])  # [M*R, Q], mask by mask
        with torch.no_grad():
            teacher = self.teacher.encoders
            (whole,) = teacher.encode([views.with_mask(None)], "none", cfg.top_k)
            layers = average_layers(whole.inner, cfg.layer_norm, cfg.final_norm, views.valid)  # [R, N, D]
            target = gather_tokens(layers.repeat(cfg.masks, 1, 1), hidden)  # [M*R, Q, D]
        features = encoders.encode([views.with_mask(m) for m in views.masks], "replace")
        tokens = torch.cat([f.tokens for f in features])  # [M*R, N, D]
        pred = self.head(gather_tokens(tokens, hidden).to(self.head.weight.dtype))  # [M*R, Q, D]
        errors = scaled_errors(pred, target, cfg.beta, cfg.scale)
        real = views.real_tokens(tokens.shape[1])  # [R, N]
        keep = None if real is None else gather_tokens(real.repeat(cfg.masks, 1), hidden)  # [M*R, Q]
        terms = {"regress": mean_of(errors.sum(-1) if cfg.sum_channels else errors, keep)}
        if cfg.row_weight:
            rows = torch.stack(
                [row_errors(f.pooled, layers, views.valid).sum(-1) for f in features]
            )  # [M, R]
            terms["row"] = mean_of(rows.T, views.present_rows)
        stats = {
            "std": embedding_std(mean_token(features[0].tokens, views.valid), views.present_rows),
            "target_std": deviation_of_tokens(target, keep),
            "prediction_std": deviation_of_tokens(pred.detach(), keep),
        }
        return Losses.weigh(terms, {"regress": 1.0, "row": cfg.row_weight}, stats)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.update({"encoders": encoders}, progress)

    def alarm(self, history: Sequence[Mapping[str, float]], progress: Progress) -> str | None:
        """The official guards: targets or predictions that no longer vary."""
        last = history[-1] if history and progress.step >= self.cfg.guard_steps else {}
        limits = {"target_std": self.cfg.min_target_std, "prediction_std": self.cfg.min_prediction_std}
        for name, least in limits.items():
            value = last.get(f"stats/{name}")
            if value is not None and value < least:
                return (
                    f"data2vec collapses: {name}={value:.3g} is below {least:g}; lower optim.lr, or raise"
                    " objective.teacher.ema or objective.mask_ratio"
                )
        return None

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks."""
        return self.teacher.shard_units()
