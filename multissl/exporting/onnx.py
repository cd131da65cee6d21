"""ONNX, by torch's own exporter of programs; read by onnxruntime and others, without torch."""

from __future__ import annotations

from pathlib import Path

import torch

from multissl.exporting.base import Exporter, Subject
from multissl.exporting.programs import program_of, quiet
from multissl.registry import require

CODE = """\
import onnxruntime

session = onnxruntime.InferenceSession({path!r})
names = [each.name for each in session.get_inputs()]


def encode(*arrays):
    return session.run(["features"], dict(zip(names, arrays)))[0]
"""


class ONNX(Exporter):
    """One file, model.onnx; weights beyond 2 GB lie in a second one beside it."""

    name = "onnx"
    reads = "onnxruntime"
    file = "model.onnx"

    def check(self, subject: Subject) -> None:
        """Ask for the packages."""
        require("onnx")
        require("onnxscript")
        require("onnxruntime")

    def write(self, subject: Subject, folder: Path) -> None:
        """Trace, translate and save."""
        program = program_of(subject)
        with quiet():
            translated = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["features"])
            assert translated is not None
            translated.save(folder / self.file)

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that open a session."""
        return CODE.format(path=str(folder / self.file))
