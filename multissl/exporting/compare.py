"""Does another program give the features of the original? Its lines run in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from multissl.exporting.base import Exporter, Subject
from multissl.files import replace_tensors

TOLERANCE = 1e-4
"""Largest difference of a feature, relative to the largest feature, in fp32."""
SECONDS = 600
ALONE = {"HF_HUB_OFFLINE": "1"}
"""The other program is to read files, and to ask no hub."""
RUN = """

import sys
from safetensors.numpy import load_file, save_file

cases = load_file(sys.argv[1])
features = {}
for number in sorted({name.split()[0] for name in cases}):
    arrays = [cases[name] for name in sorted(cases) if name.split()[0] == number]
    features[number] = encode(*arrays).astype("float32").copy()
save_file(features, sys.argv[2])
"""
"""What is run behind the lines of a target."""


class Differs(ValueError):
    """An exported model is not the original."""


def compare(exporter: Exporter, subject: Subject, folder: Path) -> float:
    """Return the largest relative difference of features; raises a `Differs` where it is too large, or nothing runs."""
    cases = exporter.cases(subject)
    with torch.no_grad():
        expected = [subject.module(*inputs) for inputs in cases]
    found = features_of(exporter.code(subject, folder), cases)
    worst = 0.0
    for inputs, mine, other in zip(cases, expected, found, strict=True):
        shapes = f"inputs of {', '.join(str(tuple(x.shape)) for x in inputs)}"
        if other.shape != mine.shape:
            raise Differs(f"gives {tuple(other.shape)} for {shapes}, the original {tuple(mine.shape)}")
        difference = float((other - mine).abs().max() / mine.abs().max().clamp(min=1e-12))
        if not difference <= TOLERANCE:
            raise Differs(
                f"its features differ by {difference:.1e} for {shapes}, the limit is {TOLERANCE:.0e}"
            )
        worst = max(worst, difference)
    return worst


def features_of(code: str, cases: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Return what lines that define `encode` make of inputs, in a process of their own."""
    tensors = {f"{n:03} {i}": x.contiguous() for n, inputs in enumerate(cases) for i, x in enumerate(inputs)}
    with tempfile.TemporaryDirectory() as place:
        inputs, outputs = Path(place) / "inputs.safetensors", Path(place) / "features.safetensors"
        replace_tensors(inputs, tensors)
        command = [sys.executable, "-c", code + RUN, str(inputs), str(outputs)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=SECONDS, env=os.environ | ALONE
            )
        except subprocess.TimeoutExpired:
            raise Differs(f"was not read within {SECONDS} seconds") from None
        if ended.returncode or not outputs.is_file():
            last = [line for line in ended.stderr.splitlines() if line.strip()][-1:]
            raise Differs(f"cannot be read ({last[0] if last else f'code {ended.returncode}'})")
        from safetensors.torch import load_file

        return list(load_file(outputs).values())
