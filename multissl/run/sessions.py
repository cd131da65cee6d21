"""Who trained a run, when, with what: a line for each session, from a start to whatever ended it.

A line is written when training begins and completed when it ends, so the last one of a run that is going on, or was
killed, has no end yet; the next session then notes that it was killed. Of a run with stages each has a line of its own.
`changed` holds those options that a session had other than `recipe.json`, which is written once.
"""

from __future__ import annotations

import contextlib
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from multissl.engine.trainer import Interrupted, Trainer
from multissl.parallel.ranks import is_main, world
from multissl.run.folder import NotWritten, RunFolder
from multissl.run.lock import now
from multissl.version import __version__

KILLED = "killed"
"""How a session ended that left no word."""
PACKAGES = ("torch", "torchvision", "torchaudio", "transformers", "timm", "numpy", "safetensors")


class Session:
    """The line of this start of a run; all ranks but the first write none.

    `reached` tells up to which step it has trained.
    """

    def __init__(
        self, run: RunFolder, batch_size: int, reached: Callable[[], int], about: Mapping[str, Any]
    ) -> None:
        self.run = run if is_main() else None
        self.batch_size, self.reached, self.start = batch_size, reached, reached()
        self._began = time.monotonic()
        self.line: dict[str, Any] = {**about, "began": now(), "ended": None, "end": None}
        if self.run:
            before = [{**x, "end": x.get("end") or KILLED} for x in self.run.read_sessions()]
            self.run.write_sessions([*before, self._current()])

    def _current(self) -> dict[str, Any]:
        reached = self.reached()
        return self.line | {
            "seconds": round(time.monotonic() - self._began, 1),
            "steps": [self.start, reached],
            "samples": (reached - self.start) * self.batch_size,
        }

    def end(self, how: str) -> None:
        """Complete the line."""
        self.line |= {"ended": now(), "end": how}
        if self.run:
            before = self.run.read_sessions()[:-1]
            self.run.write_sessions([*before, self._current()])


@contextlib.contextmanager
def recorded(session: Session) -> Iterator[Session]:
    """Complete a session's line however the `with` ends."""
    try:
        yield session
    except BaseException as error:
        with contextlib.suppress(OSError, NotWritten):  # what ended the session says more
            session.end(_reason(error))
        raise
    session.end("finished")


def _reason(error: BaseException) -> str:
    """Return what ended a session, in one line."""
    if isinstance(error, Interrupted):
        return signal.Signals(error.number).name
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT.name
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:500]}" if first else type(error).__name__


def session_of(run: RunFolder, trainer: Trainer, changed: Mapping[str, Any]) -> Session:
    """Return the session that begins; `changed` are its options other than those of the recipe."""
    known = about(run, trainer.device, changed)
    if trainer.span.borders:
        known["stage"] = trainer.span.stage
    return Session(run, trainer.cfg.batch_size, lambda: trainer.reached, known)


def about(run: RunFolder, device: torch.device, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a session when it begins."""
    return {
        "command": sys.argv,
        "folder": str(run.path.resolve()),
        "changed": dict(changed),
        **environment(device),
        "ranks": world(),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return what numbers may depend on besides recipe and data: code, packages, machine."""
    cuda = device.type == "cuda"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "git": {"multissl": commit_of(Path(__file__).parent), "working directory": commit_of(Path.cwd())},
        "versions": {"multissl": __version__, "python": platform.python_version(), **versions()},
        "host": platform.node(),
        "devices": names or [platform.processor() or platform.machine() or "cpu"],
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers may depend on, of those that are installed."""
    known = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            known[name] = version(name)
    return known


def commit_of(folder: Path) -> dict[str, Any] | None:
    """Return the commit that is checked out around a folder and whether tracked files differ from it; None without."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit.strip(), "dirty": bool(_git(folder, "status", "--porcelain", "-uno"))}


def _git(folder: Path, *words: str) -> str:
    """Return what git prints; nothing where it is not installed, fails or takes long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
