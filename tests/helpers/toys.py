"""Five toy objectives that use what later methods need of the contract, without a branch on any name.

Several masks for one teacher pass (I-JEPA, data2vec 2), outputs of inner blocks (data2vec), a target of another
length read causally (T5, next token), a mask that is itself the target (VIME), teachers that are not an EMA
(frozen tokenizers, previous epochs, stage copies).
Shapes: R rows, N tokens, D width, M hidden tokens, N' target tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Batch, Raw, Sample, Samples, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.objectives.common import same_plan
from multissl.random import RowRandom
from tests.helpers.stubs import Listed


class Toy(Objective):
    """A toy: one stream, one linear head, perhaps a frozen copy of the encoders."""

    plan: ViewPlan
    teaches = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        pass

    def __init__(self, cfg: Any, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        (self.stream,) = streams
        self.spec, self.width = streams[self.stream], encoders.widths()[self.stream]
        self.head = nn.Linear(self.width, self.outputs())
        if self.teaches:
            self.teacher = frozen(encoders)

    def outputs(self) -> int:
        return self.width

    def plans(self) -> Plans:
        return same_plan([self.stream], self.plan)


def frozen(encoders: Encoders) -> Encoders:
    return copy.deepcopy(encoders).requires_grad_(False).eval()


class ManyMasks(Toy):
    """Predict the teacher's tokens under each of three masks; the teacher looks once."""

    plan = ViewPlan(num_global=1, mask_ratio=(0.3, 0.3), num_masks=3)
    maskings: frozenset[Masking] = frozenset({"replace"})
    teaches = True

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        (view,) = batch
        assert len(view.masks) == 3
        with torch.no_grad():
            whole = self.teacher.encode([view.with_mask(None)])[0].tokens.flatten(0, 1)  # [R*N, D]
        masked = encoders.encode([view.with_mask(m) for m in view.masks], "replace")
        terms = {}
        for i, (mask, feature) in enumerate(zip(view.masks, masked, strict=True)):
            ours = self.head(feature.tokens.flatten(0, 1)[mask.index])  # [M, D]
            errors = (ours - whole[mask.index]).pow(2).mean(-1)
            terms[f"mask_{i}"] = (errors * mask.weight).sum() / len(mask.hidden)
        return Losses.weigh(terms, dict.fromkeys(terms, 1.0))


class InnerTargets(Toy):
    """Predict the mean of the teacher's last two blocks where tokens are hidden."""

    plan = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), inner=2)
    maskings: frozenset[Masking] = frozenset({"replace"})
    teaches = True

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        (view,) = batch
        assert view.mask is not None
        with torch.no_grad():
            inner = self.teacher.encode([view.with_mask(None)], inner=2)[0].inner
            assert len(inner) == 2
            target = torch.stack([F.layer_norm(t, t.shape[-1:]) for t in inner]).mean(0)
        ours = self.head(encoders.encode([view], "replace")[0].tokens)
        total = F.smooth_l1_loss(ours.flatten(0, 1)[view.mask.index], target.flatten(0, 1)[view.mask.index])
        return Losses(total=total, terms={"inner": total.detach()})


class OtherLength(Toy):
    """Predict N' symbols from a causal reading of N tokens."""

    plan = ViewPlan(num_global=1, target=True)
    maskings: frozenset[Masking] = frozenset({"causal"})

    def outputs(self) -> int:
        return self.spec.target_tokens * self.spec.target_dim

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        (view,) = batch
        assert view.target is not None
        pooled = encoders.encode([view], "causal")[0].pooled
        logits = self.head(pooled).unflatten(1, (self.spec.target_tokens, self.spec.target_dim))  # [R, N', T]
        total = F.cross_entropy(logits.flatten(0, 1), view.target.flatten())
        return Losses(total=total, terms={"symbols": total.detach()})


class MaskIsTarget(Toy):
    """Tell which values were replaced by others."""

    plan = ViewPlan(num_global=1, mask_ratio=(0.3, 0.3), corrupt=True)

    def outputs(self) -> int:
        return 1

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        (view,) = batch
        assert view.mask is not None
        logits = self.head(encoders.encode([view], "none")[0].tokens)[..., 0]  # [R, N]
        total = F.binary_cross_entropy_with_logits(logits, view.mask.hidden.float())
        return Losses(total=total, terms={"found": total.detach()})


class OddTeacher(Toy):
    """Follow a teacher that is no EMA: never moved, moved once an epoch, or taken over with a fresh student."""

    plan = ViewPlan(num_global=1)
    teaches = True

    @dataclass(kw_only=True, slots=True)
    class Config(Toy.Config):
        rule: Literal["frozen", "previous_epoch", "stage_copy"] = "frozen"
        stage: int = 2
        """Steps of a stage."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__(cfg, encoders, streams)
        self.cfg = cfg
        self.fresh = frozen(encoders)  # what a student of the next stage starts from: state, so it is saved

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        with torch.no_grad():
            target = self.teacher.encode(batch)[0].pooled
        total = F.mse_loss(self.head(encoders.encode(batch)[0].pooled), target)
        return Losses(total=total, terms={"follow": total.detach()})

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        done = progress.step + 1
        if self.cfg.rule == "previous_epoch" and done % max(1, round(progress.epoch_steps)) == 0:
            self.teacher.load_state_dict(encoders.state_dict())
        if self.cfg.rule == "stage_copy" and done % self.cfg.stage == 0:
            self.teacher.load_state_dict(encoders.state_dict())
            encoders.load_state_dict(self.fresh.state_dict())


class Symbols(Modality):
    """Sequences of symbols; the target is the sorted set of the first half, shorter than the view."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        length: int = 12
        vocab: int = 10

    needs = frozenset({"target"})

    def streams(self) -> dict[str, StreamSpec]:
        n = self.cfg.length
        return {
            "symbols": StreamSpec(
                kind="sequence", shape=(n,), num_tokens=n, vocab=self.cfg.vocab, target_dim=self.cfg.vocab,
                target_tokens=n // 2, target_kind="classes",
            )
        }  # fmt: skip

    def dataset(self, split: str) -> Samples:
        draw = torch.Generator().manual_seed(0)
        rows = torch.randint(self.cfg.vocab, (64, self.cfg.length), generator=draw)
        return Listed([Sample(row, i) for i, row in enumerate(rows)])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        return {"x": torch.stack([s.data for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        x: Tensor = raw["x"]
        plan, half = plans["symbols"], x.shape[1] // 2
        views = []
        if plan.num_clean:
            views.append(Views(x=x, stream="symbols", role="clean"))
        if plan.num_global:
            views.append(
                Views(
                    x=x.repeat(plan.num_global, 1), stream="symbols", role="global",
                    num_views=plan.num_global, target=x[:, :half].sort(1).values.repeat(plan.num_global, 1),
                )
            )  # fmt: skip
        return Batch(views)


class Pairs(Modality):
    """Two streams of numbers that show the same hidden point; some samples are twice, some come from one group."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        count: int = 96

    def streams(self) -> dict[str, StreamSpec]:
        return {
            s: StreamSpec(kind="columns", shape=(n,), num_tokens=n) for s, n in (("left", 6), ("right", 5))
        }

    def dataset(self, split: str) -> Samples:
        points = torch.randn(self.cfg.count, 4, generator=torch.Generator().manual_seed(0))
        return Listed([Sample(point, i) for i, point in enumerate(points)])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        return {"x": torch.stack([s.data for s in samples]), "id": torch.tensor([s.index for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        ids = {"sample_id": raw["id"] // 2, "group_id": raw["id"] // 8}
        views = []
        for seed, (stream, spec) in enumerate(self.streams().items()):
            plan, draw = plans[stream], torch.Generator().manual_seed(seed)
            x = (raw["x"] @ torch.randn(4, *spec.shape, generator=draw)).sin()
            if plan.num_clean:
                views.append(Views(x=x, stream=stream, role="clean", **ids))
            if plan.num_global:
                noisy = [x + 0.1 * rng.randn(*spec.shape) for _ in range(plan.num_global)]
                views.append(
                    Views(x=torch.cat(noisy), stream=stream, role="global", num_views=plan.num_global, **ids)
                )
        return Batch(views)
