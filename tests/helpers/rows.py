"""What one step of an objective gives on a batch, for the laws of rows that do not exist and of padding.

All in fp64, so that what is left is error and not noise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from multissl.check import check, maskings_of
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders, build_encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import StepBatches
from multissl.engine.learner import Learner
from multissl.modalities.views import pack_masks
from multissl.objectives.common import ONE_VIEW, same_plan, single_stream
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import rank, world
from multissl.recipe import Recipe

BATCH = 16
Found = dict[str, Tensor]


def learner_and_batch(modality: Modality, objective: Objective.Config) -> tuple[Learner, Batch]:
    """A learner and this rank's rows of the first batch; a ValueError says why the pair has no meaning."""
    torch.manual_seed(0)
    specs = modality.streams()
    pooling = "last" if "causal" in objective.maskings() else "cls"
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling=pooling)
    recipe = Recipe(
        modality=modality.cfg,
        encoders=dict.fromkeys(specs, encoder),
        objective=objective,
        batch_size=BATCH,
    )
    encoders = build_encoders(recipe.encoders, specs)
    built = objective.build(encoders, specs)
    plans = built.plans()
    check(recipe, modality, plans)
    for stream, plan in plans.items():
        encoders[stream].prepare_for(maskings_of(recipe, plan))
    batch = StepBatches(modality, plans, BATCH, 0, rank(), world(), final=True)[0][0]
    return Learner(encoders, built).double(), Batch(map(doubled, batch))


def doubled(views: Views) -> Views:
    """The views with their floats in fp64."""
    return views.map(lambda t: t.double() if t.is_floating_point() else t)


def step(learner: Learner, batch: Batch) -> Found:
    """What a step gives: losses, terms and gradients averaged over ranks, and the slow state after it.

    The learner itself stays as it is.
    """
    learner = copy.deepcopy(learner).train()
    torch.manual_seed(0)
    progress = Progress(step=0, total=10, epoch_steps=1)
    losses = learner(batch, progress)
    learner.backward(losses)
    learner.objective.after_step(learner.encoders, progress)
    found = {"loss": losses.total.detach()}
    found |= {f"term {n}": t for n, t in losses.terms.items()}
    trained = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    # Without a gradient on one rank ranks would wait for one another.
    found |= {
        f"gradient of {n}": torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()
    }
    found = {n: sum_ranks(t) / world() for n, t in found.items()}
    found |= {f"state {n}": t for n, t in learner.state_dict().items()}
    return found | {f"figure {n}": t for n, t in losses.stats.items()}


def differences(found: Found, right: Found, kinds: str = "", limit: float = 1e-9) -> list[str]:
    """A line for each tensor whose largest difference is above `limit` of its largest entry; of some kinds only."""
    if found.keys() != right.keys():
        return [f"not on both sides: {sorted(found.keys() ^ right.keys())}"]
    floor = 1e-12 * max(t.abs().max().item() for n, t in right.items() if n.startswith("gradient"))
    wrong = []
    for name, value in right.items():
        if not value.numel() or (kinds and name.split()[0] not in kinds.split()):
            continue
        # NaN marks an empty slot of some state: it must stand in the same places.
        a, b = (t.double().nan_to_num(1e9) for t in (found[name], value))
        worst, scale = (a - b).abs().max().item(), value.double().nan_to_num(0).abs().max().item()
        if not worst <= max(limit * scale, floor):
            wrong.append(f"{name}: {worst:.3g} beside {scale:.3g}")
    return wrong


def with_present(batch: Batch, present: Mapping[str, Tensor]) -> Batch:
    """The batch in which samples lack streams, bool [B] by stream; this rank's rows of it."""
    mine = slice(rank() * BATCH // world(), (rank() + 1) * BATCH // world())
    return Batch(replace(v, present=present[v.stream][mine]) for v in batch)


def other_stand_ins(batch: Batch) -> Batch:
    """The batch with other content in rows that do not exist: that of the sample before, which is fit to be read."""
    changed = []
    for views in batch:
        rows = views.present_rows
        assert rows is not None
        content = {}
        for name in ("x", "target", "valid", "condition", "coords"):
            value: Tensor | None = getattr(views, name)
            if value is not None:
                ahead = value.unflatten(0, (views.num_views, -1)).roll(1, 1).flatten(0, 1)
                content[name] = torch.where(rows.reshape(-1, *[1] * (value.dim() - 1)), value, ahead)
        changed.append(replace(views, **content))
    return Batch(changed)


def other_padding(batch: Batch, specs: Mapping[str, StreamSpec]) -> Batch:
    """The batch with other content at padding: in what is read, in targets and in places.

    Cells that a table withholds are real values to rebuild, so that targets of a table stay.
    """
    changed = []
    for views in batch:
        if views.valid is None:
            changed.append(views)
            continue
        spec, valid = specs[views.stream], views.valid
        content: dict[str, Tensor] = {}
        if spec.kind == "columns":
            cells = [float(n > 1) if n else 9.0 for n in spec.cardinalities or [0] * valid.shape[1]]
            content["x"] = torch.where(valid, views.x, views.x.new_tensor(cells))  # levels are known ones
        elif spec.kind == "sequence":
            content["x"] = views.x.masked_fill(~valid, 7)
        else:
            places = valid.unflatten(1, [n // p for n, p in zip(views.x.shape[2:], spec.patch, strict=True)])
            for axis, size in enumerate(spec.patch):
                places = places.repeat_interleave(size, 1 + axis)
            content["x"] = views.x.masked_fill(~places[:, None], 9.0)
        if views.target is not None and spec.target_kind != "cells":
            content["target"] = views.target.masked_fill(_fits(~valid, views.target), 7)
        if views.coords is not None:
            content["coords"] = views.coords.masked_fill(_fits(~valid, views.coords), 0.5)
        changed.append(replace(views, **content))
    return Batch(changed)


def _fits(flags: Tensor, values: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (values.dim() - flags.dim()))


def only_present(batch: Batch) -> Batch:
    """The batch without the samples that lack the stream; of one stream."""
    present = batch[0].present
    assert present is not None
    kept = []
    for views in batch:
        some = views.samples(present.nonzero()[:, 0])
        masks = tuple(pack_masks(m.hidden) for m in some.masks)
        kept.append(replace(some, present=None, masks=masks))
    return Batch(kept)


def gradients_at_stand_ins(learner: Learner, batch: Batch) -> list[str]:
    """A line for each item whose absent rows have a gradient that is not exactly 0."""
    learner = copy.deepcopy(learner).train()
    floats = Batch(
        replace(v, x=v.x.clone().requires_grad_()) if v.x.is_floating_point() else v for v in batch
    )
    losses = learner(floats, Progress(step=0, total=10, epoch_steps=1))
    learner.backward(losses)
    wrong = []
    for views in floats:
        rows = views.present_rows
        if rows is not None and views.x.grad is not None and views.x.grad[~rows].abs().sum() != 0:
            wrong.append(f"gradient at absent {views.stream}, {views.role}")
    return wrong


class Careless(Objective):
    """Says that it reads `present`, and takes stand-ins and padding for what they stand for: a planted violation."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        by_rank: bool = False
        """Leave stand-ins out, and divide by the samples of this rank instead of all."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("careless", streams)
        self.head = nn.Linear(encoders.widths()[self.stream], 1)

    def plans(self) -> Plans:
        return same_plan([self.stream], ONE_VIEW["global"])

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        (features,) = encoders.encode(batch)
        values = self.head(features.tokens).square().mean((1, 2))  # [B]
        present = batch[0].present
        if self.cfg.by_rank and present is not None:
            return Losses(total=(values * present).sum() / present.sum().clamp(min=1))
        return Losses(total=values.mean())
