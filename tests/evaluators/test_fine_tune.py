"""Fine-tuning: groups of MAE's rule, a training beside one by hand, classes, quantities, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import HasTargets
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.evaluators import fine_tune as protocol
from multissl.evaluators.classified import validation_mask
from multissl.evaluators.fine_tune import RECIPES, FineTune
from multissl.evaluators.probes.fine_tuning import Schedule, Tuned, fine_tune, groups_of
from tests.evaluators.clusters import START, Clusters, Pointwise, frozen
from tests.evaluators.every import broken

PLAIN = Schedule(lr=0.1, layer_decay=0.5, weight_decay=0.02, epochs=3, warmup=1, batch=16)


def test_groups_are_those_of_mae() -> None:
    """util/lr_decay.py: layer 0 is tokens and patches, i + 1 block i, the last the rest; vectors have no decay."""
    spec = StreamSpec(kind="grid", shape=(1, 8, 8), patch=(4, 4), num_tokens=4)
    encoder = TransformerEncoder.Config(dim=8, depth=3, heads=2).build(spec)
    head = nn.Linear(8, 2)
    found = {id(p): g for g in groups_of(encoder, head, PLAIN, 512) for p in g["params"]}
    names = dict(encoder.named_parameters()) | {f"head.{n}": p for n, p in head.named_parameters()}
    assert len(found) == len(names)
    for name, parameter in names.items():
        if name.startswith("tokenizer"):
            layer = 0
        elif "blocks." in name:
            layer = int(name.split("blocks.")[1].split(".")[0]) + 1
        else:
            layer = 4
        skipped = parameter.ndim == 1 or any(t in name for t in ("cls_token", "pos_embed", "mask_token"))
        assert found[id(parameter)]["peak"] == pytest.approx(0.2 * 0.5 ** (4 - layer)), name
        assert found[id(parameter)]["weight_decay"] == (0.0 if skipped else 0.02), name


def test_a_training_is_that_of_a_loop_by_hand() -> None:
    points = Clusters.Config(noise=0.5).build()
    torch.manual_seed(1)
    start = nn.Linear(2, 4)
    encoders = Encoders({"points": Pointwise(start)})
    data = points.dataset("train")
    labels = torch.tensor([data[i].label for i in range(40)])
    kept: list[tuple[Tensor, Tensor]] = []

    def after(model: Tuned) -> None:
        encoder = model.encoders["points"]
        assert isinstance(encoder, Pointwise)
        kept.append((encoder.inner.weight.clone(), model.head.weight.clone()))  # type: ignore[operator]

    fine_tune(
        encoders, "points", 4, points, [*range(40)], labels, outputs=4, schedule=replace(PLAIN, smoothing=0.1), seed=3,
        device=torch.device("cpu"), after_epoch=after,
    )  # fmt: skip
    assert len(kept) == 4  # of 8 steps: an epoch of 2.5 is rounded to 2

    torch.manual_seed(3)
    body, head = nn.Linear(2, 4), nn.Linear(4, 4)
    body.load_state_dict(start.state_dict())
    torch.manual_seed(3)
    nn.Linear(4, 4)  # what the head was before its own initial weights
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    peak = 0.1 * 16 / 256
    solver = torch.optim.AdamW(
        [{"params": [m.weight], "weight_decay": 0.02} for m in (body, head)]
        + [{"params": [m.bias], "weight_decay": 0.0} for m in (body, head)]
    )  # a network without blocks is of the last layer
    draw, order = torch.Generator().manual_seed(3), list[int]()
    for step in range(8):
        while len(order) < 16:
            order += torch.randperm(40, generator=draw).tolist()
        rows, order = order[:16], order[16:]
        share = (step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 6)) / 2
        for group in solver.param_groups:
            group["lr"] = max(peak * share, 1e-6)
        x = torch.stack([data[r].data for r in rows])
        loss = F.cross_entropy(head(body(x)), labels[rows], label_smoothing=0.1)
        solver.zero_grad()
        loss.backward()
        solver.step()
    torch.testing.assert_close(kept[-1][0], body.weight.detach())
    torch.testing.assert_close(kept[-1][1], head.weight.detach())
    assert torch.equal(start.weight, encoders["points"].inner.weight)  # type: ignore[arg-type, union-attr]


def test_clusters_are_told_apart_and_labels_without_sense_are_not() -> None:
    options = {"lr": (0.3,), "epochs": 20, "warmup": 1, "batch": 32, "seeds": 2}
    evaluator = FineTune.Config(**options).build()  # type: ignore[arg-type]
    points = Clusters.Config(noise=0.05).build()
    torch.manual_seed(0)
    encoders = frozen(nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU()))
    figures = evaluator.run(encoders, points, START)
    assert figures["top1"] > 90
    assert figures["over_seeds"].n == 2  # type: ignore[attr-defined]
    assert figures["top1"] == pytest.approx(figures["over_seeds"])
    assert evaluator.baselines(points)["majority"] == pytest.approx(25)
    noise = Clusters.Config(noise=30).build()
    assert evaluator.run(encoders, noise, START)["top1"] < 50


class Measured(Clusters, HasTargets):
    """Points whose label is a quantity: the first coordinate, in large units."""

    def targets(self, split: str) -> Tensor:
        data = self.dataset(split)
        values = torch.tensor([1000 * float(data[i].data[0]) for i in range(len(data))])
        values[0] = math.nan
        return values


def test_a_quantity_is_found_in_its_own_unit(said: list[str]) -> None:
    evaluator = FineTune.Config(lr=(1.0,), epochs=20, batch=16, seeds=2, weight_decay=0.0).build()
    figures = evaluator.run(frozen(nn.Linear(2, 4)), Measured.Config(noise=0.3, labels=False).build(), START)
    assert figures["r2"] > 80
    assert said == []


def test_the_epoch_and_the_rate_are_chosen_on_a_tenth_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    points = Clusters.Config(noise=0.5).build()
    scored: list[tuple[int, float]] = []
    inner = protocol.score

    def score(made: np.ndarray, targets: Tensor) -> float:
        scored.append((len(targets), inner(made, targets)))
        return scored[-1][1]

    monkeypatch.setattr(protocol, "score", score)
    evaluator = FineTune.Config(lr=(0.01, 1.0), epochs=2, warmup=0, batch=27, seeds=1).build()
    evaluator.run(frozen(nn.Linear(2, 4)), points, START)
    assert {count for count, _ in scored} == {int(validation_mask(120).sum())}
    assert len(scored) == 2 * 2


def test_recipes_hold_where_nothing_is_typed() -> None:
    cfg = FineTune.Config(recipe="mae_base", epochs=3, lr=(0.1, 0.2))
    assert [s.lr for s in cfg.schedules] == [0.1, 0.2]
    assert cfg.schedules[0] == replace(RECIPES["mae_base"], epochs=3, lr=0.1)
    assert FineTune.Config(recipe="audiomae").schedules == [RECIPES["audiomae"]]


@pytest.mark.parametrize(
    ("recipe", "batch", "rate", "decay"), [("scarf", 128, 1e-3, 0.0), ("saint", 256, 1e-4, 0.01)]
)
def test_recipes_of_tables_have_one_rate_for_all_layers(
    recipe: Any, batch: int, rate: float, decay: float
) -> None:
    """The papers give the rate of their own batch, and know no decay from layer to layer."""
    spec = StreamSpec(kind="grid", shape=(1, 8, 8), patch=(4, 4), num_tokens=4)
    encoder = TransformerEncoder.Config(dim=8, depth=3, heads=2).build(spec)
    (schedule,) = FineTune.Config(recipe=recipe).schedules
    assert schedule.batch == batch
    groups = groups_of(encoder, nn.Linear(8, 2), schedule, batch)
    assert [g["peak"] for g in groups] == pytest.approx([rate] * len(groups))
    assert {g["weight_decay"] for g in groups} == {0.0, decay}


@pytest.mark.parametrize("options", [{"lr": (0.0,)}, {"layer_decay": 2.0}, {"batch": 1}, {"seeds": 0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FineTune.Config(**options)  # type: ignore[arg-type]


def test_a_training_that_diverges_gives_no_number(said: list[str]) -> None:
    evaluator = FineTune.Config(lr=(1e30,), epochs=1, batch=16, seeds=1).build()
    figures = evaluator.run(frozen(nn.Linear(2, 4)), Clusters.Config().build(), START)
    assert all(math.isnan(v) for v in figures.values())
    assert "diverged" in said[0]


def test_encoders_that_are_in_training_are_refused_by_a_line(said: list[str]) -> None:
    encoders = replace(frozen(nn.Linear(2, 4)), modules=None)
    assert FineTune.Config().build().run(encoders, Clusters.Config().build(), START) == {}
    assert "multissl eval" in said[0]
    figures = (
        FineTune.Config()
        .build()
        .run(broken(frozen(nn.Linear(2, 4)), np.nan), Clusters.Config().build(), START)
    )
    assert all(math.isnan(v) for v in figures.values())
