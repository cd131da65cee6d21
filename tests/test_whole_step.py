"""The whole path, from files to gradients, on one rank and on two: decode, crops, masks, color, DINOv2's objective."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import Tensor

from multissl.build import build
from multissl.configs.image import dino
from multissl.contract.learning import Progress
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine import checkpoint
from multissl.engine.batches import Data, StepBatches
from multissl.engine.checkpoint import Save
from multissl.parallel.ranks import rank, world
from multissl.parallel.sharding import Parallel, full
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.run.model import load
from tests.helpers.ranks import run_ranks
from tests.test_grid import shrunk

BATCH = 8


def recipe() -> Recipe:
    """The demo, tiny: real crops and colors, ema or Sinkhorn by default, drop path off (it draws by rank)."""
    made = dino.default()
    made.modality = made.modality.replace(size=16, local_size=8, mask_group=4, blur_kernel=3)
    made.encoders["image"] = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=0.5)
    made.objective = shrunk(made.objective).replace(ibot_weight=1.0, koleo_weight=0.1, koleo_group=4)
    return made.replace(batch_size=BATCH, steps=10)


def gradients(_number: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    made = recipe()
    parts = build(made, torch.device("cpu"))
    objective: Any = parts.learner.objective
    ranks = (rank(), world())
    steps = StepBatches(parts.modality, objective.plans(), BATCH, made.seed, *ranks, final=False)
    views = steps.views(steps[3][0], 3)
    parts.learner.train()
    losses = parts.learner(views, Progress(step=3, total=10))
    parts.learner.backward(losses)
    found = {n: full(p.grad) for n, p in parts.learner.named_parameters() if p.grad is not None}
    return found, [v.x for v in views]


@pytest.mark.ranks
def test_two_ranks_see_the_views_and_take_the_gradient_of_one() -> None:
    (whole, seen), parts = gradients(0), run_ranks(2, gradients)
    for i, x in enumerate(seen):  # the same views, whoever makes them
        views = len(x) // BATCH
        both = [p[1][i].unflatten(0, (views, BATCH // 2)) for p in parts]
        torch.testing.assert_close(torch.cat(both, 1).flatten(0, 1), x, rtol=0, atol=0)
    assert whole.keys() == parts[0][0].keys()
    for name, right in whole.items():
        worst = (parts[0][0][name] - right).abs().max()
        assert worst <= 1e-5 * right.abs().max() + 1e-7, f"{name}: off by {worst:.2g}"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def train(folder: Path) -> None:
    made = recipe().replace(steps=9, save=Save(every=3), data=Data(workers=0), evals={}, loggers={})
    made.encoders["image"] = made.encoders["image"].replace(drop_path=0.3)
    run.train(made, folder)


def test_the_page_calls_the_metrics_of_the_objective_by_its_titles(trained: Path) -> None:
    assert "entropy of the targets: what the loss cannot fall below" in (trained / "report.html").read_text()


def test_a_dinov2_run_goes_on_from_a_checkpoint_to_the_same_bits(trained: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for later in checkpoint.find(RunFolder(tmp_path).checkpoints)[1:]:
        shutil.rmtree(later)
    (tmp_path / "encoder.safetensors").unlink()
    assert checkpoint.step_of(checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]) == 6
    train(tmp_path)
    assert digest(tmp_path) == digest(trained)


def test_a_trained_run_encodes_pictures_in_any_form(trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    pixels = np.random.RandomState(0).randint(0, 256, (20, 24, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "one.png")
    forms: list[Any] = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), str(tmp_path / "one.png")]
    forms += [tmp_path / "one.png", (tmp_path / "one.png").read_bytes(), Picture.fromarray(pixels)]
    features = model.encode(forms)
    assert features.shape == (6, 16)
    torch.testing.assert_close(features, features[:1].expand(6, 16), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"sample 0: torch.float32 tensor .*want uint8"):
        model.encode([torch.rand(3, 8, 8)])
    with pytest.raises(ValueError, match="sample 1: "):
        model.encode([pixels, b"no picture"])


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"checkpoint_activations": True}])
def test_half_precision_and_recomputed_activations_follow_the_plain_run(
    trained: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """On a processor: FSDP2's policy casts as it does on a GPU."""
    made = recipe().replace(steps=9, save=Save(every=3), data=Data(workers=0), evals={}, loggers={})
    made.encoders["image"] = made.encoders["image"].replace(drop_path=0.3)
    run.train(made.replace(parallel=Parallel(**options)), tmp_path)
    plain, other = (
        torch.tensor([x["loss"] for x in RunFolder(f).read_metrics() if x["kind"] == "train"])
        for f in (trained, tmp_path)
    )
    exact = "precision" not in options
    torch.testing.assert_close(other, plain, rtol=1e-5 if exact else 0.02, atol=1e-5 if exact else 0.02)
