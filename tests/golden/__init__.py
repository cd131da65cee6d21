"""Reads golden cases: inputs and outputs of other projects' code, compared with ours at the stated tolerance.

The folder is named by MULTISSL_GOLDEN (default: ../shared/golden); without it these tests skip, visibly.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(os.environ.get("MULTISSL_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
needs_golden = pytest.mark.skipif(
    not (FOLDER / "manifest.json").is_file(), reason=f"no golden folder at {FOLDER}"
)


@dataclass
class Case:
    """One case of a variant: tensors by role ("in", "param", "out", "grad") and name."""

    id: str
    variant: str
    hyper: dict[str, Any]
    rtol: float | None
    fp32_noise: float | None
    manifest: dict[str, Any]
    file: str

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Fresh copies of the tensors of a role."""
        found = self.manifest["tensors"].get(role, {})
        with safe_open(FOLDER / self.file, "pt") as f:
            return {n: f.get_tensor(m.get("key", f"{self.id}/{role}/{n}")).clone() for n, m in found.items()}

    def check(self, actual: Tensor | None, role: str, name: str) -> None:
        """Compare with a stored tensor: max|a-b| <= rtol * max|b| + 1e-7 (float32) or 1e-12 (float64)."""
        close(actual, self.tensors(role)[name], self.rtol or 0.0, f"{self.id}/{role}/{name}")


def close(actual: Tensor | None, expected: Tensor, rtol: float, what: str) -> None:
    """The comparison of the golden README; integers and booleans must match exactly."""
    if actual is None:
        assert not expected.any(), f"{what}: no gradient, expected one"
        return
    actual = actual.detach()
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), f"{what}: differs"
        return
    floor = 1e-12 if expected.dtype == torch.float64 else 1e-7
    worst = (actual.to(expected.dtype) - expected).abs().max().item() if expected.numel() else 0.0
    bound = rtol * (expected.abs().max().item() if expected.numel() else 0.0) + floor
    assert worst <= bound, f"{what}: off by {worst:.3g}, allowed {bound:.3g}"


@cache
def manifest() -> dict[str, Any]:
    """The manifest, or an empty one where the folder is absent."""
    path = FOLDER / "manifest.json"
    return json.loads(path.read_text()) if path.is_file() else {"families": {}}


def cases(family: str, variant: str) -> list[Any]:
    """The cases of a variant as pytest parameters; one skipped parameter where there are none."""
    found = manifest()["families"].get(family)
    picked = [c for c in found["cases"] if c["variant"] == variant] if found else []
    if not found or not picked:
        return [
            pytest.param(
                None, id="absent", marks=pytest.mark.skip(reason=f"no {family}/{variant} in {FOLDER}")
            )
        ]
    return [
        pytest.param(
            Case(c["id"], variant, c["hyper"], c["rtol"], c.get("fp32_noise"), c, found["file"]), id=c["id"]
        )
        for c in picked
    ]
