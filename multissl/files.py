"""Files that are whole at any moment, and the only place that writes into a run's folder.

What is replaced is written beside its place, brought to the disk, renamed, and the folder brought to the disk: a
process that is killed while it writes, a disk that fills up or a machine that loses power leaves the file of before as
it was. What grows by lines is cut back by whoever goes on. The small functions at the end are all that touches the
disk: tests let each of them fail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "sha256"
"""The key under which a sealed mapping holds the digest of its other values."""


class Damaged(ValueError):
    """A file is not what was written."""


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file takes the place of `path` at the end, unless writing failed.

    It may be read by whom the umask says, whatever its writer set (safetensors: the owner alone).
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        _unlink(aside)  # left by a process that was killed, maybe of another user
        _make_empty(aside)
        mode = aside.stat().st_mode
        yield aside
        _set_mode(aside, mode)
        _sync(aside)
        rename(aside, path)
    finally:
        with contextlib.suppress(OSError):
            _unlink(aside)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file in one go."""
    with replaced(path) as aside:
        _write(aside, content)


def replace_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file in one go, of pieces that come one after the other."""
    with replaced(path) as aside, _open_to_append(aside) as file:
        for piece in pieces:
            _append(file, piece)


def replace_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file in one go; its tensors are contiguous and lie on the CPU."""
    with replaced(path) as aside:
        _write_tensors(aside, tensors, metadata)


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time in, where the file system can: it ends with its process.

    Raises a BlockingIOError where another one is in and nobody is to `wait` for it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # some network file systems cannot
            pass
        yield
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Let a file be as new as now."""
    _touch(path)


def remove(path: Path) -> None:
    """Remove a file, unless it is gone."""
    _unlink(path)


class Lines:
    """A file that grows by lines; nothing of a line is kept back, and `sync` brings them to the disk."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        """Open a file after its first `keep` bytes, of which there must be as many; None keeps them all."""
        self.path = path
        self._file = _open_to_append(path)
        if keep is not None and keep < path.stat().st_size:
            _truncate(self._file, keep)

    def add(self, line: bytes) -> None:
        """Write a line."""
        _append(self._file, line)

    def sync(self) -> None:
        """Bring all lines to the disk."""
        _sync(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def make_folder(path: Path) -> None:
    """Make a folder and those around it, unless it is there."""
    if not path.exists():  # what is no folder fails below, with the reason
        make_folder(path.parent)
        _make_folder(path)
        _sync(path.parent)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name, and bring the folder around it to the disk."""
    _rename(path, target)
    _sync(target.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder with all its files; one that is only half removed has another name."""
    doomed = path.with_name(f"removing_{path.name}")
    if path.exists():
        if doomed.exists():
            _remove(doomed)
        _rename(path, doomed)
    if doomed.exists():
        _remove(doomed)


def copy_folder(path: Path, target: Path) -> None:
    """Copy a folder to where there is none yet."""
    make_folder(target.parent)
    _copy(path, target)


def set_aside(path: Path) -> Path | None:
    """Rename a file or folder so that its name is free; return its new name, None where there is nothing."""
    if not path.exists():
        return None
    number = next(i for i in range(1, 10_000) if not path.with_name(f"{path.name}.old{i}").exists())
    target = path.with_name(f"{path.name}.old{number}")
    rename(path, target)
    return target


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of JSON with the digest of them all, by which `read_sealed` sees that they were not changed."""
    plain = json.loads(json.dumps({n: v for n, v in values.items() if n != SEAL}))
    text = json.dumps(plain, sort_keys=True)
    return {**plain, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(path: Path, unsealed: bool = False) -> dict[str, Any]:
    """Return the values of a file that holds `sealed` ones, without the digest.

    Raises a `Damaged` that names the file where they are not what was written. `unsealed` takes those that hold no
    digest, as older versions wrote them.
    """
    return opened(path.read_bytes(), str(path), unsealed)


def opened(data: bytes, name: str, unsealed: bool = False) -> dict[str, Any]:
    """Return sealed values from their text, as `read_sealed` does; `name` is what messages call them."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{name} is damaged: it is no whole JSON ({error})") from None
    if not isinstance(values, dict) or (SEAL not in values and not unsealed):
        raise Damaged(f"{name} is damaged: it lacks the digest of its values")
    if SEAL in values and values[SEAL] != sealed(values)[SEAL]:
        raise Damaged(f"{name} is damaged: its values have not the digest that was written with them")
    values.pop(SEAL, None)
    return values


def replace_sealed_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a file in one go, a line of JSON with its own digest for each of some values."""
    replace_bytes(path, b"".join((json.dumps(sealed(line)) + "\n").encode() for line in lines))


def read_sealed_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of a file of sealed lines; nothing where there is no file.

    Raises a `Damaged` that names file and line where one is not what was written.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    return [opened(line, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def read_marked(path: Path, mark: Mapping[str, Any]) -> bytes:
    """Return the lines of a record up to a mark, which says how many bytes they have, and their digest.

    Raises a `Damaged` where they are not those that were written.
    """
    with path.open("rb") as file:
        kept = file.read(mark["bytes"])
    if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
        raise Damaged(
            f"{path} is damaged: its first {mark['bytes']:,} bytes are not those that were written; put it back from a "
            "copy, or move it away to go on with a record that begins here"
        )
    return kept


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of a file that holds a line of JSON for each; nothing where there is no file."""
    if not path.is_file():
        return []
    return [values for _, values in whole_json_lines(path.read_text(errors="replace"))]


def whole_json_lines(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line that can be read, as it stands and as values: a last one cut short by a crash is left out."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # a number of 5,000 digits is no JSON error
            values = json.loads(line)
            if isinstance(values, dict):
                yield line, values


# ------------------------------------------------------------------------- all that touches the disk


def _make_empty(path: Path) -> None:
    path.touch()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


def _open_to_append(path: Path) -> FileIO:
    return path.open("ab", buffering=0)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _touch(path: Path) -> None:
    os.utime(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # it hides the number of the error that the disk gave
        full = "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def _append(file: IO[bytes], data: bytes) -> None:
    while data:  # unbuffered, so a part may be written, which the caller cuts off when it goes on
        data = data[file.write(data) :]


def _truncate(file: IO[bytes], size: int) -> None:
    file.truncate(size)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def _rename(path: Path, target: Path) -> None:
    path.replace(target)


def _copy(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)
