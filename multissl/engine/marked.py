"""A file of a run that only grows, and whose checkpoints remember how far it went.

On resume what came after the checkpoint is cut off, and what came before is compared with the digest that the
checkpoint holds.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multissl.files import Lines, read_marked


class MarkedNotWritten(RuntimeError):
    """A file that grows with a run could not be written; the run's checkpoints are intact."""


class Marked:
    """A file after its first bytes, up to `mark`; without a mark after all that is there."""

    def __init__(self, path: Path, mark: Mapping[str, Any] | None) -> None:
        """Raises a `Damaged` where the bytes up to the mark are not those that were written."""
        self.path = path
        self.lost = bool(mark and mark["bytes"] and not path.exists())
        """Whether what was written before is gone."""
        kept = read_marked(path, mark) if mark and path.exists() else None
        self._file = Lines(path, None if kept is None else len(kept))
        data = path.read_bytes() if kept is None else kept
        self._bytes, self._digest = len(data), hashlib.sha256(data)

    def add(self, data: bytes) -> None:
        """Write at the end."""
        try:
            self._file.add(data)
        except OSError as error:
            raise self._not_written(error) from error
        self._bytes += len(data)
        self._digest.update(data)

    def mark(self) -> dict[str, Any]:
        """Bring all to the disk; return how many bytes there are, and their digest."""
        try:
            self._file.sync()
        except OSError as error:
            raise self._not_written(error) from error
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def _not_written(self, error: OSError) -> MarkedNotWritten:
        return MarkedNotWritten(
            f"{self.path} could not be written to ({error.strerror}); free some space, then repeat the command to "
            "go on from the newest checkpoint"
        )

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what could not be written has ended the run already
            self._file.close()
