"""Batch norm in encoders across precisions and ranks: fp32 weights under bf16, and each CPU rank's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoder, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data
from multissl.engine.learner import Learner
from multissl.engine.memory import OutOfMemory
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.vicreg import VICReg
from multissl.options import apply, read
from multissl.parallel.sharding import Parallel, local, parallelize
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from tests.helpers.ranks import run_ranks

SPEC = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=1, patch=(8, 8))
CPU, START = torch.device("cpu"), Progress(step=0, total=2)


class Distance(Objective):
    """An objective with a teacher: the distance of the student's features to the teacher's."""

    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.teacher = Teacher.Config(batch_norm="batch", buffers="keep").build({"encoders": encoders})
        self.head = nn.Linear(encoders.widths()["image"], 4)

    def shard_units(self) -> list[nn.Module]:
        return self.teacher.shard_units()

    def plans(self) -> Plans:
        return {"image": ViewPlan(num_global=2)}

    def exported(self, encoders: Encoders) -> Encoders:
        return self.teacher.encoders

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        with torch.no_grad():
            (target,) = self.teacher.encoders.encode(batch)
        (found,) = encoders.encode(batch)
        assert found.pooled.dtype == found.tokens.dtype == target.pooled.dtype == torch.float32
        return Losses(total=(self.head(found.pooled) - self.head(target.pooled) - 1).square().mean())


def learner_of(objective: str) -> Learner:
    torch.manual_seed(0)
    encoders = Encoders({"image": ResNetEncoder.Config(depth=10, width=4, stem="small").build(SPEC)})
    if objective == "distance":
        return Learner(encoders, Distance(encoders)).train()
    cfg = VICReg.Config(projector=MLPHead.Config(hidden=8, out=8))
    made: Objective = cfg.build(encoders, {"image": SPEC})
    return Learner(encoders, made).train()


def batch_of(rows: slice = slice(None)) -> Batch:
    x = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))[:, rows]
    return Batch([Views(x=x.flatten(0, 1), stream="image", role="global", num_views=2)])


def gradients(learner: Learner, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    losses = learner(batch, START)
    learner.backward(losses)
    return losses.total.item(), {
        n: local(p.grad) for n, p in learner.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("objective", ["distance", "vicreg"])
def test_bf16_keeps_fp32_weights_and_runs_every_encoder_under_autocast(objective: str) -> None:
    exact, half = learner_of(objective), learner_of(objective)
    parallelize(half, Parallel(precision="bf16"), CPU)
    encoders = [m for m in half.modules() if isinstance(m, Encoder)]
    assert len(encoders) == (2 if objective == "distance" else 1)
    assert all(e.autocast is torch.bfloat16 for e in encoders)
    seen: list[torch.dtype] = []
    for encoder in encoders:
        layer = encoder.get_submodule("net.layer4")
        layer.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    expected, reference = gradients(exact, batch_of())
    total, found = gradients(half, batch_of())
    assert seen == [torch.bfloat16] * len(encoders)
    assert total == pytest.approx(expected, rel=0.02)
    assert found.keys() == reference.keys()
    assert all(g.dtype == torch.float32 for g in found.values())
    flat = [torch.cat([g[n].flatten() for n in reference]) for g in (found, reference)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.95
    (features,) = half.encode("exported", batch_of())
    assert features.pooled.dtype == torch.float32


def test_micro_chunks_give_the_gradient_of_encoding_them_one_by_one() -> None:
    """Batch norm sees four samples at a time; the loss sees all eight, and running statistics move once a chunk."""
    made = learner_of("vicreg")
    learner = Learner(made.encoders, made.objective, chunk=4, chunk_norm="micro").train()
    total, found = gradients(learner, batch_of())
    plain = learner_of("vicreg")
    (views,) = batch_of()
    parts = [plain.encoders.encode([views.samples(torch.arange(4) + first)])[0].pooled for first in (0, 4)]
    pooled = torch.stack([p.unflatten(0, (2, 4)) for p in parts], 1).flatten(0, 2)  # view-major again

    class Given(EncodeFunction):
        def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
            return [Features(pooled=pooled, tokens=pooled[:, None])]

    losses = plain.objective(Given(), batch_of(), START)
    losses.total.backward()
    assert total == pytest.approx(losses.total.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    ours, theirs = dict(learner.encoders.named_buffers()), dict(plain.encoders.named_buffers())
    assert all(torch.allclose(ours[name].float(), theirs[name].float()) for name in theirs)
    assert ours["image.net.bn1.num_batches_tracked"] == 2
    whole, _ = gradients(learner_of("vicreg"), batch_of())
    assert total != pytest.approx(whole, rel=1e-3)  # which is why it has to be asked for


def pictures(**options: Any) -> Recipe:
    """Two steps of a residual net on small pictures."""
    modality = Image.Config(size=8, local_size=8, patch=8, blur="none")
    encoder = ResNetEncoder.Config(depth=10, width=4, stem="small")
    objective = VICReg.Config(projector=MLPHead.Config(hidden=8, out=8))
    return Recipe(
        modality=modality,
        encoders={"image": encoder},
        objective=objective,
        **{"batch_size": 8, "steps": 2, "data": Data(workers=0), "evals": {}, "loggers": {}} | options,
    )


def test_what_micro_chunks_change_is_said_and_recorded_and_part_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"chunk=4: .* set chunk_norm=micro"):
        train(pictures(chunk=4), tmp_path / "refused")
    train(pictures(chunk=4, chunk_norm="micro"), tmp_path / "run")
    said = "chunk_norm=micro: batch norm of encoders sees 4 samples at a time instead of 8"
    assert said in capsys.readouterr().err
    assert any(said in line.get("text", "") for line in RunFolder(tmp_path / "run").read_metrics())
    assert said in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ValueError, match="chunk: 4 -> 2"):
        train(pictures(chunk=2, chunk_norm="micro"), tmp_path / "run")


@pytest.mark.parametrize("encoder", ["resnet", "transformer"])
def test_the_advice_when_memory_is_out_fits_the_encoder(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice, typed as it stands, trains."""
    made = pictures()
    if encoder == "transformer":
        made.encoders["image"] = TransformerEncoder.Config(dim=16, depth=1, heads=2)
    first = VICReg.forward

    def full(self: VICReg, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VICReg, "forward", full)
    with pytest.raises(OutOfMemory) as error:
        train(made, tmp_path / "full")
    monkeypatch.setattr(VICReg, "forward", first)
    advice = str(error.value).removeprefix("out of memory: ").partition(" encodes")[0]
    assert ("--chunk_norm micro" in advice) == (encoder == "resnet")
    train(apply(made, read(advice.split())), tmp_path / "fits")


def test_full_precision_leaves_encoders_alone() -> None:
    learner = learner_of("vicreg")
    parallelize(learner, Parallel(precision="fp32"), CPU)
    assert not any(m.autocast for m in learner.modules() if isinstance(m, Encoder))


def two_ranks(rank: int, precision: Any) -> tuple[float, torch.Tensor]:
    learner = learner_of("vicreg")
    parallelize(learner, Parallel(shard=2, precision=precision), CPU)
    total, found = gradients(learner, batch_of(slice(4 * rank, 4 * rank + 4)))
    assert all(torch.isfinite(g).all() for g in found.values())
    return total, learner.encoders["image"].get_buffer("net.bn1.running_mean")


@pytest.mark.ranks
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cpu_ranks_normalize_by_their_own_rows(precision: str) -> None:
    (_, a), (_, b) = run_ranks(2, two_ranks, precision)
    assert not torch.equal(a, b)
    whole = learner_of("vicreg")
    gradients(whole, batch_of())
    whole_mean = whole.encoders["image"].get_buffer("net.bn1.running_mean")
    torch.testing.assert_close((a + b) / 2, whole_mean, rtol=0.05, atol=1e-3)
