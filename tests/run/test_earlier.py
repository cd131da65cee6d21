"""A run whose checkpoints an older version pickled goes on, and is read, once with trust and from then on without."""

from __future__ import annotations

from pathlib import Path

import pytest

from multissl import cli
from multissl.engine import checkpoint, pickled
from multissl.run import train
from multissl.run.folder import RunFolder
from multissl.run.model import load
from tests.helpers.pickled import as_before
from tests.helpers.ranks import run_ranks
from tests.run.short import equal, recipe, weights


@pytest.fixture
def old(going: Path, tmp_path: Path) -> Path:
    """A run as an older version left it at step 20: pickled checkpoints, and none of the files that came later."""
    run = RunFolder(going.rename(tmp_path / "old"))
    for path in (run.sessions, run.data, run.trace, run.readme):
        path.unlink()
    for each in checkpoint.find(run.checkpoints):
        as_before(each)
    return run.path


def test_without_trust_it_is_refused_with_the_way_out(old: Path) -> None:
    for action in (lambda: train.train(recipe(30), old), lambda: load(old), lambda: load(f"{old}@10")):
        with pytest.raises(
            ValueError, match=r"step_000000.0 has checkpoint format 2: it is pickled.*--trust"
        ):
            action()
    assert len(pickled.pending(RunFolder(old).checkpoints)) == 2


def test_with_trust_it_ends_as_an_uninterrupted_run_and_wants_no_more_trust(
    old: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in the middle: before the first step
        patch.setattr(train, "describe", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(recipe(30), old, trust=True)
    said = capfd.readouterr().err
    assert "the checkpoint of step 20 was pickled and is written anew: it wants no --trust any more" in said
    assert not pickled.pending(RunFolder(old).checkpoints)
    train.train(recipe(30), old)
    assert "resuming at step 20 of 30" in capfd.readouterr().err
    assert (old / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    assert equal(weights(f"{old}@20"), weights(f"{whole}@20"))


def test_a_run_that_was_killed_after_its_last_step_finishes(old: Path, whole: Path) -> None:
    for _ in range(2):
        train.train(recipe(20), old, trust=True)
    assert load(old).step == 20
    assert RunFolder(old).finish()["record"] is None
    assert equal(weights(old), weights(f"{whole}@20"))


def test_reading_it_with_trust_writes_it_anew(
    old: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert equal(dict(load(f"{old}@10", trust=True).encoders.state_dict()), weights(f"{whole}@10"))
    assert "was pickled and is written anew" in capfd.readouterr().err
    assert equal(weights(old), weights(f"{whole}@20"))
    assert cli.main(["encode", str(old), "--out", str(old.parent / "features.csv")]) == 0


def test_where_it_cannot_be_written_it_is_read_as_it_is(
    old: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite = pickled.rewrite

    def refused(folder: Path, target: Path, modality: dict[str, object]) -> None:
        if target == folder:
            raise PermissionError(13, "Permission denied")
        rewrite(folder, target, modality)

    monkeypatch.setattr(pickled, "rewrite", refused)
    before = sorted(p.relative_to(old) for p in old.rglob("*"))
    for _ in range(2):
        assert equal(dict(load(old, trust=True).encoders.state_dict()), weights(f"{whole}@20"))
        assert "cannot be written anew (Permission denied): it is read as it is" in capfd.readouterr().err
    assert sorted(p.relative_to(old) for p in old.rglob("*")) == before


def test_a_damaged_one_is_set_aside_where_there_is_another(
    old: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = next((old / "checkpoints" / "step_00000020").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])
    train.train(recipe(30), old, trust=True)
    said = capfd.readouterr().err
    assert "another checkpoint takes its place, the damaged one is now damaged_step_00000020" in said
    assert "resuming at step 10 of 30" in said


def on_ranks(_rank: int, folder: str) -> None:
    train.train(recipe(30), folder, trust=True)


@pytest.mark.slow
@pytest.mark.ranks
def test_on_ranks_the_first_one_writes_it_anew(old: Path, whole: Path) -> None:
    run_ranks(2, on_ranks, str(old))
    assert equal(weights(f"{old}@20"), weights(f"{whole}@20"))
    assert load(old).step == 30
