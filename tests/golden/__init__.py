"""Reads golden cases: inputs and outputs of other projects' code, compared with ours at the stated tolerance.

A part of the cases lies in `cases`: the smallest ones, and none whose source is under a non-commercial license or one
of its own (`cases/NOTICE.md`). The whole folder is named by MULTISSL_GOLDEN, by default `shared/golden` beside the
checkout; where it exists, all cases come from it. What lies in neither place skips with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.helpers.ranks import run_ranks

CASES = Path(__file__).parent / "cases"
WHOLE = Path(os.environ.get("MULTISSL_GOLDEN") or Path(__file__).parents[2].parent / "shared" / "golden")
FOLDER = WHOLE if (WHOLE / "manifest.json").is_file() else CASES


class Hyper(dict[str, Any]):
    """The hyperparameters of a case, and which of them were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@dataclass
class Case:
    """One case of a variant: tensors by role ("in", "param", "out", "grad") and name."""

    id: str
    variant: str
    hyper: Hyper
    rtol: float | None
    fp32_noise: float | None
    manifest: dict[str, Any]
    family: str

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Return fresh copies of the tensors of a role."""
        entries = self.manifest["tensors"].get(role, {})
        keys = {name: entry.get("key", f"{self.id}/{role}/{name}") for name, entry in entries.items()}
        values: dict[str, Tensor] = {}
        for path in find_files(self.family):
            with safe_open(path, "pt") as file:
                here = set(file.keys())
                values |= {name: file.get_tensor(key).clone() for name, key in keys.items() if key in here}
        assert values.keys() == keys.keys(), f"{self.id}: {keys.keys() - values.keys()} are in no file"
        return {name: values[name] for name in keys}

    def check(self, actual: Tensor | None, role: str, name: str) -> None:
        """Compare with a stored tensor: max|a-b| <= rtol * max|b| + 1e-7 (float32) or 1e-12 (float64).

        A case of several sources may lack what one of them computed, and names it: only the whole folder has that.
        """
        if f"{role}/{name}" not in self.manifest.get("left_out", ()):
            close(actual, self.tensors(role)[name], self.rtol or 0.0, f"{self.id}/{role}/{name}")


def close(actual: Tensor | None, expected: Tensor, rtol: float, what: str) -> None:
    """Compare as `Case.check` says; integers and booleans must match exactly."""
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
    """Return the manifest of the folder that cases come from."""
    return json.loads((FOLDER / "manifest.json").read_text())


def find_files(family: str) -> list[Path]:
    """Return the files of a family: one, or several where it is large."""
    entry = manifest()["families"][family]
    return [FOLDER / name for name in entry.get("files") or [entry["file"]]]


def cases(family: str, variant: str) -> list[Any]:
    """Return the cases of a variant as pytest parameters; one skipped parameter where there are none."""
    entries = manifest()["families"].get(family, {"cases": []})["cases"]
    picked = [c for c in entries if c["variant"] == variant]
    if not picked:
        return [pytest.param(None, id=variant, marks=pytest.mark.skip(reason=why_absent(family, variant)))]
    return [
        pytest.param(
            Case(c["id"], variant, Hyper(c["hyper"]), c["rtol"], c.get("fp32_noise"), c, family), id=c["id"]
        )
        for c in picked
    ]


def why_absent(family: str, variant: str) -> str:
    """Return why a variant has no cases here, and what to do; in the repository there must be a reason."""
    if FOLDER != CASES:
        return f"no {family}/{variant} in {FOLDER}"
    if variant in manifest().get("whole_alone", {}).get(family, ()):
        return f"{family}/{variant} is in the whole folder alone, which MULTISSL_GOLDEN names"
    sources = " and ".join(manifest()["left_out"][family][variant])
    return (
        f"{family}/{variant} is not in the repository: the license of {sources} is non-commercial or its own; "
        "set MULTISSL_GOLDEN to the whole folder"
    )


def cases_of(family: str, variants: Iterable[str]) -> list[Any]:
    """Return the cases of several variants as pytest parameters."""
    return [parameter for variant in variants for parameter in cases(family, variant)]


def run_on_ranks(count: int, function: Callable[..., Any], parameters: list[Any]) -> dict[str, list[Any]]:
    """Return what each of `count` processes makes of every case of so many processes, by the case's id.

    `function(rank, work)` returns a list, one entry per (variant, options, inputs) of `work`.
    """
    picked = [
        c for p in parameters if (c := p.values[0]) is not None and c.hyper.get("world", count) == count
    ]
    work = [(c.variant, c.hyper, c.tensors("in")) for c in picked]
    results = run_ranks(count, with_what_is_read, function, work)
    for _, names in results:
        for case, read in zip(picked, names, strict=True):
            case.hyper.read |= read
    return {case.id: [values[i] for values, _ in results] for i, case in enumerate(picked)}


def with_what_is_read(
    rank: int, function: Callable[..., Any], work: list[tuple[str, Hyper, dict[str, Tensor]]]
) -> tuple[list[Any], list[set[str]]]:
    """Return what a process makes of every case, and which hyperparameters of each it reads."""
    values = function(rank, work)
    return values, [hyper.read for _, hyper, _ in work]
