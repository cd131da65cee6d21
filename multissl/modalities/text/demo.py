"""The demo texts: Python's own documentation, so that a text run needs no download.

Every docstring of the standard library is a document; its class is what the module is for, where the module belongs
to one of nine fields, and unknown elsewhere. Nothing is synthetic, and nothing appears twice: equal texts are kept
once. The texts are those of the Python that runs, the same on every machine with that version.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

FIELDS = {
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "queue", "selectors", "subprocess", "threading"),
    "mail": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "web": ("ftplib", "http", "socket", "socketserver", "ssl", "urllib", "webbrowser", "wsgiref", "xmlrpc"),
    "markup": ("csv", "configparser", "html", "json", "plistlib", "tomllib", "xml"),
    "numbers": (
        "_pydatetime",
        "_pydecimal",
        "calendar",
        "colorsys",
        "datetime",
        "fractions",
        "heapq",
        "ipaddress",
        "numbers",
        "random",
        "statistics",
        "zoneinfo",
    ),
    "testing": ("bdb", "doctest", "pdb", "profile", "timeit", "trace", "unittest"),
    "files": ("bz2", "fileinput", "glob", "gzip", "lzma", "os", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"),
    "code": ("ast", "dis", "importlib", "inspect", "modulefinder", "pickletools", "pkgutil", "pydoc", "symtable"),
    "drawing": ("curses", "tkinter", "turtle", "turtledemo"),
}  # fmt: skip
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
SHORTEST = 60
"""Characters of a document."""
_DOCSTRING = re.compile(r'^[ \t]*[rRuU]?"""(.*?)"""', re.DOTALL | re.MULTILINE)


@cache
def documents() -> tuple[list[str], list[str]]:
    """Texts in mixed order and the field of each, "" for none."""
    fields = {module: field for field, modules in FIELDS.items() for module in modules}
    root = Path(os.__file__).parent
    found: dict[str, str] = {}
    for path in _modules(root):
        module = path.relative_to(root).parts[0].removesuffix(".py")
        for match in _DOCSTRING.finditer(path.read_text(encoding="utf-8", errors="replace")):
            text = " ".join(match[1].split())
            if len(text) >= SHORTEST:
                found.setdefault(text, fields.get(module, ""))
    # An order by content spreads every module over the splits.
    texts = sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())
    return texts, [found[text] for text in texts]


def _modules(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED)
        found += [Path(folder) / f for f in sorted(files) if f.endswith(".py")]
    return found
