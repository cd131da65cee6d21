"""How far long work is, for who waits for it: said after a while, and then every while."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from multissl.parallel.ranks import is_main

PAUSE = 10.0
"""Seconds until something is said, and between two lines."""
T = TypeVar("T")


def followed(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield items of `total`; where that takes long, say how many there have been, on the first rank.

    `what` is what they are for: "features of val". What is left is estimated from all items but the first, which
    includes a start: of files, of workers, of a network's first pass.
    """
    began = last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if number == 1:
            began = now
        if now - last > PAUSE and is_main():
            last = now
            left = f", {(now - began) / (number - 1) * (total - number):.0f} s to go" if number > 1 else ""
            print(f"{what}: {number:,} of {total:,}{left}", file=sys.stderr, flush=True)
        yield item
