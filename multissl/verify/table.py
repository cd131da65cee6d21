"""`multissl verify`: starts the processes, runs the checks on each, prints the table."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from multissl import registry
from multissl.files import replace_text
from multissl.verify.cases import cases
from multissl.verify.checks import CHECKS, Findings, run_checks

MOST = 8
"""Processes: each takes an equal part of the 16 samples of a step."""


def verify(objectives: Sequence[str], processes: int, folder: str = "") -> int:
    """Run all checks on so many processes, or on those that torchrun or SLURM started; return the exit code.

    0 where every figure is right, 1 where one is not. `folder` holds checkpoints, and has to be seen by all nodes.
    """
    for name in objectives:
        registry.resolve(name, "objectives")
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return on_a_rank(objectives, folder)
    if processes not in (1, 2, 4, 8):
        raise ValueError(
            f"--processes {processes}: want 1, 2, 4 or 8, as they share the {2 * MOST} samples of a step"
        )
    with tempfile.TemporaryDirectory() as own:
        words = ["verify", *objectives, "--folder", folder or own]
        if processes == 1:
            return on_a_rank(objectives, folder or own)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        # a red row is no crash: the launcher would print the traceback of one
        code = Path(own) / "code"
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "multissl", *words],
            env=environment | {RESULT: str(code)}, check=False,
        )  # fmt: skip
        return done.returncode or int(code.read_text())


RESULT = "MULTISSL_VERIFY_RESULT"
"""The variable that names the file into which the first rank writes the exit code, where a launcher stands between."""


def on_a_rank(objectives: Sequence[str], folder: str) -> int:
    """Run the checks as one of the processes; the first one prints the table."""
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if not folder:
        raise ValueError(
            "verify under a launcher wants a folder for checkpoints that all processes see: --folder PATH"
        )
    chosen, reasons = cases(objectives)
    for name, reason in reasons.items() if first else ():
        print(f"{name} runs on none of the small modalities: {reason}", file=sys.stderr)

    def say(text: str) -> None:
        if first:
            print(text, file=sys.stderr, flush=True)

    findings = run_checks(chosen, device, Path(folder), say)
    wrong = any(it.problems[name] for it in findings for name in it.problems) or bool(objectives and reasons)
    code = int(wrong)
    if first:
        print(as_text(findings))
        if path := os.environ.get(RESULT):
            replace_text(Path(path), str(code))
            return 0
    return 0 if os.environ.get(RESULT) else code


def as_text(findings: Sequence[Findings]) -> str:
    """Return the table, and below it what is wrong."""
    width = max((len(f"{it.case.objective} {it.case.modality}") for it in findings), default=0) + 2
    lines = [" " * width + "  ".join(f"{name:<8}" for name in CHECKS)]
    wrong = []
    for it in findings:
        marks = {None: "-", "": "right"}
        cells = [f"{marks.get(it.problems.get(name), 'WRONG'):<8}" for name in CHECKS]
        lines.append(f"{it.case.objective} {it.case.modality}".ljust(width) + "  ".join(cells).rstrip())
        wrong += [
            f"{it.case.objective}, {name}: {problem}" for name, problem in it.problems.items() if problem
        ]
    count = sum(bool(problem) for it in findings for problem in it.problems.values())
    total = sum(len(it.problems) for it in findings)
    summary = f"{total - count} of {total} comparisons are right"
    return "\n".join([*lines, *(["", *wrong] if wrong else []), "", summary])
