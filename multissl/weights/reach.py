"""Whether weights by a name on a hub can be had: from the cache, else over the network. Imports nothing slow.

The command line asks before torch is imported, so that a machine without network answers at once.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

HUBS = ("hf", "timm")
ENDPOINT = "https://huggingface.co"
PATIENCE = 3.0
"""Seconds to wait for a hub before it counts as out of reach."""


def check_hub(place: str) -> None:
    """Raise a ValueError where a place is a name on a hub that is neither in the cache nor within reach."""
    hub, colon, name = place.partition(":")
    if not colon or hub not in HUBS or not name:
        return
    if hub == "timm":
        known = name.startswith("local-dir:") or cached(f"timm/{name}*")
    else:
        known = Path(name).exists() or cached(name)
    if not known:
        check_reachable()


def check_typed(place: str, option: str = "") -> None:
    """Do the same of a place as it was typed, with the option before it, which the message then begins with."""
    try:
        check_hub(place)
    except ValueError as error:
        raise ValueError(f"{option}{place}: {error}") from None


def cached(pattern: str) -> bool:
    """Return whether the cache of Hugging Face's hub holds a repository; asked before any library is imported."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return any(cache.glob(f"models--{pattern.replace('/', '--')}"))


def check_reachable() -> None:
    """Raise a ValueError where the hub does not answer within a few seconds."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    problem = "HF_HUB_OFFLINE is set" if offline else ""
    if not problem and not any(
        os.environ.get(f"{scheme}_proxy") for scheme in ("https", "HTTPS", "all", "ALL")
    ):
        problem = _unreachable(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    if problem:
        raise ValueError(f"it is not in the cache, and {problem}: give a file or folder of this machine")


def _unreachable(endpoint: str) -> str:
    """Return why an address does not answer, "" where it does."""
    parts = urlsplit(endpoint)
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection(address, PATIENCE).close()
            found.append("")
        except OSError as error:
            found.append(error.strerror or str(error))

    # in a thread, as looking up a name has no limit of time
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    reason = found[0] if found else f"no answer within {PATIENCE:.0f} s"
    return reason and f"{address[0]} cannot be reached ({reason})"
