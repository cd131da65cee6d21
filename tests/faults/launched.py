"""Trainings on two ranks that torchrun starts, which signals reach at some time after their first line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.runs import log_of
from tests.faults.warm import LIMIT, ROOT, Ended

# a line for every step: one over several is a mean of those since the start that wrote it
WORDS = [
    "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "multissl", "train",
    str(ROOT / "tests" / "helpers" / "stubs.py") + ":recipe",
    "--steps", "300", "--save.every", "30", "--log_every", "1",
]  # fmt: skip


def launch(folder: Path, number: int = 0, after: float = 0.0) -> tuple[Ended, float]:
    """Run a training on two ranks; return how it ended, and its seconds from the first line of its record on.

    `number` is a signal that comes `after` seconds from then: SIGKILL to every process, as a scheduler does it, another
    one to the process group of torchrun, which passes it on.
    """
    began, first, hung = time.monotonic(), 0.0, False
    with log_of(folder).open("a") as log:
        process = subprocess.Popen(
            [sys.executable, *WORDS, "--out", str(folder)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        lines = folder / "metrics.jsonl"
        while process.poll() is None:
            if not first and lines.is_file() and lines.stat().st_size:
                first = time.monotonic()
            if first and number and time.monotonic() > first + after:
                send(process.pid, number)
                number = 0
            if time.monotonic() > began + LIMIT:
                hung = True
                send(process.pid, signal.SIGKILL)
            time.sleep(0.005)
    ended = time.monotonic()
    return Ended(code=process.returncode, seconds=ended - began, hung=hung, writes=[]), ended - first


def send(launcher: int, number: int) -> None:
    """Send a signal to torchrun's process group; SIGKILL to its ranks, too, which have groups of their own."""
    processes = [launcher]
    if number == signal.SIGKILL:
        for process in processes:  # grows while it is read
            with contextlib.suppress(OSError):
                processes += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, number)
