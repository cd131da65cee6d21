"""What is compared: each objective on the small modalities that it runs on, in double precision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from multissl import registry
from multissl.check import check, maskings_of
from multissl.contract.data import Batch
from multissl.contract.encoder import build_encoders
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.recipe import Recipe
from multissl.verify.small import shrunk

BATCH = 16
"""Samples of a step, over all processes."""
PICTURES = Image.Config(size=16, local_size=8, patch=4, mask_group=2)
WORDS = Text.Config(vocab=300, length=16, local_length=8, mask_group=2)
MODALITIES: dict[str, Modality.Config] = {
    "image": PICTURES,
    "pairs": Paired.Config(members={"left": PICTURES, "right": PICTURES}, join="label"),
    "text": WORDS.replace(pack=False),
    "infilled": WORDS.replace(infill=0.3),
    "tabular": Tabular.Config(),
}
"""Small forms of the default data, none of which is downloaded; the first that an objective runs on is taken."""
OPTIONS: dict[str, dict[str, Any]] = {"wmse": {"eps": 0.1}}
"""Options that a net of two blocks with drop path needs: rows without attention are equal, and have no whitening."""


class Case(NamedTuple):
    """An objective by name, on a modality."""

    objective: str
    modality: str


def cases(objectives: Sequence[str] = ()) -> tuple[list[Case], dict[str, str]]:
    """Return a case for each objective, of those named or of all, and why others run on nothing here."""
    chosen, reasons = [], {}
    for name in objectives or registry.names("objectives"):
        for modality in MODALITIES:
            try:
                make(Case(name, modality))
            except ValueError as error:
                reasons.setdefault(name, str(error))
            else:
                chosen.append(Case(name, modality))
                reasons.pop(name, None)
                break
    return chosen, reasons


@functools.cache
def fitted(name: str) -> Modality:
    """Return one of the small modalities, made once in a process."""
    return MODALITIES[name].build().fit()


def make(case: Case, chunk: int = 0, device: torch.device | str = "cpu") -> tuple[Learner, Modality]:
    """Return the learner of a case, in double precision on a device, and its modality.

    Raises a ValueError where the pair has no meaning.
    """
    torch.manual_seed(0)
    cfg = shrunk(registry.resolve(case.objective, "objectives").Config()).replace(
        **OPTIONS.get(case.objective, {})
    )
    modality = fitted(case.modality)
    learner = learner_of(cfg, MODALITIES[case.modality], modality, chunk)
    return learner.to(device), modality


def learner_of(cfg: Objective.Config, data: Modality.Config, modality: Modality, chunk: int = 0) -> Learner:
    """Return an objective on transformers of two blocks, one for each stream, in double precision.

    Raises a ValueError where it has no meaning on the modality.
    """
    specs = modality.streams()
    pooling = "last" if "causal" in cfg.maskings() else "cls"
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling=pooling, drop_path=0.3)
    recipe = Recipe(modality=data, encoders=dict.fromkeys(specs, encoder), objective=cfg, batch_size=BATCH)
    encoders = build_encoders(recipe.encoders, specs)
    objective = cfg.build(encoders, specs)
    check(recipe, modality, objective.plans())
    for stream, plan in objective.plans().items():
        encoders[stream].prepare_for(maskings_of(recipe, plan))
    return Learner(encoders, objective, chunk).double()


def doubled(batch: Batch) -> Batch:
    """Return the batch with its floats in double precision."""
    names = ("x", "target", "condition", "coords")
    return Batch(
        dataclasses.replace(
            v, **{n: t.double() for n in names if (t := getattr(v, n)) is not None and t.is_floating_point()}
        )
        for v in batch
    )
