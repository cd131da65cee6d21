"""The examples in the rooms' READMEs run as they stand, and do what their room is for."""

from __future__ import annotations

import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.logger import Session
from multissl.contract.modality import Modality
from multissl.contract.plans import CLEAN
from multissl.encoders.resnet import ResNetEncoder
from multissl.layers.kernels.base import layout
from multissl.layers.kernels.sdpa import SDPA
from multissl.random import RowRandom
from tests.encoders.test_resnet import SPEC
from tests.helpers.stubs import Points

PACKAGE = Path(__file__).parents[1] / "multissl"
ROOMS = (
    "weights",
    "layers",
    "layers/kernels",
    "encoders",
    "losses",
    "evaluators",
    "objectives",
    "parallel",
    "sources",
    "engine/loggers",
    "exporting",
)
POINTS: Modality = Points.Config().build()


def example(room: str) -> dict[str, Any]:
    """Return what the example of a room defines."""
    lines = (PACKAGE / room / "README.md").read_text().splitlines()
    code = "\n".join(line for line in lines if line.startswith("    ") or not line)
    module = types.ModuleType(f"example_{room.replace('/', '_')}")
    sys.modules[module.__name__] = module  # where dataclasses look up what their fields are
    torch.manual_seed(0)
    exec(compile(textwrap.dedent(code), room, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def batch(plans: Any) -> Any:
    data, rng = POINTS.dataset("train"), RowRandom((0, 0), 0, 8, 8)
    return POINTS.views(POINTS.collate([data[i] for i in range(8)], plans, rng), plans, rng)


@pytest.mark.parametrize("room", ROOMS)
def test_the_example_of_a_room_runs(room: str) -> None:
    assert len(example(room)) > 2


def test_the_layout_fills_an_encoder() -> None:
    encoder = ResNetEncoder.Config(depth=10, width=4, stem="small").build(SPEC)
    theirs = {f"module.encoder_q.{n.removeprefix('net.')}": t + 1 for n, t in encoder.state_dict().items()}
    made = example("weights")["MoCo"]()
    assert made.recognizes(theirs.keys(), encoder)
    encoder.load_state_dict(made.to_ours(theirs | {"module.encoder_q.fc.weight": torch.ones(1)}, encoder))


def test_the_kernel_attends() -> None:
    attend, packed = example("layers/kernels")["Written"](), torch.randn(2 * 3 + 5, 3, 2, 4)
    sizes = ((2, 3), (1, 5))
    ours = attend(packed, layout(sizes, packed.device, attend))
    torch.testing.assert_close(ours, SDPA()(packed, layout(sizes, packed.device, SDPA())))


def test_the_encoder_the_objective_and_the_evaluator_work_together() -> None:
    spec = POINTS.streams()["points"]
    encoders = Encoders({"points": example("encoders")["Flat"].Config(dim=16).build(spec)})
    (clean,) = batch({"points": CLEAN})
    assert isinstance(clean, Views)
    assert encoders.encode([clean])[0].pooled.shape == (8, 16)
    objective = example("objectives")["Agreement"].Config().build(encoders, POINTS.streams())
    loss = objective(encoders, batch(objective.plans()), Progress(step=0, total=1)).total
    loss.backward()
    assert loss.item() > 0
    evaluator = example("evaluators")["Deviation"].Config().build()
    metrics = evaluator.run(FrozenEncoders.of(encoders), POINTS, Progress(step=0, total=1))
    assert metrics["deviation"] > 0


def test_a_single_process_gathers_itself() -> None:
    names = example("parallel")
    assert torch.equal(names["everyone"], names["z"])
    torch.testing.assert_close(names["mean"], names["z"].mean(0))


def test_the_logger_prints(capsys: pytest.CaptureFixture[str]) -> None:
    logger = (
        example("engine/loggers")["Printed"]
        .Config()
        .build(Session(name="mine", folder=Path("unused"), start=0))
    )
    logger.log("train", 3, {"loss": 0.5})
    assert capsys.readouterr().out == "mine 3 0.5\n"
