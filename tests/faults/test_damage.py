"""One byte changed, or the end cut off, in any file of a run: it is named, or an older whole checkpoint takes over.

Never are other weights loaded without a word. Files that nothing of ours reads (the page, those of loggers) change
nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from multissl.engine import checkpoint
from multissl.engine.checkpoint import Save
from multissl.engine.display import Display
from multissl.engine.loggers.tensorboard import TensorBoard
from multissl.recipe import Recipe
from multissl.run.evaluate import judge
from multissl.run.model import load
from multissl.run.report import report
from multissl.run.train import train
from tests.helpers import stubs

STEPS, SAVED = 12, 8
UNREAD = ("README.md", "report.html", "tensorboard")
"""What people and other programs read."""


def recipe(steps: int = STEPS) -> Recipe:
    made = stubs.recipe().replace(steps=steps, log_every=2, loggers={"tensorboard": TensorBoard.Config()})
    made.save = Save(every=4, keep_last=3)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(recipe(), folder)
    judge(folder)
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


class Said(logging.Handler):
    """What was said in a `with`: by the display of a run, as a warning, or as the error that ended it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.error = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Said:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(Display, "say", lambda _self, text: self.lines.append(text))
        logging.getLogger("multissl").addHandler(self)
        return self

    def __exit__(self, kind: object, error: object, _trace: object) -> bool:
        self.patch.undo()
        logging.getLogger("multissl").removeHandler(self)
        if isinstance(error, ValueError | OSError):
            self.error = f"{type(error).__name__}: {error}"
            self.lines.append(self.error)
        return bool(self.error)

    def names(self, file: Path) -> bool:
        """Whether a line names a file."""
        return any(file.name in line for line in self.lines)


def harmless(run: Path, original: Path, file: Path) -> bool:
    """Return whether a file says what it said before: in JSON another kind of space, in a record what is cut off."""
    data, before = (run / file).read_bytes(), (original / file).read_bytes()
    records = {"metrics.jsonl": "record", "trace.bin": "trace"}
    if file.name in records:
        kept = checkpoint.read_meta(newest(original))[records[file.name]]["bytes"]
        return data[:kept] == before[:kept]
    with contextlib.suppress(ValueError):
        return file.suffix == ".json" and json.loads(data) == json.loads(before)
    return False


def newest(run: Path) -> Path:
    return checkpoint.find(run / "checkpoints")[-1]


def problems_of_finished(finished: Path, chosen: Cases, folder: Path) -> list[str]:
    """Return where a finished run with one damaged file is read as if nothing were."""
    whole, longer = weights(finished), references(finished, folder, STEPS + 4)
    problems = []
    for file, how, seed in chosen:
        run = folder / str(seed)
        shutil.copytree(finished, run)
        done = damage(run / file, random.Random(seed), how)
        if file.parts[0] == "checkpoints":
            problem = resumed(run, finished, file, longer, STEPS + 4)
        elif file.parts[0] in UNREAD:
            problem = "" if same(weights(run), whole) else "other weights"
        else:
            problem = read(run, finished, file, whole)
        problems += [f"{done}: {problem}"] * bool(problem)
        shutil.rmtree(run)
    return problems


def read(run: Path, original: Path, file: Path, whole: dict[str, Tensor]) -> str:
    """Read a damaged run in every way; return what is wrong with what is said of it."""
    if harmless(run, original, file):
        return ""
    calls: tuple[Callable[[Path], object], ...] = (load, judge, report)
    for call in calls:
        with Said() as said:
            call(run)
        if not said.error or not said.names(file):
            return f"{call.__name__}: not named: {said.lines}"
    with Said() as said:
        train(recipe(), run)
    if not said.names(file):
        return f"train: not named: {said.lines}"
    return "" if said.error or same(weights(run), whole) else "other weights"


def references(start: Path, folder: Path, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a run that goes on to a step from its newest checkpoint, and from the one before."""
    both = []
    for name in ("from the newest", "from the one before"):
        run = folder / name
        shutil.copytree(start, run)
        if both:
            shutil.rmtree(newest(run))
        train(recipe(steps), run)
        both.append(weights(run))
    return both[0], both[1]


def resumed(
    run: Path, original: Path, file: Path, whole: tuple[dict[str, Tensor], dict[str, Tensor]], steps: int
) -> str:
    """Give a damaged run its command; return what is wrong with how it ends."""
    is_newest = newest(original).name in file.parts
    unread = file.parts[0] in (*UNREAD, "checkpoints") and not is_newest
    ignored = unread or harmless(run, original, file)
    with Said() as said:
        train(recipe(steps), run)
    if said.error:
        return "" if said.names(file) else f"not named: {said.lines}"
    if not ignored and not said.names(file):
        return f"went on as if nothing were: {said.lines}"
    fell_back = is_newest and not ignored
    return "" if same(weights(run), whole[fell_back]) else "other weights"


def problems_of_unfinished(unfinished: Path, chosen: Cases, folder: Path) -> list[str]:
    """Return where a run that goes on with one damaged file does so as if nothing were."""
    whole = references(unfinished, folder, STEPS)
    problems = []
    for file, how, seed in chosen:
        run = folder / str(seed)
        shutil.copytree(unfinished, run)
        done = damage(run / file, random.Random(seed), how)
        problem = resumed(run, unfinished, file, whole, STEPS)
        problems += [f"{done}: {problem}"] * bool(problem)
        shutil.rmtree(run)
    return problems


def test_damage_to_a_finished_run_is_named(finished: Path, tmp_path: Path) -> None:
    assert not problems_of_finished(finished, cases(finished, 16, 8, seed=1), tmp_path)


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
