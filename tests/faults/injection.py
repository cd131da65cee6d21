"""Lets one of all writes of a process fail.

What touches the disk in a run are the small functions at the end of `multissl/files.py`. Each call of one is a write
point, counted from 1. At point n the call is left half done, and then the process dies, the disk is full from there on,
or the device gives one error.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from multissl import files

How = Literal["die", "full", "error"]
HOWS: tuple[How, ...] = ("die", "full", "error")
WRITES = (
    "_make_empty",
    "_unlink",
    "_set_mode",
    "_make_folder",
    "_open_to_append",
    "_write",
    "_write_tensors",
    "_append",
    "_truncate",
    "_sync",
    "_rename",
    "_remove",
)
"""The functions that touch the disk."""
WANTS_SPACE = (
    "_make_empty",
    "_make_folder",
    "_open_to_append",
    "_write",
    "_write_tensors",
    "_append",
    "_rename",
)
"""Those that a full disk refuses."""


class Writes:
    """Counts the writes of this process, and lets those fail that it is told to."""

    def __init__(self, point: int = 0, how: How = "die") -> None:
        """Begin at no write; point 0 lets none fail."""
        self.point, self.how = point, how
        self.names: list[str] = []
        """The function and the file of every write so far."""

    def install(self) -> None:
        """Put the counter between the functions that touch the disk and their callers, until the process ends."""
        for name in WRITES:
            setattr(files, name, self._counted(name, vars(files)[name]))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(target: Any, *args: Any) -> Any:
            path = Path(target.name if isinstance(target, FileIO) else target)
            self.names.append(f"{name} {path.name}")
            here = len(self.names) == self.point
            if here or (self.how == "full" and 0 < self.point < len(self.names) and name in WANTS_SPACE):
                self._fail(name, function, target, args, path)
            return function(target, *args)

        return counted

    def _fail(
        self, name: str, function: Callable[..., Any], target: Any, args: tuple[Any, ...], path: Path
    ) -> None:
        if self.how == "full" and name not in WANTS_SPACE:
            return  # the next one that wants space fails
        leave_half(name, function, target, args)
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.ENOSPC if self.how == "full" else errno.EIO
        raise OSError(number, os.strerror(number), str(path))


def leave_half(name: str, function: Callable[..., Any], target: Any, args: tuple[Any, ...]) -> None:
    """Do the first half of a write; of those that have no half nothing is done."""
    if name == "_write":
        target.write_bytes(args[0][: len(args[0]) // 2])
    elif name == "_append":
        target.write(args[0][: len(args[0]) // 2])
    elif name == "_write_tensors":
        function(target, *args)
        os.truncate(target, target.stat().st_size // 2)
    elif name == "_remove":
        for file in [p for p in target.rglob("*") if p.is_file()][::2]:
            file.unlink()
