"""Why a data worker ended, in words that say what to do: how the system ended its process says it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class WorkerDied(RuntimeError):
    """A process that prepares batches ended without an error of its own; checkpoints are intact."""


REASONS = {
    signal.SIGKILL: "as the system does where memory runs out: give fewer --data.workers, a smaller --data.prefetch or "
    "a smaller --batch_size, or ask the scheduler for more memory",
    signal.SIGBUS: "as where the shared memory of /dev/shm is full: make it larger (docker run --shm-size 8g), or give "
    "fewer --data.workers or a smaller --data.prefetch",
    signal.SIGSEGV: "inside a library that decodes: --data.workers 0 decodes in the training process, which then ends "
    "at the sample that does it",
}
"""By the signal that ended it."""


@contextlib.contextmanager
def named_deaths(batches: Any) -> Iterator[None]:
    """Turn torch's error about a worker of a loader's iterator that ended into one that says why."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or not (ended := _ended(batches)):
            raise
        number, process, code = ended
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        reason = (
            REASONS.get(signal.Signals(-code), "by whoever sent it") if code < 0 else "without saying why"
        )
        raise WorkerDied(
            f"data worker {number} (process {process}) was ended by {name}, {reason}; repeat the command to go on from "
            "the newest checkpoint"
        ) from None


def _ended(batches: Any) -> tuple[int, int, int] | None:
    """Return number, process and exit code of the first worker that ended with an error."""
    for number, worker in enumerate(batches._workers):
        worker.join(timeout=1)
        if worker.exitcode:
            return number, worker.pid, worker.exitcode
    return None
