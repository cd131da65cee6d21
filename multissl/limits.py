"""Limits of what data is unpacked to: a few kilobytes may stand for more than any memory holds.

What a file says of itself is compared with its limit before it is decoded. Each limit is lifted by an environment
variable of its name, as `MULTISSL_MAX_PIXELS=1000000000`, which is read at every check. A law of nobody's: data of that
size is rare, and a bomb is far beyond.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """The most of something, and how it is lifted."""

    variable: str
    """The environment variable that lifts it."""
    most: int
    unit: str

    @property
    def value(self) -> int:
        """Return the limit that holds now. Raises a ValueError where the variable is no whole number above 0."""
        text = os.environ.get(self.variable, "")
        if not text:
            return self.most
        if not text.isdigit() or not int(text):
            raise ValueError(f"{self.variable}={text}: want a whole number above 0, of {self.unit}")
        return int(text)

    def check(self, amount: int, what: str) -> None:
        """Raise a ValueError where an amount is beyond the limit; `what` says of what: "its header says"."""
        if amount > self.value:
            raise ValueError(
                f"{what} {amount:,} {self.unit}, the limit is {self.value:,}: if it is sound, set "
                f"{self.variable}={amount}"
            )


PIXELS = Limit("MULTISSL_MAX_PIXELS", 1 << 28, "pixels")
"""Of a picture, all its pages together, and of a frame of a video."""
SAMPLE_BYTES = Limit("MULTISSL_MAX_SAMPLE_BYTES", 4 << 30, "bytes")
"""Of the file, member or cell that holds one sample and is read whole."""
LABEL_BYTES = Limit("MULTISSL_MAX_LABEL_BYTES", 16 << 20, "bytes")
"""Of a member that says the class of a sample, or what else is known of it."""
SOUND_VALUES = Limit("MULTISSL_MAX_SOUND_VALUES", 1 << 30, "values")
"""Of a stretch of sound that is decoded at once, all channels together."""
TABLE_BYTES = Limit("MULTISSL_MAX_TABLE_BYTES", 64 << 30, "bytes")
"""That a table or an archive of arrays takes in memory."""
COLUMNS = Limit("MULTISSL_MAX_COLUMNS", 1 << 17, "columns")
"""Of a table: each takes its time, and is a token of whoever trains on it."""
RATIO = Limit("MULTISSL_MAX_RATIO", 200, "times its packed size")
"""Of what a member of an archive is unpacked to; not asked below `SMALL` bytes."""
SMALL = 64 << 20


def check_unpacked(packed: int, unpacked: int, name: str) -> None:
    """Raise a ValueError where a packed member is too large when it is unpacked, or is packed as only a bomb is."""
    TABLE_BYTES.check(unpacked, f"{name} unpacks to")
    if unpacked > SMALL:
        RATIO.check(-(-unpacked // max(packed, 1)), f"{name} unpacks to")
