"""Padding moves nothing: every registered objective on every modality that pads.

What stands at padded places, in what an encoder reads, in targets and in coordinates, changes no loss, no gradient, no
figure and no slow state.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from multissl import registry
from multissl.contract.data import Batch
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.engine.learner import Learner
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.tabular.adapter import Tabular
from multissl.verify.small import shrunk
from tests.helpers import paired_data, rows
from tests.helpers.rows import Careless, differences
from tests.test_exact import MODALITIES, VARIANTS

NAMES = ("text", "sounds", "hidden_cells", "runs_of_cells", "two_sounds")
OPTIONS = {"vime": [{"corrupt": 0.0}]}
"""Options beside those of test_exact under which an objective meets padding."""
NEVER = ("infilling",)
"""Objectives that no padding reaches: spans are taken out of full rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of two classes, a tenth to four tenths of a second long, where views last a third."""
    root = tmp_path_factory.mktemp("short")
    for number in range(24):
        place = root / str(number % 2)
        place.mkdir(exist_ok=True)
        (place / f"{number}.wav").write_bytes(paired_data.tone(number % 7, 0.1 + 0.013 * number))
    words = ["a", "quick", "brown", "fox", "jumps", "over", "some", "lazy", "dogs", "and", "back", "again"]
    root.with_suffix(".txt").write_text("\n".join(" ".join(words[: 1 + n % 12]) for n in range(60)))
    return root


@functools.cache
def modality(name: str, folder: Path) -> Modality:
    sounds = Audio.Config(
        data=str(folder), short="pad", mean=-8.0, std=4.0, **paired_data.SMALL[Audio.Config]
    )
    made: dict[str, Modality.Config] = {
        "text": MODALITIES["padded"].replace(data=str(folder.with_suffix(".txt"))),
        "sounds": sounds,
        "hidden_cells": Tabular.Config(corrupt_by="hide", corruption=(0.6,)),
        "runs_of_cells": Tabular.Config(corrupt_by="subset", corruption=(0.6,)),
        "two_sounds": Paired.Config(members={"left": sounds, "right": sounds}, join="label"),
    }
    return made[name].build().fit()


def made(name: str, folder: Path, objective: Objective.Config) -> tuple[Learner, Batch]:
    """A learner and a batch with padding; a ValueError says why the pair has no meaning."""
    learner, batch = rows.learner_and_batch(modality(name, folder), objective)
    if all(v.valid is None or v.valid.all() for v in batch):
        raise ValueError(f"{name} has no padding for it")
    return learner, batch


def violations(name: str, folder: Path, objective: Objective.Config) -> list[str]:
    """What padding moves."""
    learner, batch = made(name, folder, objective)
    other = rows.other_padding(batch, modality(name, folder).streams())
    return differences(rows.step(learner, other), rows.step(learner, batch))


@pytest.mark.parametrize("objective", registry.names("objectives"))
def test_padding_moves_nothing(objective: str, folder: Path) -> None:
    config = shrunk(registry.resolve(objective, "objectives").Config())
    options = [{}, *VARIANTS.get(objective, []), *OPTIONS.get(objective, [])]
    wrong, reasons = {}, {}
    for name in NAMES:
        for changes in options:
            try:
                wrong[name, str(changes)] = violations(name, folder, config.replace(**changes))
            except ValueError as error:
                reasons[name] = str(error)
    assert not {case: lines for case, lines in wrong.items() if lines}
    assert bool(wrong) != (objective in NEVER), reasons


@pytest.mark.parametrize("name", [n for n in NAMES if n != "two_sounds"])
def test_padding_that_is_read_is_noticed(name: str, folder: Path) -> None:
    assert violations(name, folder, Careless.Config())
