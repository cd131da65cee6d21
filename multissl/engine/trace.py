"""What every step was: an entry of 32 bytes for each, by which `multissl audit` sees that a run was as it says.

An entry holds step (uint64), learning rate (float64), the first 8 bytes of the SHA-256 of the numbers of all ranks'
samples (int64 each), and the loss of the first rank's rows (float64), little-endian. Checkpoints hold the digest of all
entries up to them, so no entry before a checkpoint can change unseen.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from multissl.engine.marked import Marked
from multissl.files import remove

_ENTRY = struct.Struct("<Qd8sd")


@dataclass(frozen=True, slots=True)
class Entry:
    """A step as it was taken."""

    step: int
    lr: float
    samples: bytes
    """The beginning of a digest."""
    loss: float


class Trace:
    """The file of a run's entries, after those of the steps before `start`."""

    def __init__(self, path: Path, start: int, mark: Mapping[str, Any] | None) -> None:
        if not start or mark is None:  # another start's, or of a version that knew no marks
            remove(path)
            mark = None
        self._file = Marked(path, mark)

    def add(self, step: int, lr: float, samples: Tensor, loss: float) -> None:
        """Add a step with the numbers of its samples, int64 [B]."""
        digest = hashlib.sha256(samples.numpy().tobytes()).digest()[:8]
        self._file.add(_ENTRY.pack(step, lr, digest, loss))

    def mark(self) -> dict[str, Any]:
        """Bring all to the disk; return how many bytes there are, and their digest."""
        return self._file.mark()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_trace(path: Path) -> dict[int, Entry]:
    """Return the entries of a file by their step; one that was cut short by a crash is left out."""
    data = path.read_bytes() if path.is_file() else b""
    whole = len(data) - len(data) % _ENTRY.size
    return {values[0]: Entry(*values) for values in _ENTRY.iter_unpack(data[:whole])}
