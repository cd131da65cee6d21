"""A run of an older version whose process dies while its pickled checkpoint is rewritten: the same command goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from multissl.engine import checkpoint
from tests.faults.runs import compared, log_of, state
from tests.faults.warm import Job, Warm
from tests.helpers.pickled import as_before

WORDS = [
    "train", "rl", "--batch_size", "4", "--save.every", "2", "--save.keep_last", "2", "--log_every", "1",
    "--data.workers", "0", "--evals", "none",
]  # fmt: skip


def train(warm: Warm, folder: Path, steps: int, *words: str, point: int = 0) -> tuple[int, list[str]]:
    job = Job(
        words=[*WORDS, "--steps", str(steps), *words, "--out", str(folder)],
        log=str(log_of(folder)),
        point=point,
    )
    ended = warm.run(job)
    return ended.code, ended.writes


@pytest.mark.slow
def test_it_ends_as_an_uninterrupted_run_wherever_it_dies(warm: Warm, tmp_path: Path) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    assert train(warm, whole, 4)[0] == 0
    shutil.copytree(whole, old)
    shutil.rmtree(old / "checkpoints" / "step_00000004")
    (old / "summary.json").unlink()
    as_before(old / "checkpoints" / "step_00000002")
    shutil.copytree(old, tmp_path / "known")
    log_of(tmp_path / "known").write_text("")
    code, writes = train(warm, tmp_path / "known", 4, "--trust")
    assert code == 0
    first = next(i for i, w in enumerate(writes) if w.endswith("rank_00000.safetensors.tmp"))
    last = next(i for i, w in enumerate(writes) if w.endswith(".metadata"))
    assert first < last
    # the rewritten one knows no record
    expected = {name: value for name, value in state(whole).items() if not name.startswith("step_00000002/")}
    for point in [*range(first + 1, last + 2, 2), last + 20]:
        run = tmp_path / f"died_{point}"
        shutil.copytree(old, run)
        assert train(warm, run, 4, "--trust", point=point)[0] == -9
        meta = json.loads((run / "checkpoints" / "step_00000002" / checkpoint.META).read_text())
        trust = ["--trust"] * (meta["format"] == 2)  # once it is rewritten nobody asks for it
        assert trust or point > first + 10
        job = Job(words=[*WORDS, "--steps", "4", *trust, "--out", str(run)], log=str(log_of(run)))
        mine = warm.run(job)
        checkpoint.check(run / "checkpoints" / "step_00000002")
        shutil.rmtree(run / "checkpoints" / "step_00000002")
        assert not compared(mine, run, expected)
