"""A run ships a share of its training, as a figure asks for, and everything is measured of what it would ship."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import multissl
from multissl.contract.data import Views
from multissl.contract.decision import Decision
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.engine.best import Best
from multissl.engine.checkpoint import Save
from multissl.engine.mixture import Mixture
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from tests.helpers.lean import lean_runs
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import Net, recipe

POINTS = torch.linspace(-2, 2, 24).reshape(4, 6)


class Sharing(Evaluator):
    """Asks for a share that its options name, one for each measurement."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        shares: tuple[float, ...] = (1.0,)

    @property
    def decides(self) -> bool:
        return True

    @property
    def mixes(self) -> bool:
        return True

    def metric_names(self) -> list[str]:
        return ["share"]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        place = min(progress.step // (self.cfg.every or 1), len(self.cfg.shares) - 1)
        return {"share": self.cfg.shares[place]}

    def decision(self, history: list[dict[str, float]]) -> Decision:
        share = history[-1]["share"]
        return Decision(share=share, text=f"{share:.0%}" if share < 1 else "")


class Seen(Evaluator):
    """The first feature of some points."""

    def metric_names(self) -> list[str]:
        return ["value"]

    @torch.no_grad()
    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        views = Views(x=POINTS, stream="points", role="clean")
        return {"value": encoders.encode([views])[0].pooled[0, 0].item()}


def made(*shares: float, **options: Any) -> Recipe:
    evals = {"seen": Seen.Config(every=10), "sharing": Sharing.Config(every=20, shares=shares)}
    encoders = {"points": Net.Config(dropout=0.0)}
    return recipe().replace(evals=evals, encoders=encoders, steps=20, save=Save(every=10), **options)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "encoder.safetensors")


def trained(folder: Path) -> dict[str, Tensor]:
    """Return the encoder of the newest checkpoint; the run is one that has not finished from here on."""
    for name in ("encoder.safetensors", "summary.json"):
        (folder / name).unlink()
    return dict(multissl.load(folder).encoders.state_dict())


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def test_weights_lie_between_and_come_back_to_the_bit() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    mixture = Mixture(module)
    start = {n: t.clone() for n, t in module.state_dict().items()}
    module(torch.randn(8, 3))
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn_like(p)
    own = {n: t.clone() for n, t in module.state_dict().items()}
    with mixture.within(module, 0.25):
        for name, tensor in module.state_dict().items():
            between = 0.75 * start[name] + 0.25 * own[name] if tensor.is_floating_point() else own[name]
            torch.testing.assert_close(tensor, between)
    assert all(torch.equal(t, own[n]) for n, t in module.state_dict().items())
    with mixture.within(module, 0):
        assert torch.equal(module.state_dict()["0.weight"], start["0.weight"])


@pytest.mark.usefixtures("lean")
def test_what_is_shipped_and_measured_has_the_share_and_training_goes_on_without_it(tmp_path: Path) -> None:
    for name, share in (("whole", 1.0), ("none", 0.0), ("some", 0.3)):
        train(made(1.0, share), tmp_path / name)
    whole, none, some = (weights(tmp_path / n) for n in ("whole", "none", "some"))
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, 0.3 * whole[name] + 0.7 * none[name])
        assert not torch.equal(whole[name], none[name])
    record = RunFolder(tmp_path / "some").read_metrics()
    assert [(x["step"], x["text"]) for x in record if x["kind"] == "note" and x["step"]] == [(20, "30%")]
    values = {
        name: [x["seen/value"] for x in RunFolder(tmp_path / name).read_metrics() if x["kind"] == "eval"]
        for name in ("whole", "none", "some")
    }
    assert values["some"][:2] == values["whole"][:2] == values["none"][:2]
    assert values["none"][2] == values["none"][0]
    assert values["some"][2] not in (values["whole"][2], values["none"][2])
    end = trained(tmp_path / "some")
    assert all(torch.equal(end[name], tensor) for name, tensor in whole.items())


@pytest.mark.usefixtures("lean")
def test_a_run_killed_before_it_shipped_ships_the_same(tmp_path: Path) -> None:
    train(made(1.0, 0.3), tmp_path)
    before = digest(tmp_path)
    (tmp_path / "encoder.safetensors").unlink()
    (tmp_path / "summary.json").unlink()
    train(made(1.0, 0.3), tmp_path)
    assert digest(tmp_path) == before


def test_a_best_step_beside_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best.figure=seen: evals.sharing chooses the share"):
        train(made(1.0, best=Best(figure="seen")), tmp_path)


def on_ranks(rank: int, folder: Path) -> None:
    with lean_runs():
        for shard in (1, 2):
            train(made(1.0, 0.3, parallel=Parallel(shard=shard)), folder / str(shard))


@pytest.mark.ranks
def test_copies_and_shards_are_mixed_alike(tmp_path: Path) -> None:
    with lean_runs():
        train(made(1.0, 0.0), tmp_path / "start")
    run_ranks(2, on_ranks, tmp_path)
    start = weights(tmp_path / "start")
    for shard in ("1", "2"):
        shipped, end = weights(tmp_path / shard), trained(tmp_path / shard)
        for name, tensor in shipped.items():
            torch.testing.assert_close(tensor, 0.3 * end[name] + 0.7 * start[name])
