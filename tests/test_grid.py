"""Every registered objective on every registered modality, a few steps each, or the named reason why not.

A new objective or modality is covered by being registered. Configs are the defaults, shrunk: widths, prototypes and
crops become small, nothing is switched off. The toys show what the contract carries beyond today's objectives.
What passes is compared with `multissl/matrix.json`, which `multissl list --matrix` prints;
MULTISSL_WRITE_MATRIX=1 pytest tests/test_grid.py writes it again, each case its own cell.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multissl import matrix, registry
from multissl.build import build
from multissl.check import check
from multissl.contract.encoder import Encoder, build_encoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import StepBatches
from multissl.engine.learner import Learner
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular import tables
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text import demo
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe
from multissl.verify.small import shrunk
from tests.helpers import toys

BATCH, STEPS = 4, 3
MODALITIES: dict[str, Modality.Config] = {
    "image": Image.Config(size=16, local_size=8, patch=4, mask_group=4),
    "tabular": Tabular.Config(),
    "audio": Audio.Config(
        frames=32, local_frames=16, mels=32, patch=(8, 8), mask_group=4, mean=-8.0, std=4.0
    ),
    "rl": RL.Config(episodes=10, steps=12, mask_group=4),
    "video": Video.Config(frames=4, size=16, local_size=8, patch=4, stride=1, mask_group=4),
    "text": Text.Config(length=16, local_length=8, vocab=300, mask_group=4),
    "paired": Paired.Config(
        members={
            "image": Image.Config(size=16, local_size=8, patch=4, mask_group=4),
            "text": Text.Config(length=16, local_length=8, vocab=300, mask_group=4, pack=False),
        }
    ),
}
"""How a modality is made small; one that is not named here runs with its defaults."""
ENCODER = TransformerEncoder.Config(dim=16, depth=2, heads=2, drop_path=0.2)
LONE = [m for m in MODALITIES if m != "paired"]
REASONS: dict[tuple[str, str], str] = {
    **{(m, "clip"): "clip compares streams with each other" for m in LONE},
    **{(m, "siglip"): "siglip compares streams with each other" for m in LONE},
    **{
        (m, o): f"{o} predicts symbols of a sequence"
        for m in registry.GROUPS["modalities"]
        if m != "text"
        for o in ("mlm", "next_token", "infilling")
    },
    **{
        (m, "vime"): "vime tells which cells of a row were replaced"
        for m in registry.GROUPS["modalities"]
        if m != "tabular"
    },
    **{
        ("paired", o): f"{o} {reads} one stream"
        for reads, names in {
            "reads": "dino dino_distill msn simdino ijepa data2vec mlm next_token infilling",
            "rolls": "spr",
            "rebuilds": "mae vime",
        }.items()
        for o in names.split()
    },
    **{(m, "cav_mae"): "cav_mae joins streams" for m in LONE},
    (
        "paired",
        "cav_mae",
    ): "for drop views, which it does not provide: its rows hide unequal numbers of tokens",
    ("paired", "moco"): "moco with one direction would train only the encoder of image",
    ("paired", "tico"): "tico with one direction would train only the encoder of image",
    ("paired", "vicregl"): "vicregl matches places within one stream",
    ("text", "infilling"): "this stream takes nothing out: set modality.infill",
    ("tabular", "vicregl"): "for coords views, which it does not provide",
}
"""Pairs without a meaning, and the words in which `check` or the objective must refuse them."""
EXPERIMENTAL: dict[str, str] = {
    "image": "spr",
    "video": "spr vicreg vicregl barlow wmse tico mmcr data2vec lejepa visreg simdino",
    "audio": "spr tico mmcr ijepa lejepa visreg simdino",
    "text": "spr dino dino_distill byol vicreg vicregl barlow wmse tico mmcr swav msn ijepa lejepa visreg simdino",
    "tabular": "spr dino dino_distill byol vicreg barlow wmse tico mmcr swav msn ijepa data2vec lejepa visreg "
    "simdino distill",
    "rl": "dino dino_distill tico mmcr swav msn ijepa data2vec vicregl lejepa visreg simdino distill",
    "paired": "nnclr byol wmse mmcr swav lejepa visreg",
}
"""Pairs that train though nobody has published them: by modality, the objectives."""


@pytest.fixture(autouse=True, scope="module")
def quickly_built() -> Iterator[None]:
    """Let built-in texts and rows be few, as each case fits them anew, and no learner be copied to count its work."""
    texts, fields = demo.documents()
    rows = tables._demo(400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "documents", lambda: (texts[:100], fields[:100]))
        patch.setattr(tables, "_demo", lambda: rows)
        patch.setattr("multissl.build.Blueprint", lambda learner: None)
        yield


def small_recipe(modality: str, objective: Objective.Config) -> Recipe:
    made = MODALITIES.get(modality) or registry.resolve(modality, "modalities").Config()
    streams = made.build().fit().streams()
    # Read causally, the class token, which comes first, sees nothing.
    encoder = ENCODER.replace(pooling="last") if "causal" in objective.maskings() else ENCODER
    return Recipe(
        modality=made,
        encoders=dict.fromkeys(streams, encoder),
        objective=objective,
        batch_size=BATCH,
        steps=STEPS,
    )


def run(recipe: Recipe, steps: int = STEPS) -> tuple[Learner, list[float], set[str]]:
    """A few steps of the recipe; the losses, and the trainable parameters that never had a gradient."""
    parts = build(recipe, torch.device("cpu"))
    objective = parts.learner.objective
    plans = objective.plans()
    batches = StepBatches(parts.modality, plans, BATCH, 0, 0, 1, final=False)
    idle = {n for n, p in parts.learner.named_parameters() if p.requires_grad}
    losses = []
    for step in range(steps):
        progress = Progress(step=step, total=STEPS, epoch_steps=1)
        torch.manual_seed(step)
        parts.learner.train()
        found = parts.learner(batches.views(batches[step][0], step), progress)
        parts.learner.backward(found)
        assert torch.isfinite(found.total)
        assert all(torch.isfinite(v).all() for v in [*found.terms.values(), *found.stats.values()])
        losses.append(found.total.item())
        idle -= {n for n, p in parts.learner.named_parameters() if p.grad is not None}
        assert not [n for n, p in parts.learner.named_parameters() if "teacher" in n and p.grad is not None]
        parts.optimizer.step(progress)
        objective.after_step(parts.learner.encoders, progress)
        parts.optimizer.zero_grad()
    return parts.learner, losses, idle


def meaningful(recipe: Recipe) -> str | None:
    """Why a pair has no meaning, in the words of the objective or of `check`, or None."""
    modality = recipe.modality.build().fit()
    specs = modality.streams()
    encoders = build_encoders(recipe.encoders, specs)
    try:
        objective = recipe.objective.build(encoders, specs)
        check(recipe, modality, objective.plans())
    except ValueError as error:
        return str(error)
    return None


def settle(row: str, objective: str, found: str, table: str = "cells") -> None:
    """Compare a cell of a committed table with what was found, or write it."""
    if not os.environ.get("MULTISSL_WRITE_MATRIX"):
        assert matrix.read()[table].get(row, {}).get(objective) == found, (
            "multissl/matrix.json says something else: MULTISSL_WRITE_MATRIX=1 pytest tests/test_grid.py"
        )
        return
    with (Path(tempfile.gettempdir()) / "multissl-matrix.lock").open("w") as lock:  # pytest -n 2 writes too
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole = matrix.read()
        old, rows = whole.get(table, {}), ROWS[table]
        new = {
            r: {o: found if (r, o) == (row, objective) else old.get(r, {}).get(o, "") for o in OBJECTIVES}
            for r in rows
        }
        whole[table] = {r: {o: cell for o, cell in cells.items() if cell} for r, cells in new.items()}
        matrix.PATH.write_text(json.dumps(whole, indent=1) + "\n")


BACKBONES: dict[str, Encoder.Config] = {
    "transformer": ENCODER,
    "resnet": ResNetEncoder.Config(depth=10, stem="small", width=8),
    "timm convolutions": TimmEncoder.Config(name="test_convnext"),
    "timm transformer": TimmEncoder.Config(name="test_vit", options={"patch_size": 4}),
}
"""Networks of every family, small."""
ROWS = {"cells": [*registry.GROUPS["modalities"]], "backbones": [*BACKBONES]}
USUAL = ("dino", "infonce", "mae")
"""Objectives that are tried on every backbone by default, one of each kind; the others are marked slow."""
OBJECTIVES = [*registry.GROUPS["objectives"]]


@pytest.mark.parametrize("objective", registry.names("objectives"))
@pytest.mark.parametrize("modality", registry.names("modalities"))
def test_every_objective_runs_on_every_modality(modality: str, objective: str) -> None:
    if os.environ.get("MULTISSL_WRITE_MATRIX"):
        settle(modality, objective, "")  # a pair that fails has no cell
    recipe = small_recipe(modality, shrunk(registry.resolve(objective, "objectives").Config()))
    reason = meaningful(recipe)
    if reason is None:
        passes(recipe)
    else:
        assert REASONS.get((modality, objective), "not listed in REASONS") in reason
    if objective in OBJECTIVES and modality in registry.GROUPS["modalities"]:
        tried = objective not in EXPERIMENTAL.get(modality, "").split()
        settle(modality, objective, reason or ("ok" if tried else "experimental"))


@pytest.mark.parametrize(
    "objective",
    [o if o in USUAL else pytest.param(o, marks=pytest.mark.slow) for o in registry.GROUPS["objectives"]],
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_objective_runs_on_every_backbone(backbone: str, objective: str) -> None:
    if os.environ.get("MULTISSL_WRITE_MATRIX"):
        settle(backbone, objective, "", "backbones")
    recipe = small_recipe("image", shrunk(registry.resolve(objective, "objectives").Config()))
    sizes = (64, 32, 8) if backbone == "timm convolutions" else (32, 16, 4)  # which halve views five times
    recipe.modality = MODALITIES["image"].replace(
        **dict(zip(("size", "local_size", "patch"), sizes, strict=True))
    )
    recipe.encoders = {"image": BACKBONES[backbone]}
    reason = meaningful(recipe)
    if reason is None:
        learner, _, idle = run(recipe, steps=1)
        parameters = [p for p in learner.encoders.parameters() if p.requires_grad]
        assert parameters
        assert len(idle) < len(parameters)
    settle(backbone, objective, reason or "ok", "backbones")


def passes(recipe: Recipe) -> None:
    """Finite, a gradient everywhere and none on teachers, repeatable to the bit, restored by its state."""
    learner, losses, idle = run(recipe)
    assert not idle, f"trainable parameters without a gradient: {sorted(idle)}"
    again, repeated, _ = run(recipe)
    assert repeated == losses
    state = learner.state_dict()
    assert state.keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name
    fresh = build(recipe, torch.device("cpu")).learner
    fresh.load_state_dict(state)
    torch.testing.assert_close(dict(fresh.state_dict()), dict(state), rtol=0, atol=0)


def test_the_table_holds_what_is_registered_and_nothing_else() -> None:
    for table, rows in ROWS.items():
        cells = matrix.read()[table]
        assert [*cells] == rows
        assert all([*row] == OBJECTIVES for row in cells.values())


TOYS: list[tuple[Modality.Config, Objective.Config]] = [
    (MODALITIES["image"], toys.ManyMasks.Config()),
    (MODALITIES["image"], toys.InnerTargets.Config()),
    (toys.Symbols.Config(), toys.OtherLength.Config()),
    (MODALITIES["tabular"], toys.MaskIsTarget.Config()),
    *(
        (MODALITIES["tabular"], toys.OddTeacher.Config(rule=r))
        for r in ("frozen", "previous_epoch", "stage_copy")
    ),
]


def toy_recipe(modality: Modality.Config, objective: Objective.Config) -> Recipe:
    (stream,) = modality.build().fit().streams()
    pooling = "last" if stream == "symbols" else "cls"
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling=pooling)
    return Recipe(
        modality=modality, encoders={stream: encoder}, objective=objective, batch_size=BATCH, steps=STEPS,
        parallel=Parallel(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("modality", "objective"), TOYS, ids=[f"{type(o).__qualname__}-{getattr(o, 'rule', '')}" for _, o in TOYS]
)
def test_the_contract_carries_what_later_methods_need(modality: Any, objective: Any) -> None:
    learner, losses, _ = run(toy_recipe(modality, objective))
    assert len(set(losses)) == STEPS, "the loss does not move"
    trainable = [p for p in learner.encoders.parameters() if p.requires_grad]
    assert trainable


@pytest.mark.parametrize("rule", ["frozen", "previous_epoch", "stage_copy"])
def test_odd_teachers_move_only_when_their_rule_says(rule: Any) -> None:
    recipe = toy_recipe(MODALITIES["tabular"], toys.OddTeacher.Config(rule=rule))
    start = build(recipe, torch.device("cpu")).learner
    learner, _, _ = run(recipe)
    before, after = (weights(x.objective.get_submodule("teacher")) for x in (start, learner))
    assert torch.equal(before, after) == (rule == "frozen")


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_pair_without_meaning_is_refused_in_a_sentence() -> None:
    recipe = toy_recipe(toys.Symbols.Config(), toys.ManyMasks.Config())
    assert meaningful(recipe) == (
        "ManyMasks asks Symbols for mask views, which it does not provide: "
        "switch its masked part off or take another objective"
    )
