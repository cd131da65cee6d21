"""Deaths are named: what ended a data worker, and what the system refused, in a line with a way out."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any, cast

import pytest
import torch
from torch.utils.data import Dataset

from multissl import cli
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.engine.deaths import WorkerDied


class Dying(Dataset[Any]):
    """Batches whose worker is ended by a signal at step 1."""

    final = True

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __getitem__(self, step: int) -> Any:
        if step:
            os.kill(os.getpid(), self.number)
        return torch.zeros(1), []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            signal.SIGKILL,
            "ended by SIGKILL, as the system does where memory runs out: give fewer --data.workers",
        ),
        (signal.SIGBUS, "ended by SIGBUS, as where the shared memory of /dev/shm is full"),
        (signal.SIGSEGV, "ended by SIGSEGV, inside a library that decodes: --data.workers 0"),
        (signal.SIGALRM, "ended by SIGALRM, by whoever sent it; repeat the command"),
    ],
)
def test_what_ended_a_worker_is_said(number: signal.Signals, said: str) -> None:
    steps = cast(StepBatches, Dying(number))
    batches = batches_of(steps, 0, 3, Data(workers=1, prefetch=1), 1, torch.device("cpu"))
    with pytest.raises(WorkerDied, match=said):
        list(batches)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            "/a/b: No space left on device; free some space",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: Read-only file system; name a place"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied; look at whom"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "; set TMPDIR to",
        ),
        (OSError("something else"), "error: something else"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> int:
        raise error

    monkeypatch.setitem(cli.CALLS, "list", refuse)
    assert cli.main(["list"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
