"""Features on their way into a file: pieces of a fixed number of rows, so that what is written stays written.

They lie in `FILE.parts` beside the file until it is whole. A piece is cut by row number, never by rank, so one process,
several and one that was started again write the same bytes. Pieces of other encoders, data or options are removed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multissl.files import alone, make_folder, remove, remove_folder, replace_tensors, replace_text
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.ranks import is_main


class Piece(NamedTuple):
    """Some samples in order, those that could be read."""

    lines: Sequence[Mapping[str, Any]]
    """What is said of each."""
    features: Tensor | None
    """[S, D] or [S, N, D]; None where none can be read."""
    problems: Sequence[str]
    """Why others could not."""


class Pieces:
    """The pieces of a file. `about` is all that their content depends on."""

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.about = json.dumps(about, sort_keys=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no other process make pieces of this file. Raises a ValueError on every rank where one does."""
        problem = None
        with contextlib.ExitStack() as stack:
            if is_main():
                make_folder(self.folder)
                try:
                    stack.enter_context(alone(self.folder, wait=False))
                except BlockingIOError:
                    problem = ValueError(
                        f"--out {self.out}: another process is writing it: wait for it, or give another --out"
                    )
            if problem := broadcast_object(problem):
                raise problem
            yield

    def begin(self) -> bool:
        """Keep the pieces that are there, if they are whole and of this file; return whether some are kept."""
        mark = self.folder / "about.json"
        is_ours = mark.is_file() and mark.read_bytes() == self.about.encode()
        if not is_ours:
            remove(mark)
        for path in self.folder.glob("*.safetensors"):
            if not (is_ours and _is_whole(path)):
                remove(path)
        replace_text(mark, self.about)
        return self.some()

    def path(self, number: int) -> Path:
        """Return the file of a piece."""
        return self.folder / f"{number:06d}.safetensors"

    def add(self, number: int, piece: Piece) -> None:
        """Write a piece."""
        about = {"lines": json.dumps(piece.lines), "problems": json.dumps(piece.problems)}
        tensors = {} if piece.features is None else {"features": piece.features.contiguous()}
        replace_tensors(self.path(number), tensors, about)

    def read(self, number: int, words_alone: bool = False) -> Piece:
        """Return a piece."""
        from safetensors import safe_open

        with safe_open(self.path(number), framework="pt") as file:
            about = file.metadata()
            some = "features" in file.keys() and not words_alone  # noqa: SIM118, it is no mapping
            features = file.get_tensor("features") if some else None
        return Piece(json.loads(about["lines"]), features, json.loads(about["problems"]))

    def some(self) -> bool:
        """Return whether there are pieces."""
        return any(self.folder.glob("*.safetensors"))

    def tidy(self) -> None:
        """Remove the folder where it holds no piece."""
        if is_main() and not self.some():
            self.remove()

    def remove(self) -> None:
        """Remove all pieces."""
        remove_folder(self.folder)


def _is_whole(path: Path) -> bool:
    """Return whether a piece has the length that it says it has; a machine that loses power may cut it off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {"lines", "problems"} <= (file.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return False


def stacked(parts: Sequence[Tensor]) -> Tensor | None:
    """Return tensors one below the other, None without any."""
    return torch.cat([*parts]) if parts else None
