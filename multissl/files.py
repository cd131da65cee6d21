"""Files that are whole at any moment: written beside their place, then renamed.

A process that is killed while it writes, or that fills the disk, leaves the file of before as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file takes the place of `path` at the end, unless writing failed.

    It may be read by whom the umask says, whatever its writer set (safetensors: the owner alone).
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    with replaced(path) as aside:
        aside.write_text(text, encoding="utf-8")


def set_aside(path: Path) -> Path | None:
    """Rename a file or folder so that its name is free; return its new name, None where there is nothing."""
    if not path.exists():
        return None
    number = next(i for i in range(1, 10_000) if not path.with_name(f"{path.name}.old{i}").exists())
    return path.rename(path.with_name(f"{path.name}.old{number}"))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of a file that holds a line of JSON for each; nothing where there is no file."""
    return [values for _, values in whole_json_lines(path.read_text())] if path.is_file() else []


def whole_json_lines(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line that can be read, as it stands and as values: a last one cut short by a crash is left out."""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)
