"""The views of a seed are those of before: every modality, under every option and every plan.

A run that is resumed with a later version, or repeated, must see what it saw; and what changes a view unnoticed changes
what is learned. A new modality joins by being registered; see tests/helpers/known.py for how numbers are written down.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multissl import registry
from multissl.contract.abilities import HasText
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


MORE: dict[str, list[dict[str, Any]]] = {
    "image": [
        {"mask": "random", "mask_patch": 8}, {"channels": 1}, {"measure": True, "flip": 1.0},
        {"mask_reference": True, "mask_smallest": 2}, {"patch": 2},
    ],
    "video": [
        {"frames": 8, "union": 2, "union_time": (0.25, 0.75), "mask": "block"},
        {"frames": 8, "union": 3, "context_time": 0.5, "mask": "block"},
        {"frames": 8, "union": 2, "union_time": (0.5, 0.5), "context_keep": 0.5, "mask": "block"},
        {"frames": 8, "local_frames": 4, "tubelet": 4, "clips": "apart"}, {"stride": 2, "mask": "block"},
        {"seconds": 0.5, "flip": 0.5}, {"clean": "frame", "clean_zoom": 1.2, "tubelet": 1},
    ],
    "audio": [
        {"stretch": (0.7, 1.4), "dynamics": 3.0}, {"equalize": 6.0, "mixup": 0.4, "roll": 1.0},
        {"stride": (4, 4), "patch": (8, 8)}, {"frames": 128, "short": "repeat"}, {"frames": 128, "short": "fit"},
        {"frames": 128}, {"trim": 20.0, "center": True, "spans": 3}, {"mask": "time", "mels": 16}, {"rate": 8000},
    ],
    "rl": [
        {"stack": 1, "channels": 3}, {"stack": 4, "gap": 2, "burst": 4, "pace": 2}, {"actions": False, "mask": "block"},
        {"subtract": "episode", "intensity": 0.2}, {"shift": 0, "shift_chance": 0.5}, {"frame": 40, "size": 24},
    ],
    "text": [
        {"pack": False, "mask": "span", "crop": (0.3, 0.7)}, {"pack": False, "mask": "word", "local_length": 5},
        {"span_words": 2, "span_p": 0.4}, {"infill": 0.4}, {"replacement": (0.3, 0.5)}, {"lower": True},
    ],
    "tabular": [
        {"corrupt_by": "subset", "subset_noise": 0.3}, {"corruption": (0.9, 0.3)}, {"corrupt_by": "donor", "rare": 9},
        {"corrupt_by": "hide", "corruption": (0.5, 0.5)}, {"max_levels": 3, "local_columns": 0.3},
    ],
    "paired": [{"join": "row"}],
}  # fmt: skip
"""Options that only matter together."""


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
    together = [(str(options), made.replace(**options)) for options in MORE.get(name, [])]
    for change, cfg in [("as it is", made), *turned(made, LEAVE.get(name, ())), *together]:
        modality: Modality | None = None
        for asked, plan in plans():
            try:
                modality = modality or cfg.build().fit()
                every[f"{change}, {asked}"] = views(modality, plan)
                if isinstance(modality, HasText) and asked == "few views":
                    every[f"{change}, probes"] = probes(modality)
            except (ValueError, NotImplementedError):
                continue
    return every


def probes(modality: HasText) -> Numbers:
    """Return the numbers of what is asked of a model of language."""
    words, running = modality.hidden_words("val", 5), modality.running("val", 3)
    tensors = {f"word {n}": torch.from_numpy(paid) for n, paid in words.nats.items()}
    for name, some in {"words": words.views, "running": running.views}.items():
        tensors |= {f"{name} {i} {n}": t for i, v in enumerate(some) for n, t in by_name(v).items()}
    known = [running.documents, running.symbols, running.characters, running.baseline]
    return numbers_of(tensors | {"running": torch.tensor(known, dtype=torch.float64)})


@pytest.mark.parametrize("name", registry.names("modalities"))
def test_the_views_of_a_seed_are_those_of_before(name: str, texts: str) -> None:
    check_known(f"views_{name}", functools.partial(cases, name, texts), LIMIT)
