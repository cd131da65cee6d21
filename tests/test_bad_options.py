"""What a user gets wrong in the options of an objective, over the registry: one line with option, value and way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import registry
from multissl.build import build
from multissl.check import check
from multissl.config import Config
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.modality import Modality
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import StepBatches
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.recipe import Recipe
from multissl.verify.small import shrunk
from tests.helpers.toys import Pairs

NAMES = registry.names("objectives")
TINY = Image.Config(size=16, local_size=8, patch=4, mask_group=1)
TEXT = Text.Config(
    data=str(Path(__file__).parents[1] / "README.md"), vocab=300, length=16, local_length=8, mask_group=1
)
ENCODER = TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling="mean")


def default(name: str) -> Any:
    return registry.resolve(name, "objectives").Config()


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.count("\n") == 0, text
    return text


def temperatures() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        for field in dataclasses.fields(default(name)):
            if "temperature" in field.name and isinstance(getattr(default(name), field.name), float):
                yield name, field.name


@pytest.mark.parametrize(("name", "option"), [*temperatures()])
@pytest.mark.parametrize("value", [0.0, -0.1])
def test_a_temperature_is_more_than_0(name: str, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"objective\.{option}={value}: want more than 0") as found:
        default(name).replace(**{option: value})
    one_line(found.value)


def heads() -> Iterator[tuple[str, str, str]]:
    """Every width of every head of every objective."""
    for name in NAMES:
        for field in dataclasses.fields(default(name)):
            head = getattr(default(name), field.name)
            if isinstance(head, (MLPHead.Config, PrototypeHead.Config)):
                for width in ("hidden", "out", "bottleneck", "prototypes"):
                    if hasattr(head, width):
                        yield name, field.name, width


@pytest.mark.parametrize(("name", "option", "width"), [*heads()])
def test_a_head_has_a_width(name: str, option: str, width: str) -> None:
    head: Config = getattr(default(name), option)
    with pytest.raises(ValueError, match=rf"{width}=0: want 1 or more") as found:
        head.replace(**{width: 0})
    one_line(found.value)


def loss_of(cfg: Any, made: Modality.Config, batch_size: int) -> Losses:
    """The first loss of an objective, for so many samples."""
    modality = made.build().fit()
    specs = modality.streams()
    encoders = build_encoders(dict.fromkeys(specs, ENCODER), specs)
    objective = cfg.build(encoders, specs)
    plans = objective.plans()
    data = StepBatches(modality, plans, batch_size, 0, 0, 1, final=True)
    objective.train()
    return objective(encoders, data[0][0], Progress(step=0, total=10))


OWN: dict[str, Modality.Config] = {
    **dict.fromkeys(("clip", "siglip"), Pairs.Config()),
    **dict.fromkeys(("mlm", "next_token"), TEXT),
    "infilling": TEXT.replace(infill=0.3),
    "vime": Tabular.Config(),
    "cav_mae": Paired.Config(members={"left": TINY, "right": TINY}, join="label"),
}
"""What objectives learn from that do not take pictures."""
ONE_IS_TOO_FEW = {
    "dino", "dino_distill", "msn", "nnclr", "infonce", "clip", "siglip", "byol", "vicreg", "vicregl", "barlow", "wmse",
    "weighted", "spr", "visreg", "tico", "mmcr",
}  # fmt: skip
"""Objectives that compare samples, or whose heads have batch norm."""


def refusal(cfg: Any, made: Modality.Config, batch_size: int) -> str:
    """Why the objective refuses so many samples; empty where its loss is finite."""
    try:
        losses = loss_of(cfg, made, batch_size)
    except ValueError as error:
        return one_line(error)
    assert torch.isfinite(losses.total)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_is_learnt_from_or_refused(name: str) -> None:
    said = refusal(shrunk(default(name)), OWN.get(name, TINY), 1)
    assert bool(said) == (name in ONE_IS_TOO_FEW)
    assert not said or "batch" in said, said


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(default(n), "queue")])
def test_a_queue_holds_a_batch(name: str) -> None:
    with pytest.raises(ValueError, match=r"objective\.queue=8") as found:
        loss_of(shrunk(default(name)).replace(queue=8), TINY, 16)
    assert "batch" in one_line(found.value)


def masked() -> Iterator[str]:
    """The objectives that hide tokens by default."""
    modality = TINY.build()
    specs = modality.streams()
    for name in NAMES:
        try:
            objective = shrunk(default(name)).build(build_encoders({"image": ENCODER}, specs), specs)
        except ValueError:  # it wants several streams, symbols or columns
            continue
        hides = shrunk(default(name)).maskings() - {"none"}
        if hides and any(p.mask_ratio for p in objective.plans().values()):
            yield name


def test_masks_are_not_asked_of_an_encoder_that_cannot_hide_tokens() -> None:
    names = list(masked())
    assert {"dino", "mae", "ijepa", "msn", "data2vec"} <= {*names}
    modality = TINY.build()
    specs = modality.streams()
    for name in names:
        cfg = shrunk(default(name))
        recipe = Recipe(modality=TINY, encoders={"image": MLPEncoder.Config(dims=(16,))}, objective=cfg)
        plans = cfg.build(build_encoders({"image": ENCODER}, specs), specs).plans()
        with pytest.raises(
            ValueError, match=r"which mlp cannot: set --encoders.image transformer, or "
        ) as found:
            check(recipe, modality, plans)
        assert one_line(found.value).startswith(f"{name} asks encoders.")


@pytest.mark.parametrize("name", NAMES)
def test_streams_that_have_no_encoder_are_named(name: str) -> None:
    recipe = Recipe(modality=TINY, encoders={"picture": ENCODER}, objective=shrunk(default(name)))
    with pytest.raises(ValueError, match=r"encoders has no 'image': the modality feeds image") as found:
        build(recipe, torch.device("cpu"))
    one_line(found.value)
