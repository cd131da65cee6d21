"""A module as a program of torch.export, which `onnx` and `torch.export` write: any batch, any size that it reads."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from multissl.contract.preparation import FreeAxis
from multissl.exporting.base import Subject


def program_of(subject: Subject) -> ExportedProgram:
    """Return the program of the module; raises a ValueError that names what cannot be traced."""
    module, inputs = subject.module, subject.module.preparation.example(3)
    shapes = shapes_of(inputs, module.preparation.free_axes if subject.reads_other_sizes() else ())
    named: dict[str, Any] = dict(zip(("x", "mask"), shapes, strict=False))
    with quiet(), torch.no_grad():
        try:
            return export(module, inputs, dynamic_shapes=named, strict=False)
        except Exception as error:  # it raises almost anything, of many lines
            reason = " ".join(str(error).split())[:400]
            kind = type(subject.encoder).__name__
            raise ValueError(
                f"{kind} cannot be traced for all sizes of batch ({type(error).__name__}: {reason}): take --to "
                "safetensors, or an encoder whose forward asks nothing of its values"
            ) from None


def shapes_of(inputs: tuple[Tensor, ...], free: tuple[FreeAxis, ...]) -> list[dict[int, Any]]:
    """Return which axes of the inputs may have which lengths: the batch, and the free ones."""
    axes: dict[int, Any] = {0: Dim("batch", min=1)}
    for each in free:
        least, most = max(each.least // each.step, 1), each.most // each.step if each.most else None
        count = Dim(each.name, min=least, max=most)
        axes[each.axis] = each.step * count if each.step > 1 else count
    return [dict(axes) for _ in inputs]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's notes to its own developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
