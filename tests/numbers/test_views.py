"""The views of a seed are those of before: every modality, under every option and every plan.

A run that is resumed with a later version, or repeated, must see what it saw; and what changes a view unnoticed changes
what is learned. A new modality joins by being registered; see tests/helpers/known.py for how numbers are written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multissl import registry
from multissl.contract.modality import Modality
from multissl.contract.plans import ViewPlan
from multissl.engine.batches import StepBatches
from tests.helpers.known import Cases, Numbers, check_known, numbers_of
from tests.helpers.turned import turned
from tests.modalities.test_contract import by_name
from tests.test_grid import MODALITIES

BATCH, STEP = 8, 1
LIMIT = 5e-4
"""Share of its size by which a number may differ: on another processor a value may round to another byte."""
WORDS = (
    "a",
    "frog",
    "sees",
    "two",
    "red",
    "boats",
    "and",
    "one",
    "old",
    "king",
    "of",
    "the",
    "north",
    "takes",
    "blue",
    "paint",
)
LEAVE: dict[str, tuple[str, ...]] = {
    "text": ("tokenizer",),
    "rl": ("background", "seed"),
}
"""Options whose other values change the data that is read."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_folder(tmp_path_factory.mktemp("texts"))


def text_folder(folder: Path) -> str:
    """Write short texts into a folder and return it; the built-in ones are those of the Python at hand."""
    for number in range(60):
        places = [number * 7 + place * place * 3 + place for place in range(5 + number % 23)]
        (folder / f"{number:02}.txt").write_text(" ".join(WORDS[p % len(WORDS)] for p in places) + ".")
    return str(folder)


def config(name: str, texts: str) -> Modality.Config:
    made: Any = MODALITIES.get(name) or registry.resolve(name, "modalities").Config()
    if name == "paired":
        return made.replace(members={"left": MODALITIES["image"], "right": MODALITIES["image"]}, join="label")
    return made.replace(data=texts) if name == "text" else made


def plans() -> Iterator[tuple[str, ViewPlan]]:
    """Plans that ask for everything there is; each modality has those it provides."""
    all_views = ViewPlan(num_clean=1, num_global=2, num_local=2)
    yield "masks", replace(all_views, mask_ratio=(0.1, 0.5), mask_share=0.5, target=True, coords=True)
    yield "views", replace(all_views, coords=True)
    yield "few views", ViewPlan(num_global=1)
    yield "target", ViewPlan(num_global=2, mask_ratio=(0.5, 0.5), target=True)
    yield "no coords", replace(all_views, mask_ratio=(0.5, 0.5), target=True)
    yield "many masks", ViewPlan(num_global=2, num_masks=3, mask_ratio=(0.2, 0.4))
    yield "corrupt", ViewPlan(num_global=2, mask_ratio=(0.2, 0.4), target=True, corrupt=True)
    yield (
        "contexts",
        ViewPlan(
            num_global=1, num_masks=2, mask_ratio=(0.15, 0.2), context_ratio=(0.6, 0.9), target=True,
        ),
    )  # fmt: skip
    yield (
        "two contexts",
        ViewPlan(
            num_global=2, num_masks=2, num_contexts=2, mask_ratio=(0.15, 0.2), context_ratio=(0.85, 1.0),
            target_aspect=(0.5, 2.0),
        ),
    )  # fmt: skip


def views(modality: Modality, plan: ViewPlan) -> Numbers:
    """Return the numbers of the views of a step; a ValueError says why there are none."""
    steps = StepBatches(modality, dict.fromkeys(modality.streams(), plan), BATCH, 5, 0, 1, final=False)
    raw, skipped = steps[STEP]
    assert not skipped
    batch = steps.views(raw, STEP)
    return {
        f"{v.stream} {v.role} {name}": numbers
        for v in batch
        for name, numbers in numbers_of(by_name(v)).items()
    }


def cases(name: str, texts: str) -> Cases:
    made = config(name, texts)
    every: Cases = {}
    for change, cfg in [("as it is", made), *turned(made, LEAVE.get(name, ()))]:
        modality: Modality | None = None
        for asked, plan in plans():
            try:
                modality = modality or cfg.build().fit()
                every[f"{change}, {asked}"] = views(modality, plan)
            except (ValueError, NotImplementedError):
                continue
    return every


@pytest.mark.parametrize("name", registry.names("modalities"))
def test_the_views_of_a_seed_are_those_of_before(name: str, texts: str) -> None:
    check_known(f"views_{name}", cases(name, texts), LIMIT)
