"""DINO, iBOT and DINOv2: a student predicts how a teacher, its own moving average, sorts views into prototypes.

DINO: Caron et al. 2021, arXiv 2104.14294, section 3. iBOT: Zhou et al. 2022, arXiv 2111.07832, equation 3. DINOv2:
Oquab et al. 2023, arXiv 2304.07193, section 4. With CE(t, s) = -sum_k t_k log softmax(s / T_s)_k, L local views and
2 + 2L pairs of different views, the terms are
  dino_local   1 / pairs * sum over local views and both teacher views of mean_B CE
  dino_global  2 / pairs * mean over the two global views of mean_B CE with the teacher of the other view
  ibot         sum over hidden tokens of CE / hidden tokens of their view, / (2B): all global views count
  koleo        sum over the two global views of KoLeo of the student's pooled features, before the head
  gram         mean squared difference of the cosines between a global view's tokens from those of an earlier teacher
and the total is dino_weight * (dino_local + dino_global) + ibot_weight * ibot + koleo_weight * koleo, and with a Gram
anchor (DINOv3, arXiv 2508.10104, section 4) + gram.weight * gram.
Statistics of the targets, of steps that are logged alone, are those of the views and, as ibot_NAME, those of the hidden
tokens, estimated from about as many tokens as there are global views. Without a loss on views the plain names are the
tokens'.
Shapes: B samples on this rank, L local views, N tokens, M hidden tokens (padded), D width, K prototypes.
State: teacher encoders and heads, the student's heads, centers where centering is ema, the Gram anchor's copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from multissl.config import config_name
from multissl.contract.abilities import ContinuesTraining
from multissl.contract.alarms import History
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.center import Center
from multissl.layers.gram import GramAnchor
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std, kept
from multissl.losses.dino import dino_terms
from multissl.losses.koleo import check_groups, grouped_koleo
from multissl.losses.sinkhorn import Weighting, centered, sinkhorn
from multissl.losses.targets import Targets, cross_entropy, describe
from multissl.objectives.common import same_plan, single_stream
from multissl.objectives.prototype_alarm import alarm_of
from multissl.precision import at_least_fp32
from multissl.schedules import ramp


class DINO(ContinuesTraining):
    """Self-distillation of one stream: DINO on pooled features, iBOT on hidden tokens, KoLeo; each can be off."""

    reads_present = True
    maskings = frozenset({"none", "replace"})

    titles: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "stats/teacher_temperature": "teacher temperature: as it rises, so may the loss",
            "stats/teacher_entropy": "entropy of the targets: what the loss cannot fall below",
            "stats/teacher_kl": "loss above that entropy",
            "stats/ibot_teacher_entropy": "entropy of the token targets",
            "stats/ibot_teacher_kl": "token loss above that entropy",
        }
    )
    spreads_targets: ClassVar[str] = "lower objective.teacher.ema and optim.lr"
    spreads_features: ClassVar[str] = "lower optim.lr or objective.teacher.ema"
    """What an alarm says to do about few prototypes, and about features in one point."""

    @dataclass(kw_only=True, slots=True)
    class Config(ContinuesTraining.Config):
        """Options of the DINO family; the defaults are DINOv2's with fewer prototypes."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType(
            {
                "centring": "centering",
                "centre_momentum": "center_momentum",
                "centre_lazy": "center_lazy",
                "centre_weighting": "center_weighting",
                "centre_tokens": "center_tokens",
            }
        )

        dino_weight: float = 1.0
        """Of the view-to-view loss; 0 leaves it out, with its head."""
        ibot_weight: float = 1.0
        """Of the loss on hidden tokens; 0 leaves it out, with its head and the masks (plain DINO)."""
        koleo_weight: float = 0.1
        """Weight of KoLeo, which spreads features apart; 0 leaves it out."""
        koleo_group: int = 64
        """Samples among which KoLeo looks for neighbors."""
        num_local: int = 8
        """Number of local views per sample."""
        mask_ratio: tuple[float, float] = (0.1, 0.5)
        """Range of the hidden share of a masked global view."""
        mask_share: float = 0.5
        """Share of the global views that are masked."""
        head: PrototypeHead.Config = field(default_factory=lambda: PrototypeHead.Config())
        """Head of the view loss: layers and prototypes."""
        tied_heads: bool = False
        """One head for views and tokens, `head` (iBOT); otherwise tokens have `ibot_head` (DINOv2)."""
        ibot_head: PrototypeHead.Config = field(default_factory=lambda: PrototypeHead.Config())
        """Head of the token loss, unless tied_heads shares the other one."""
        student_temperature: float = 0.1
        """Temperature of the student's softmax, more than 0."""
        teacher_temperature: float = 0.07
        """Temperature of the teacher's softmax after its warm-up, more than 0."""
        teacher_temperature_start: float = 0.04
        """Temperature of the teacher's softmax at the first step, more than 0."""
        teacher_temperature_steps: int = 0
        """Steps in which the teacher's temperature rises from start, linearly."""
        teacher: Teacher.Config = field(default_factory=lambda: Teacher.Config())
        """The slow copy of the student that makes the targets."""
        freeze_last_layer: int = 0
        """Steps at the start in which the prototypes do not move."""
        centering: Literal["sinkhorn", "ema", "none"] = "sinkhorn"
        """How targets are kept from one prototype: Sinkhorn-Knopp (DINOv2), a moving center (DINO), or not at all."""
        sinkhorn_rounds: int = 3
        """Rounds of Sinkhorn-Knopp, 1 or more."""
        center_momentum: float = 0.9
        """Decay rate of the running center, 0 to 1."""
        center_lazy: bool = False
        """Let a step's mean enter the stored center at the next step, as DINOv2 does; the targets are the same."""
        center_weighting: Weighting = "count"
        """count: every token weighs the same on any number of ranks; equal: every rank does (DINOv2)."""
        center_tokens: Literal["hidden", "all"] = "hidden"
        """Whose mean moves the token center: the hidden ones' (DINOv2) or all tokens', which costs logits (iBOT)."""
        gram: GramAnchor.Config = field(default_factory=lambda: GramAnchor.Config())
        """An earlier teacher whose similarities between tokens the student keeps, in a late stage (DINOv3)."""
        reference_counts: bool = False
        """Divide by 3 instead of 2 pairs where num_local is 0, as DINOv2's code does."""

        def __post_init__(self) -> None:
            weights = {n: getattr(self, n) for n in ("dino_weight", "ibot_weight", "koleo_weight")}
            for name, value in weights.items():
                if value < 0:
                    raise ValueError(f"objective.{name}={value}: want 0 or more")
            if not self.dino_weight and not self.ibot_weight:
                raise ValueError(
                    "objective.dino_weight=0 and objective.ibot_weight=0 leave no loss: set one above 0"
                )
            low, high = self.mask_ratio
            if not 0 < low <= high < 1:
                raise ValueError(f"objective.mask_ratio={self.mask_ratio}: want 0 < low <= high < 1")
            if not 0 < self.mask_share <= 1:
                raise ValueError(
                    f"objective.mask_share={self.mask_share}: want more than 0, at most 1; ibot_weight=0 drops masks"
                )
            for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want more than 0")
            limits = {"koleo_group": 2, "sinkhorn_rounds": 1, "num_local": 0, "freeze_last_layer": 0}
            for name, limit in {**limits, "teacher_temperature_steps": 0}.items():
                if getattr(self, name) < limit:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want {limit} or more")
            if not 0 <= self.center_momentum <= 1:
                raise ValueError(f"objective.center_momentum={self.center_momentum}: want 0 to 1")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.kind = cfg, config_name(type(cfg))
        self.stream = single_stream(self.kind, streams)
        dim = encoders.widths()[self.stream]
        self.temperature = ramp(
            cfg.teacher_temperature_start, cfg.teacher_temperature, cfg.teacher_temperature_steps
        )
        self.dino_head: PrototypeHead | None = None
        self.ibot_head: PrototypeHead | None = None
        if cfg.dino_weight or cfg.tied_heads:
            self.dino_head = cfg.head.build(dim)
        if cfg.ibot_weight and not cfg.tied_heads:
            self.ibot_head = cfg.ibot_head.build(dim)
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))
        self.gram: GramAnchor | None = None
        if cfg.gram.weight:
            self.gram = cfg.gram.build(self.teacher.encoders, self.stream, streams[self.stream])
        parts = {"dino": cfg.dino_weight and cfg.head.prototypes}
        parts["ibot"] = cfg.ibot_weight and (cfg.head if cfg.tied_heads else cfg.ibot_head).prototypes
        options = (cfg.center_momentum, cfg.center_weighting, cfg.center_lazy)
        used = {
            name: Center(int(size), *options)
            for name, size in parts.items()
            if size and cfg.centering == "ema"
        }
        self.centers = nn.ModuleDict(used)

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        heads = {"dino_head": self.dino_head, "ibot_head": self.ibot_head}
        return {"encoders": encoders, **{name: head for name, head in heads.items() if head is not None}}

    def parts(self) -> dict[str, nn.Module | Tensor]:
        """The heads of both sides, and the centers."""
        heads = [name for name, head in self.students(nn.Identity()).items() if name != "encoders"]
        sides = {"student": self.students(nn.Identity()), "teacher": self.teacher.now}
        found: dict[str, nn.Module | Tensor] = {f"{s}.{n}": sides[s][n] for s in sides for n in heads}
        return found | {f"{n}_center": cast(Center, center).center for n, center in self.centers.items()}

    def plans(self) -> Plans:
        """Two global views, hidden in part where iBOT is on, and local views where DINO is."""
        cfg = self.cfg
        mask_ratio = cfg.mask_ratio if cfg.ibot_weight else None
        num_local = cfg.num_local if cfg.dino_weight else 0
        larger = cfg.gram.size if cfg.gram.weight else ()
        plan = ViewPlan(
            num_global=2, num_local=num_local, mask_ratio=mask_ratio, mask_share=cfg.mask_share, larger=larger
        )
        return same_plan([self.stream], plan)

    def check_batch_size(self, samples: int) -> None:
        """KoLeo compares samples in groups."""
        if self.cfg.koleo_weight:
            check_groups(samples, self.cfg.koleo_group)

    def check_stage(self, before: Mapping[str, StreamSpec], streams: Mapping[str, StreamSpec]) -> None:
        """A Gram anchor sees no less than the teacher that it is a copy of."""
        if self.gram is not None:
            self.gram.check_stage(before[self.stream])

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows; the mean of the ranks' gradients is that of the global batch."""
        cfg, sides = self.cfg, self.sides(batch)
        mask, present = sides[0].mask, sides[0].present
        rows = (
            None if present is None else torch.cat([present.repeat(v.num_views) for v in sides])
        )  # [(2+L)*B]
        temperature = self.temperature.at(progress.step, progress.total)
        targets = self.teach(sides[0], temperature)
        features = encoders.encode(
            sides, "replace" if mask is not None and "replace" in self.maskings else "none"
        )
        pooled = torch.cat([f.pooled for f in features])  # [(2+L)*B, D]
        hidden = None if mask is None else features[0].tokens.flatten(0, 1)[mask.index]  # [M, D]
        heads = {"dino_head": self.dino_head, "ibot_head": self.ibot_head}
        logits = self.score(heads, pooled, hidden, rows, None if mask is None else mask.weight > 0)
        terms: dict[str, Tensor] = {}
        ces: dict[str, Tensor] = {}  # cross entropies by term, [M] of hidden tokens and [2*B] of global views
        if "ibot" in targets and mask is not None:
            each = torch.arange(len(mask.index), device=pooled.device)[:, None]  # [M, 1]
            ces["ibot"] = ce = cross_entropy(logits["ibot"], targets["ibot"], each, cfg.student_temperature)
            views = len(features[0].pooled) if present is None else 2 * kept(present, ce.dtype)
            terms["ibot"] = (ce * mask.weight).sum() / views
        if "dino" in targets:
            counts = [v.num_views for v in sides]  # [2] or [2, L]
            options = (cfg.student_temperature, cfg.reference_counts, present)
            new, ces["dino"] = dino_terms(logits["dino"], targets["dino"], counts, *options)
            terms = {**new, **terms}
        if cfg.koleo_weight:
            first, second = features[0].pooled.chunk(2)  # apart: the two views of a sample are no neighbors
            parts = [grouped_koleo(x, cfg.koleo_group, present=present) for x in (first, second)]
            terms["koleo"] = parts[0] + parts[1]
        if self.gram is not None:
            terms["gram"] = self.gram(features[0].tokens, sides[0])
        stats: dict[str, Tensor] = {}
        if progress.described:
            stats = self.statistics(targets, ces, features[0].pooled)
            stats["std"] = embedding_std(features[0].pooled.unflatten(0, (2, -1)), present)
            if cfg.teacher_temperature_steps:
                stats["teacher_temperature"] = stats["std"].new_full((), temperature)
        weights = dict.fromkeys(("dino_local", "dino_global"), cfg.dino_weight)
        weights |= {"ibot": cfg.ibot_weight, "koleo": cfg.koleo_weight, "gram": cfg.gram.weight}
        return Losses.weigh(terms, weights, stats)

    def statistics(
        self, targets: Mapping[str, Targets], ces: Mapping[str, Tensor], pooled: Tensor
    ) -> dict[str, Tensor]:
        """Return what targets and cross entropies of views and hidden tokens say, with global views pooled [2*B, D]."""
        stats: dict[str, Tensor] = {}
        if "ibot" in ces:
            few = slice(None, None, max(1, len(ces["ibot"]) // len(pooled)))  # about a token per view
            stats = describe(targets["ibot"].part(few), ces["ibot"][few])
        if "dino" in ces:
            stats = {f"ibot_{name}": value for name, value in stats.items()}
            stats = {**describe(targets["dino"], ces["dino"]), **stats}
        return stats

    def sides(self, batch: Batch) -> list[Views]:
        """The global views, and the local ones where there are any; without their mask where iBOT is off.

        Hidden tokens that are padding, or of a stand-in, count nowhere.
        """
        found, local = batch.find(self.stream, "global"), batch.find(self.stream, "local")
        if found is None or found.num_views != 2:
            raise ValueError(f"{self.kind} wants 2 global views, got {found.num_views if found else 0}")
        if self.cfg.ibot_weight and found.mask is None:
            raise ValueError(
                "ibot needs masked global views: take a modality with masks, or set objective.ibot_weight=0"
            )
        mask = found.mask if self.cfg.ibot_weight else None
        if mask is not None:
            mask = mask.counting(found.real_tokens(mask.hidden.shape[1]))
        found = found.with_mask(mask)
        return [found, local] if local and self.cfg.dino_weight else [found]

    def taught_by(self) -> tuple[Encoders, PerStream[nn.Module]]:
        """The encoders and heads that make the targets."""
        return self.teacher.encoders, self.teacher.now

    @torch.no_grad()
    def teach(self, views: Views, temperature: float) -> dict[str, Targets]:
        """Targets from the global views without a mask: dino of 2*B views, ibot of M hidden tokens."""
        encoders, heads = self.taught_by()
        (features,) = encoders.encode([views], "none")
        tokens, mask = features.tokens.flatten(0, 1), views.mask  # [2*B*N, D]
        every = "ibot" in self.centers and self.cfg.center_tokens == "all"
        hidden = None if mask is None else tokens if every else tokens[mask.index]
        whole, rows = views.real_tokens(features.tokens.shape[1]), views.present_rows  # [2*B, N], [2*B]
        read = None if mask is None or every else mask.weight > 0
        if every and whole is not None:
            read = whole.flatten()
        logits = self.score(heads, features.pooled, hidden, rows, read)
        found: dict[str, Targets] = {}
        for name, scores in logits.items():
            real = rows if mask is None or name == "dino" else mask.weight > 0  # [2*B] or [M]
            mine = scores[mask.index] if mask is not None and name == "ibot" and every else scores
            if self.cfg.centering == "none":
                found[name] = centered(mine, temperature, at_least_fp32(mine.new_zeros(mine.shape[1])), real)
            elif name in self.centers:
                center = cast(Center, self.centers[name])
                found[name] = center.targets(mine, temperature, real)
                center.observe(scores, real if scores is mine else read)
            else:
                found[name] = sinkhorn(mine, temperature, real, self.cfg.sinkhorn_rounds)
        return found

    def score(
        self,
        heads: Any,
        pooled: Tensor,
        hidden: Tensor | None,
        rows: Tensor | None = None,
        read: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits of views [.., K] and of hidden tokens [M, K]; a tied head is called once.

        Views outside `rows` and tokens outside `read`, both bool, have no part in statistics.
        """
        if self.cfg.tied_heads:
            parts = {
                "dino": pooled if self.cfg.dino_weight else pooled[:0],
                "ibot": pooled[:0] if hidden is None else hidden,
            }
            keep = None
            if rows is not None or read is not None:
                keep = torch.cat([_flags(f, x) for f, x in zip((rows, read), parts.values(), strict=True)])
            logits = heads["dino_head"](torch.cat([*parts.values()]), keep)
            logits = logits.split([len(p) for p in parts.values()])
            return {name: each for name, each in zip(parts, logits, strict=True) if len(each)}
        found = {"dino": heads["dino_head"](pooled, rows)} if self.cfg.dino_weight else {}
        return found if hidden is None else {**found, "ibot": heads["ibot_head"](hidden, read)}

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """Teacher and centers follow."""
        self.teacher.update(self.students(encoders), progress)
        for center in self.centers.values():
            cast(Center, center).after_step()
        if self.gram is not None:
            self.gram.after_step({"encoders": self.teacher.encoders}, progress)

    def begin_stage(self, fresh: Collection[str]) -> None:
        """A Gram anchor that comes in is the teacher as the stage before left it."""
        if self.gram is not None and any(name.startswith("gram.") for name in fresh):
            self.gram.begin(self.teacher.encoders)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Return what is wrong: uniform targets or few prototypes, of views or tokens, or features in one point."""
        cfg = self.cfg
        token_head = cfg.head if cfg.tied_heads else cfg.ibot_head
        view_head = cfg.head if cfg.dino_weight else token_head
        temperatures = self.temperature.at(progress.step, progress.total), cfg.student_temperature
        prototypes = {"": view_head.prototypes, "ibot_": token_head.prototypes}
        ways = self.spreads_targets, self.spreads_features
        return alarm_of(self.kind, history, prototypes, temperatures, ways, centered=cfg.centering != "none")

    def exported(self, encoders: Encoders) -> Encoders:
        """The teacher's encoders, unless the teacher never learns."""
        return encoders if self.cfg.teacher.rule == "frozen" else self.teacher.encoders

    def param_rules(self) -> list[ParamRule]:
        """The prototypes rest for the first steps."""
        heads = [head for head in (self.dino_head, self.ibot_head) if head is not None]
        steps = self.cfg.freeze_last_layer
        return [ParamRule(of=head.last_layer, frozen_steps=steps) for head in heads] if steps else []

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks and all heads."""
        heads = [h for h in (self.dino_head, self.ibot_head) if h is not None]
        return [*self.teacher.shard_units(), *heads, *(self.gram.shard_units() if self.gram else ())]


def _flags(keep: Tensor | None, x: Tensor) -> Tensor:
    """Return flags for the rows x [n, D]: those given, cut to as many, or all True."""
    return x.new_ones(len(x), dtype=torch.bool) if keep is None else keep[: len(x)]
