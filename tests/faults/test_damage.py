"""One byte changed, or the end cut off, in any file of a run: it is named, or an older whole checkpoint takes over.

Never are other weights loaded without a word. Files that nothing of ours reads (the page, those of loggers) change
nothing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from multissl.engine.checkpoint import Save
from multissl.engine.loggers.tensorboard import TensorBoard
from multissl.recipe import Recipe
from multissl.run.evaluate import judge
from multissl.run.folder import RunFolder
from multissl.run.model import load
from multissl.run.report import report
from multissl.run.train import train
from tests.helpers import stubs

STEPS, SAVED = 12, 8
UNREAD = ("report.html", "tensorboard")
"""What people and other programs read."""
WRITTEN_ANEW = ("recipe.json",)
"""What a command that goes on compares with its own options, and does not depend on."""


def recipe(steps: int = STEPS) -> Recipe:
    made = stubs.recipe().replace(steps=steps, log_every=2, loggers={"tensorboard": TensorBoard.Config()})
    made.save = Save(every=4, keep_last=3)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(recipe(), folder)
    return folder


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints that ended at a later step."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"

    def end(step: int) -> None:
        if step == SAVED + 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stubs, "pause", end)
        with pytest.raises(Killed):
            train(recipe(), folder)
    return folder


def files_of(folder: Path) -> list[Path]:
    """Return the places of a run's files in it."""
    return sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size
    )


def damage(path: Path, rng: random.Random, how: str) -> str:
    """Change one byte of a file, or cut it off somewhere; return what was done."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    if how == "cut":
        path.write_bytes(data[:place])
        return f"{path.name} cut off after byte {place} of {len(data)}"
    by = rng.randrange(1, 256)
    data[place] ^= by
    path.write_bytes(data)
    return f"byte {place} of {path.name} changed by {by:#x}"


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load(folder).encoders.state_dict())


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


Cases = list[tuple[Path, str, int]]


def cases(folder: Path, flips: int, cuts: int, seed: int) -> Cases:
    """Return which files are damaged how, and the seed of where: each file about equally often."""
    files = files_of(folder)
    random.Random(seed).shuffle(files)
    hows = ["flip"] * flips + ["cut"] * cuts
    return [(files[place % len(files)], how, seed * 1000 + place) for place, how in enumerate(hows)]


def refusal(action: Callable[[], object]) -> str:
    """Return the error that an action ends with, "" where it does not."""
    try:
        action()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def problems_of_finished(finished: Path, chosen: Cases, folder: Path) -> list[str]:
    """Return where a finished run with one damaged file is read as if nothing were."""
    whole, longer = weights(finished), dict[str, Tensor]()
    problems = []
    for file, how, seed in chosen:
        run = folder / str(seed)
        shutil.copytree(finished, run)
        done = damage(run / file, random.Random(seed), how)
        if file.parts[0] == "checkpoints":
            longer = longer or weights_of(finished, folder / "longer", STEPS + 4)
            problem = resumed(run, file, longer, STEPS + 4)
        elif file.parts[0] in UNREAD:
            problem = "" if same(weights(run), whole) else "other weights"
        else:
            calls = (load, judge, report, lambda run: train(recipe(), run))
            said = [refusal(lambda call=call: call(run)) for call in calls]
            silent = [text for text in said if file.name not in text]
            repaired = not said[-1] and silent == [""] and same(weights(run), whole)
            problem = "" if not silent or repaired else f"not named: {said}"
        problems += [f"{done}: {problem}"] * bool(problem)
        shutil.rmtree(run)
    return problems


def weights_of(start: Path, folder: Path, steps: int) -> dict[str, Tensor]:
    """Return the weights of a whole run that goes on to a step."""
    shutil.copytree(start, folder)
    train(recipe(steps), folder)
    return weights(folder)


def resumed(run: Path, file: Path, whole: dict[str, Tensor], steps: int) -> str:
    """Give a damaged run its command; return what is wrong with how it ends."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multissl.engine.display.Display.say", lambda _self, text: said.append(text))
        refused = refusal(lambda: train(recipe(steps), run))
    named = any(file.name in text and "damaged" in text for text in said)
    if refused:
        return "" if file.name in refused else f"not named: {refused}"
    if not same(weights(run), whole):
        return "other weights"
    read = file.parts[0] not in UNREAD and file.name not in WRITTEN_ANEW
    return "" if named or not read or not needed(file) else f"went on as if nothing were: {said}"


def needed(file: Path) -> bool:
    """Return whether a resume reads a file: of checkpoints the newest, or the next where its name is no more."""
    return file.parts[0] != "checkpoints"


def problems_of_unfinished(unfinished: Path, chosen: Cases, folder: Path) -> list[str]:
    """Return where a run that goes on with one damaged file does so as if nothing were."""
    whole = weights_of(unfinished, folder / "whole", STEPS)
    problems = []
    for file, how, seed in chosen:
        run = folder / str(seed)
        shutil.copytree(unfinished, run)
        done = damage(run / file, random.Random(seed), how)
        problem = resumed(run, file, whole, STEPS)
        problems += [f"{done}: {problem}"] * bool(problem)
        shutil.rmtree(run)
    return problems


def test_damage_to_a_finished_run_is_named(finished: Path, tmp_path: Path) -> None:
    assert not problems_of_finished(finished, cases(finished, 24, 12, seed=1), tmp_path)


def test_damage_to_a_run_that_goes_on_is_named_or_an_older_checkpoint_takes_over(
    unfinished: Path, tmp_path: Path
) -> None:
    assert not problems_of_unfinished(unfinished, cases(unfinished, 14, 7, seed=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_damage_anywhere(finished: Path, unfinished: Path, seed: int, tmp_path: Path) -> None:
    of_finished, going = cases(finished, 100, 20, seed), cases(unfinished, 100, 20, seed)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert not problems_of_finished(finished, of_finished, tmp_path / "one")
    assert not problems_of_unfinished(unfinished, going, tmp_path / "two")
