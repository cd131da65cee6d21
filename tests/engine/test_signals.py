"""Signals that reach a run with its workers: it saves a checkpoint, and no process is left behind or hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import _utils

from multissl.contract.data import Raw, Sample
from multissl.contract.plans import Plans, ViewPlan
from multissl.engine import batches as data
from multissl.engine import checkpoint
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.random import RowRandom
from multissl.run.folder import RunFolder
from tests.helpers.stubs import Points

ROOT = Path(__file__).parents[2]
TRAIN = [
    "-m",
    "multissl",
    "train",
    f"{ROOT / 'tests' / 'helpers' / 'stubs.py'}:recipe",
    "--data.workers",
    "2",
]
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COUNT = 20
"""Steps of a sequence of batches."""
PAUSE = 13
"""The step in whose middle the signals arrive."""


def until(ready: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for a condition; whether it came about in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Generator[subprocess.Popen, None, None]:
    """A Python process in a session of its own, whose processes all end with the test."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def interrupt(
    command: list[str], folder: Path, send: Callable[[int, int], None], number: signal.Signals
) -> tuple[int, str]:
    """Send a signal to a training that stands in the middle of a step, which then goes on; exit code and lines."""
    marker, log = folder / "paused", folder / "log"
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE_AT": f"{PAUSE}:{marker}"}}
    with log.open("w") as file, started([*command, "--out", str(folder)], stderr=file, **options) as process:
        assert until(lambda: marker.exists() or process.poll() is not None)
        assert marker.exists(), log.read_text()
        send(process.pid, number)
        until(lambda: "saving a checkpoint" in log.read_text() or process.poll() is not None)
        marker.unlink()
        return process.wait(60), log.read_text()


def resume(command: list[str], folder: Path) -> str:
    """Repeat a command to its end; its lines."""
    done = subprocess.run(
        [sys.executable, *command, "--out", str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    code, lines = interrupt(TRAIN, tmp_path, os.killpg, number)
    assert f"{number.name}: saving a checkpoint after this step" in lines
    assert (code, checkpoint.newest_step(RunFolder(tmp_path).checkpoints)) == (128 + number, PAUSE + 1), lines
    assert f"resuming at step {PAUSE + 1} of 40" in resume(TRAIN, tmp_path)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_signal_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    _, lines = interrupt([*RANKS, *TRAIN], tmp_path, os.kill, signal.SIGTERM)
    step = checkpoint.newest_step(RunFolder(tmp_path).checkpoints)
    # ranks tell each other of it in a step, and read what was told while the next one is under way
    assert step in (PAUSE + 1, PAUSE + 2), lines
    assert f"resuming at step {step} of 40" in resume([*RANKS, *TRAIN], tmp_path)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_a_checkpoint(tmp_path: Path) -> None:
    marker = tmp_path / "paused"
    ours, theirs = os.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE_AT": f"{PAUSE}:{marker}", "TERM": "xterm"}
    command = [sys.executable, *TRAIN, "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, preexec_fn=lambda: os.login_tty(theirs), pass_fds=[theirs]
    )
    os.close(theirs)

    def paused() -> bool:
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 4096)  # a terminal that nobody reads stops whoever writes
        return marker.exists()

    try:
        assert until(paused)
        workers = children(process.pid)
        assert len(workers) == 2
        os.close(ours)
        marker.unlink()
        process.wait(60)
    finally:
        process.kill()
    assert checkpoint.newest_step(RunFolder(tmp_path).checkpoints) == PAUSE + 1
    assert not any(map(alive, workers))


class Slow(Points):
    """Points of which each worker hands out one batch and no other."""

    batches, stuck = 0, multiprocessing.Semaphore(0)

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        self.batches += 1
        if self.batches > 1:
            self.stuck.release()
            time.sleep(1000)
        return super().collate(samples, plans, rng)


class Crumbs(Points):
    """Points in so many tensors that a worker soon waits for somebody to take them."""

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        raw = super().collate(samples, plans, rng)
        return raw | {f"crumb{i}": torch.zeros(1) for i in range(1000)}


def first_batch(kind: type[Points]) -> Generator[Any, None, None]:
    """The batches of two workers after the first, which is taken."""
    modality: Any = kind(Points.Config())
    steps = StepBatches(modality, {"points": ViewPlan(num_global=2)}, 16, 0, 0, 1, final=False)
    batches = batches_of(steps, 0, COUNT, Data(workers=2), 1, torch.device("cpu"))
    next(batches)
    return batches


@pytest.mark.parametrize("number", data.ENDING)
def test_workers_go_on_whatever_asks_a_run_to_end(number: signal.Signals) -> None:
    batches = first_batch(Points)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)  # type: ignore[arg-type]
    assert len(list(batches)) == COUNT - 1


def ended_before_it_began(worker: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    begin_worker(worker)


begin_worker = data._begin_worker


def test_workers_go_on_even_where_a_signal_comes_while_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_begin_worker", ended_before_it_began)
    assert len(list(first_batch(Points))) == COUNT - 1


def test_a_worker_that_is_stuck_ends_with_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # seconds that torch waits for each worker
    batches = first_batch(Slow)
    workers = [p for p in multiprocessing.active_children() if p.daemon]
    assert len(workers) == 2
    assert all(Slow.stuck.acquire(timeout=30) for _ in workers)
    batches.close()
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL


AT_EXIT = """
from tests.engine.test_signals import Points, first_batch
batches = first_batch(Points)
print("taken", flush=True)
"""


def test_a_program_that_leaves_batches_behind_comes_to_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_EXIT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "taken\n", "")


KILLED = """
import time
from tests.engine.test_signals import Crumbs, first_batch
batches = first_batch(Crumbs)
print("taken", flush=True)
time.sleep(100)
"""


def test_workers_end_with_a_process_that_is_killed() -> None:
    with started(["-W", "ignore", "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "taken\n"
        workers = children(process.pid)
        assert len(workers) == 2
        time.sleep(0.5)  # in which they fill what nobody takes
        process.kill()
        assert until(lambda: not any(map(alive, workers)), 20)
