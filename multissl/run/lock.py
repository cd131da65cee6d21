"""One process at a time trains in a folder of a run: a lock that names host and process.

A process that dies leaves its lock behind. On the machine where it ran, the next one looks whether it is still there;
from another machine it cannot, so a holder touches its lock every few seconds, and one that is not touched for a minute
is nobody's. Clocks are never compared.
State: the file; a thread that touches it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multissl.files import alone, remove, replace_text, touch

BEAT = 5.0
"""Seconds after which a holder touches its lock again."""
PATIENCE = 60.0
"""Seconds for which a lock of another machine is watched before it counts as left behind."""


class RunBusyError(ValueError):
    """Another process trains in the folder."""


class LockLostError(RuntimeError):
    """Another process took the lock of a run, as this one had seemed dead."""


class Lock:
    """The lock of a run's folder, held by this process between `acquire` and `release`."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.token = uuid.uuid4().hex
        """What tells this holder from all others."""
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Take the lock, also one that was left behind. Raises a `RunBusyError` that names who holds it."""
        gone: dict[str, Any] | None = None
        while not self._acquired_from(gone):
            gone = read(self.path)
            if gone is not None:
                check_gone(self.path, gone, self.say)
        threading.Thread(target=self._beat, daemon=True, name="lock of the run").start()

    def _acquired_from(self, gone: Mapping[str, Any] | None) -> bool:
        """Take the lock unless another process than the one that is gone holds it; one process at a time looks."""
        values = {"token": self.token, **this_process(), "folder": _folder(self.path), "since": now()}
        text = json.dumps(values, indent=1)
        with alone(self.path.parent):
            if read(self.path) not in (None, gone):
                return False
            replace_text(self.path, text)
        return True

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):  # the file system may be away for a while
                touch(self.path)

    def check(self) -> None:
        """Raise a `LockLostError` where another process has taken the lock."""
        holder = read(self.path)
        if holder is None or holder.get("token") != self.token:
            by = f"{described(holder)} has taken it" if holder else "it is gone"
            raise LockLostError(
                f"{self.path} is no longer this process's: {by}, as this one had not answered for {PATIENCE:.0f} "
                "seconds or somebody removed it; nothing more is written here"
            )

    def release(self) -> None:
        """Give the lock back, unless it is another one's by now."""
        self._stop.set()
        with contextlib.suppress(OSError):  # it is then recognised as left behind
            if (read(self.path) or {}).get("token") == self.token:
                remove(self.path)


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[Lock]:
    """Hold a lock."""
    lock = Lock(path, say)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def check_free(path: Path, say: Callable[[str], None]) -> None:
    """Raise a `RunBusyError` where a process that is still there holds a lock."""
    holder = read(path)
    if holder is not None:
        check_gone(path, holder, say)


def check_gone(path: Path, holder: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Raise a `RunBusyError` unless a holder is gone.

    Where it is of another machine, or trains in another folder, of which this one is a copy, that takes up to
    `PATIENCE` seconds.
    """
    is_here, here = holder.get("machine") == machine(), _folder(path)
    gone = is_here and not is_alive(holder)
    copied = is_here and not gone and holder.get("folder", here) != here
    if copied or not is_here:
        say(
            f"{path} names {described(holder)}: watching for {PATIENCE:.0f} seconds whether it is still there"
        )
        gone = not is_touched(path)
    if not gone:
        raise RunBusyError(
            f"{path.parent} is being trained by {described(holder)}: wait for it, end it, or give another --out"
        )
    how = (
        "trains in another folder, of which this is a copy"
        if copied
        else f"ended without giving {path.name} back"
    )
    say(f"{described(holder)} {how}: going on")


def read(path: Path) -> dict[str, Any] | None:
    """Return who holds a lock: None for nobody, {} where the file does not tell."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # being written, or left by a machine that lost power
        return {}
    return values if isinstance(values, dict) else {}


def described(holder: Mapping[str, Any]) -> str:
    """Return the holder of a lock in words."""
    if "process" not in holder:
        return "a process that is not named"
    return f"process {holder['process']} on {holder.get('host')} (since {holder.get('since')})"


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others."""
    pid = os.getpid()
    return {"host": platform.node(), "machine": machine(), "process": pid, "started": started(pid)}


def machine() -> str:
    """Return what tells a started machine, or a container on it, from others: processes have numbers of their own."""
    return "/".join([platform.node(), _line("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")])


def started(pid: int) -> str:
    """Return when a process of this machine began, in ticks since the machine did; "" where that cannot be told."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before may hold anything
    return fields[19] if len(fields) > 19 else ""


def is_alive(holder: Mapping[str, Any]) -> bool:
    """Return whether a process of this machine is still there; another one may have its number by now."""
    pid = holder.get("process")
    if not isinstance(pid, int) or pid <= 0:  # of 0 and below it means many processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return started(pid) == holder.get("started", "") and not _is_dead(pid)


def _is_dead(pid: int) -> bool:
    """Return whether a process has ended and only waits for its parent to ask how."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[:1] == ["Z"]


def is_touched(path: Path) -> bool:
    """Return whether a holder touches its lock, or gives it back and another one takes it, while it is watched."""
    before, deadline = _touched_at(path), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE / 10))
        if (after := _touched_at(path)) != before:
            return after is not None
    return False


def _touched_at(path: Path) -> int | None:
    try:
        with path.open("rb") as file:  # opening it makes network file systems look at what others did
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _folder(path: Path) -> list[int]:
    """Return what tells the folder of a lock from its copies on the same machine: one that is moved stays the same."""
    about = path.parent.stat()
    return [about.st_dev, about.st_ino]


def now() -> str:
    """Return date and time with their zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
