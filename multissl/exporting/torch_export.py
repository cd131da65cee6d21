"""A program that torch alone runs: `torch.export.load`, without a class of ours or of anybody."""

from __future__ import annotations

from pathlib import Path

import torch

from multissl.exporting.base import Exporter, Subject
from multissl.exporting.programs import program_of, quiet

CODE = """\
import torch

program = torch.export.load({path!r}).module()


def encode(*arrays):
    with torch.no_grad():
        return program(*(torch.from_numpy(array) for array in arrays)).numpy()
"""


class TorchExport(Exporter):
    """One file, model.pt2."""

    name = "torch.export"
    reads = "torch.export.load"
    file = "model.pt2"

    def check(self, subject: Subject) -> None:
        """Accept every encoder; what cannot be traced is refused as it is written."""

    def write(self, subject: Subject, folder: Path) -> None:
        """Trace and save."""
        program = program_of(subject)
        with quiet():
            torch.export.save(program, folder / self.file)

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that load the program."""
        return CODE.format(path=str(folder / self.file))
