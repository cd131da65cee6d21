"""Checkpoints of the format before are read without running code of theirs, and rewritten so that none is ever lost."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import files
from multissl.engine import checkpoint, pickled
from multissl.engine.checkpoint import Save
from multissl.files import Damaged
from tests.engine.test_checkpoint import made, trained
from tests.faults import injection
from tests.faults.injection import Writes
from tests.helpers.pickled import as_before, equal, nested, write_pickled
from tests.helpers.ranks import run_ranks

NAMES = {"rank_00000.safetensors", "state.json", "meta.json"}
"""The files of a checkpoint of the present format."""


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(params=["adamw", "momentum", "sgd"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A pickled checkpoint of step 3, whose late layer had no gradient yet, and the state that it holds."""
    module, optimizer = made(request.param)
    trained(module, optimizer, range(3))
    folder = checkpoint.save(tmp_path, 3, module, optimizer, Save(), modality={"mean": [1.5]})
    state = nested(folder)
    as_before(folder)
    assert not NAMES & {p.name for p in folder.iterdir()} - {"meta.json"}
    return folder, state


def test_a_rewritten_checkpoint_holds_what_the_pickled_one_held(both: tuple[Path, dict[str, Any]]) -> None:
    folder, state = both
    assert pickled.pending(folder.parent) == [folder]
    pickled.rewrite(folder, folder, {"mean": [1.5]})
    assert {p.name for p in folder.iterdir()} == NAMES
    assert checkpoint.check(folder)["step"] == 3
    assert checkpoint.read_modality(folder) == {"mean": [1.5]}
    assert equal(nested(folder), state)
    assert not pickled.pending(folder.parent)


def test_a_copy_elsewhere_leaves_the_pickled_one(both: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, state = both
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    pickled.rewrite(folder, tmp_path / "elsewhere" / folder.name, {})
    assert equal(nested(tmp_path / "elsewhere" / folder.name), state)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def failing(
    folder: Path, point: int, how: injection.How, monkeypatch: pytest.MonkeyPatch
) -> tuple[type[BaseException] | None, int]:
    """Rewrite a checkpoint whose write fails; return what was raised, and the number of writes."""

    def die(*_: object) -> None:
        raise Killed

    writes = Writes(point, how)
    with monkeypatch.context() as patch:
        for name in injection.WRITES:  # so that they are put back
            patch.setattr(files, name, vars(files)[name])
        patch.setattr(os, "kill", die)
        writes.install()
        try:
            pickled.rewrite(folder, folder, {})
        except (Killed, OSError) as error:
            return type(error), len(writes.names)
    return None, len(writes.names)


@pytest.mark.parametrize(
    "how", ["die", *(pytest.param(h, marks=pytest.mark.slow) for h in ("full", "error"))]
)
def test_whatever_write_fails_the_checkpoint_is_whole_and_the_next_start_ends_it(
    tmp_path: Path, how: injection.How, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, optimizer = made("adamw")
    trained(module, optimizer, range(3))
    whole = checkpoint.save(tmp_path / "whole", 3, module, optimizer, Save())
    state = nested(whole)
    as_before(whole)
    place, raised = tmp_path / "run" / whole.name, 0
    shutil.copytree(whole, place)
    error, count = failing(place, 0, how, monkeypatch)
    assert error is None
    assert count > 10
    for point in range(1, count + 1):
        shutil.rmtree(place)
        shutil.copytree(whole, place)
        error, _ = failing(place, point, how, monkeypatch)
        raised += error is not None
        if '"format": 2' in (place / "meta.json").read_text():  # as it was, beside what is not whole yet
            assert pickled.read(place).keys() > {"optimizer/groups"}
        else:
            checkpoint.check(place)
        for each in pickled.pending(place.parent):
            pickled.rewrite(each, each, {})
        checkpoint.check(place)
        assert equal(nested(place), state)
        assert {p.name for p in place.iterdir()} == NAMES
    assert raised > count // 3


CANARY = "canary"


class Trap:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def hostile_outline(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Trap()))


def hostile_entry(folder: Path) -> None:
    shutil.rmtree(folder)
    write_pickled(folder, {"learner": {"weight": Trap()}}, 3)


def path_outside(folder: Path) -> None:
    outline = (folder / ".metadata").read_bytes()
    assert b"__0_0.distcp" in outline
    (folder / ".metadata").write_bytes(outline.replace(b"__0_0.distcp", b"../_0.distcp"))


def cut_short(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_outline(folder: Path) -> None:
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-9])


def other_step(folder: Path) -> None:
    (folder / "meta.json").write_text('{"format": 2, "step": 4}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (hostile_outline, r"posix.mkdir, which no checkpoint names"),
        (hostile_entry, "is damaged"),
        (path_outside, r"'\.\./_0.distcp', which is no file"),
        (cut_short, "is damaged"),
        (cut_outline, "is damaged"),
        (other_step, "checkpoint of step 4"),
    ],
)
def test_what_is_damaged_or_hostile_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, damage: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, optimizer = made("adamw")
    trained(module, optimizer, range(3))
    folder = checkpoint.save(tmp_path, 3, module, optimizer, Save())
    as_before(folder)
    damage(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(Damaged, match=rf"step_00000003 is damaged.*{message}|{message}"):
        pickled.rewrite(folder, folder, {})
    assert not (tmp_path / CANARY).exists()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def sharded(_rank: int, folder: str) -> dict[str, Tensor]:
    """Write the checkpoint of a sharded learner as the older version did on 2 ranks; return the whole learner."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from multissl.parallel.sharding import full
    from multissl.parallel.state import optimizer_state

    module, _ = made("adamw")
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    trained(module, optimizer, range(6))
    state = {"learner": module.state_dict(), "optimizer": optimizer_state(module, optimizer)}
    write_pickled(Path(folder) / "step_00000006", state, 6)
    return {n: full(t).detach().clone() for n, t in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.ranks
def test_a_checkpoint_of_shards_is_put_together(tmp_path: Path) -> None:
    """Rows of 3 on 2 ranks are uneven."""
    whole = run_ranks(2, sharded, str(tmp_path))[0]
    (folder,) = pickled.pending(tmp_path)
    assert len([*folder.glob("*.distcp")]) == 2
    pickled.rewrite(folder, folder, {})
    checkpoint.check(folder)
    module, optimizer = made("adamw")
    assert checkpoint.load(folder, module, optimizer) == 6
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
