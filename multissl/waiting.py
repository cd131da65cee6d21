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

    `what` is what they are for: "features of val".
    """
    began = last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if now - last > PAUSE and is_main():
            last = now
            left = (now - began) / number * (total - number) if number else 0.0
            print(f"{what}: {number:,} of {total:,}, {left:.0f} s to go", file=sys.stderr, flush=True)
        yield item
