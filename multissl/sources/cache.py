"""Copies of data that cannot be read where it lies: what is packed or far away, made once and kept by the user.

They lie in `MULTISSL_CACHE`, or else in `multissl` of the user's cache folder. Nothing is removed by itself.
State: none but these files.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from multissl.files import alone, make_folder, replace_pieces

log = logging.getLogger("multissl")


def cache_folder() -> Path:
    """Return where copies lie."""
    named = os.environ.get("MULTISSL_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "multissl"


def kept(key: str, name: str, pieces: Callable[[], Iterable[bytes]], what: str) -> Path:
    """Return the copy that belongs to a key, a file of that name; it is made of `pieces` where there is none.

    One process makes it while others wait. A copy that was not finished is made again.
    """
    folder = cache_folder() / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    copy = folder / name
    if copy.is_file():
        return copy
    make_folder(folder)
    with alone(folder):
        if not copy.is_file():
            log.warning("%s into %s, once", what, copy)
            replace_pieces(copy, pieces())
    return copy
