"""A process that has imported everything, and forks a child for every command it is sent.

Commands come as lines of JSON on its input; for each a line of JSON goes out when the child has ended. A child is the
leader of a process group of its own, so that a signal to the group reaches its data workers. The process has one
thread, as a fork copies no other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.injection import How, Writes

ROOT = Path(__file__).parents[2]
LIMIT = 180.0
"""Seconds after which a child is taken to hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command line to run, and what befalls it."""

    words: list[str]
    log: str
    """The file to which its output is added."""
    point: int = 0
    """The write that fails, 0 for none."""
    how: How = "die"
    signal: int = 0
    """The signal that its process group is sent, 0 for none."""
    after: float = 0.0
    """Seconds from the start to the signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a child ended."""

    code: int
    """Its exit code, minus the number of the signal that ended it."""
    seconds: float
    hung: bool
    writes: list[str]
    """The writes of a child that ended by itself."""


class Warm:
    """The warm process, as those see it that send commands to it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, job: Job) -> Ended:
        """Run a command in a fresh child, and wait for its end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the warm process has ended"
        return Ended(**json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def import_everything() -> None:
    """Import the package and what its parts import when they first run."""
    import multissl

    for module in pkgutil.walk_packages(multissl.__path__, "multissl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.utils.tensorboard"):
        importlib.import_module(name)


def serve() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    import torch

    torch.set_num_threads(1)
    assert threading.active_count() == 1, threading.enumerate()
    for line in sys.stdin:
        answers.write(json.dumps(asdict(answer(Job(**json.loads(line))))) + "\n")
        answers.flush()


def answer(job: Job) -> Ended:
    """Fork a child for a command, send it its signal, and wait for its end."""
    listing = Path(f"{job.log}.writes")
    began = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(run_child(job, listing))
    sent, hung = job.signal == 0, False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        seconds = time.monotonic() - began
        if not sent and seconds >= job.after:
            sent = send(child, job.signal)
        if seconds > LIMIT:
            hung = send(child, signal.SIGKILL)
        time.sleep(0.002)
    send(child, signal.SIGKILL)  # what is left of its group
    writes = json.loads(listing.read_text()) if listing.is_file() else []
    listing.unlink(missing_ok=True)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code=code, seconds=time.monotonic() - began, hung=hung, writes=writes)


def send(group: int, number: int) -> bool:
    """Send a signal to a process group; True, whether or not there is one any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
    return True


def run_child(job: Job, listing: Path) -> int:
    """Run a command in the child, and return its exit code."""
    import torch

    from multissl import cli

    os.setsid()
    # a fork has to make torch's pool of threads anew: two threads that do it at once abort the process
    torch.set_num_threads(torch.get_num_threads())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    writes = Writes(job.point, job.how)
    writes.install()
    code: Any = 70
    try:
        code = cli.main(job.words)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    listing.write_text(json.dumps(writes.names))
    return code if isinstance(code, int) else 70


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


if __name__ == "__main__":
    serve()
