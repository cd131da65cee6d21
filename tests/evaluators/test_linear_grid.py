from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Batch, Raw, Sample, Samples, Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.evaluators.classified import validation_mask
from multissl.evaluators.linear_grid import RATES, LinearGrid, batches, hits_of, train_heads
from multissl.random import RowRandom
from tests.evaluators.clusters import START, Clusters, frozen
from tests.helpers.stubs import Listed


def grid(**options: Any) -> LinearGrid:
    return LinearGrid(LinearGrid.Config(**{"lr": (0.01, 0.1), "steps": 80, "batch": 16, **options}))


def heads_by_torch(
    x: Tensor, y: Tensor, rates: Sequence[float], classes: int, steps: int, batch: int
) -> tuple[Tensor, Tensor]:
    """The same heads as the published code has them: modules, a group of an optimizer each, the sum of all losses."""
    generator = torch.Generator().manual_seed(0)
    start = 0.01 * torch.randn(classes, x.shape[1], generator=generator)
    heads = [nn.Linear(x.shape[1], classes) for _ in rates]
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(start)
            head.bias.zero_()
    groups = [
        {"params": head.parameters(), "lr": rate * batch / 256}
        for head, rate in zip(heads, rates, strict=True)
    ]
    solver = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, steps, eta_min=0)
    for rows in batches(len(x), batch, steps, generator):
        loss = torch.stack([F.cross_entropy(head(x[rows]), y[rows]) for head in heads]).sum()
        solver.zero_grad()
        loss.backward()
        solver.step()
        schedule.step()
    return torch.stack([h.weight.detach() for h in heads]), torch.stack([h.bias.detach() for h in heads])


def test_heads_are_those_of_torchs_optimizer() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(50, 6, generator=generator), torch.arange(50) % 3
    ours = train_heads(x, y, RATES, 3, steps=40, batch=16)
    theirs = heads_by_torch(x, y, RATES, 3, 40, 16)
    for own, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours[0][-1], ours[0][0], atol=0.01)


def test_the_published_grid_is_the_default() -> None:
    cfg = LinearGrid.Config()
    assert cfg.lr == RATES
    assert (len(RATES), min(RATES), max(RATES)) == (13, 1e-5, 0.1)
    assert (cfg.blocks, cfg.steps, cfg.batch, cfg.selection) == ((1, 4), 12_500, 128, "train")


def test_batches_are_of_all_samples_again_and_again() -> None:
    rows = torch.cat([*batches(7, 3, 14, torch.Generator().manual_seed(0))])
    assert rows.view(6, 7).sort(1).values.tolist() == [[*range(7)]] * 6
    assert rows[:7].tolist() != rows[7:14].tolist()


def test_hits_are_of_the_largest_logit() -> None:
    weight = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    x, y = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert hits_of(weight, torch.zeros(2, 2), x, y).tolist() == [[True, True], [False, False]]
    assert not hits_of(weight * torch.nan, torch.zeros(2, 2), x, y).any()


def test_clear_clusters_are_told_apart_and_the_choice_is_among_the_figures() -> None:
    modality = Clusters(Clusters.Config())
    figures = grid(steps=400, lr=(0.1, 5.0)).run(frozen(), modality, START)
    assert figures["top1"] == 100.0
    assert (figures["blocks"], figures["mean_token"]) == (1.0, 0.0)
    assert figures["lr"] in (0.1, 5.0)
    assert [*figures] == grid().metric_names()
    assert grid(steps=400, lr=(0.1, 5.0)).run(frozen(), modality, START) == figures
    baselines = grid(steps=400, lr=(0.1, 5.0)).baselines(modality)
    assert baselines["raw"] == 100.0
    assert baselines["majority"] == 25.0
    assert grid(classical=False).baselines(modality) == {}


def test_a_tenth_of_training_chooses_and_the_paper_chooses_on_what_is_scored(said: list[str]) -> None:
    modality = Clusters(Clusters.Config(noise=1.0))
    options: dict[str, Any] = {"lr": (1e-5, 1e-3, 0.1, 2.0), "steps": 200}
    paper = grid(selection="paper", **options)
    assert "scored split" in paper.selected_on
    figures = paper.run(frozen(), modality, START)
    assert [*figures] == ["top1_chosen_on_scored", "lr", "blocks", "mean_token"] == paper.metric_names()
    assert any("selection=paper" in line for line in said)
    assert paper.verdict([{"step": 0, **figures}, {"step": 1, **figures}]) is None
    alone = [
        grid(selection="paper", lr=(rate,), steps=200).run(frozen(), modality, START)["top1_chosen_on_scored"]
        for rate in options["lr"]
    ]
    assert figures["top1_chosen_on_scored"] == max(alone) > min(alone)
    held = grid(**options)
    assert held.selected_on == "a tenth of training"
    assert held.run(frozen(), modality, START)["top1"] <= max(alone)
    assert held.verdict([{"step": 0, "top1": 1.0}, {"step": 1, "top1": 2.0}]) is not None


def test_those_who_choose_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x))
        return train_heads(x, *args, **kwargs)

    monkeypatch.setattr("multissl.evaluators.linear_grid.train_heads", spy)
    modality = Clusters(Clusters.Config())
    grid().run(frozen(), modality, START)
    grid(selection="paper").run(frozen(), modality, START)
    assert seen == [108, 108, 120, 120]
    assert int(validation_mask(120).sum()) == 12


class Pixels(Modality):
    """Pictures of two by two patches, of which the first tells the class."""

    def streams(self) -> dict[str, StreamSpec]:
        spec = StreamSpec(kind="grid", shape=(1, 4, 4), patch=(2, 2), num_tokens=4, target_dim=4)
        return {"image": spec}

    def dataset(self, split: str) -> Samples:
        x = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(len(split)))
        y = torch.arange(40) % 2
        x[:, 0, :2, :2] += 3 * y[:, None, None]
        return Listed([Sample(data=row, index=i, label=int(y[i])) for i, row in enumerate(x)])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        return {"x": torch.stack([s.data for s in samples])}

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        return Batch([Views(x=raw["x"], stream="image", role="clean")])


def test_blocks_and_mean_tokens_are_what_the_published_code_puts_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modality = Pixels(Pixels.Config())
    torch.manual_seed(0)
    spec = modality.streams()["image"]
    encoder = TransformerEncoder.Config(dim=8, depth=5, heads=2, layerscale=1.0).build(spec).eval()
    assert isinstance(encoder, TransformerEncoder)
    seen: list[Tensor] = []

    def spy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x)
        return train_heads(x, *args, **kwargs)

    monkeypatch.setattr("multissl.evaluators.linear_grid.train_heads", spy)
    figures = grid(selection="paper").run(FrozenEncoders.of(Encoders({"image": encoder})), modality, START)
    assert figures["blocks"] in (1, 4)
    data = modality.dataset("train")
    views = Views(x=torch.stack([data[i].data for i in range(40)]), stream="image", role="clean")
    with torch.no_grad():
        layers = encoder.layers(views, 4)
    tokens = layers[-1].tokens.mean(1)
    four = torch.cat([layer.pooled for layer in layers], 1)
    wanted = [
        layers[-1].pooled,
        torch.cat([layers[-1].pooled, tokens], 1),
        four,
        torch.cat([four, tokens], 1),
    ]
    for x, reference in zip(seen, wanted, strict=True):
        torch.testing.assert_close(x, reference)


def test_an_encoder_of_few_blocks_or_of_none_has_a_smaller_grid(said: list[str]) -> None:
    modality = Pixels(Pixels.Config())
    encoder = TransformerEncoder.Config(dim=8, depth=2, heads=2).build(modality.streams()["image"])
    measured = FrozenEncoders.of(Encoders({"image": encoder}))
    assert grid().run(measured, modality, START)["blocks"] == 1
    assert said == ["linear_grid: the encoder of image pools its last 1 block, and no more"]
    said.clear()
    assert grid(blocks=(2,)).run(measured, modality, START)["blocks"] == 2
    assert said == []

    def refuse(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        if inner:
            raise ValueError("hands out no inner tokens")
        return measured.function(views, masking, inner)

    shallow = FrozenEncoders(refuse, measured.device, depths={"image": 4})
    assert grid().run(shallow, modality, START)["blocks"] == 1


def test_too_few_samples_choose_nothing(said: list[str]) -> None:
    assert grid(train=9).run(frozen(), Clusters(Clusters.Config()), START) == {}
    assert "want 10 or more" in said[0]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": ()}, "lr"),
        ({"lr": (0.0,)}, "lr"),
        ({"blocks": (0,)}, "blocks"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"train": -1}, "train"),
        ({"selection": "val"}, "selection"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        grid(**options)
