"""The columns of the table: each returns what differs, nothing where all is right.

What is compared with one process is traced before the ranks join and after they have left; every rank does so.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from multissl.contract.learning import Progress
from multissl.devices import copied
from multissl.engine.batches import StepBatches
from multissl.parallel.collectives import all_true, broadcast_object
from multissl.parallel.ranks import process_group, world
from multissl.verify.cases import BATCH, Case, make
from multissl.verify.traces import Run, Trace, differences, trace

CHUNK = 3
"""Samples of a chunk: one that divides nothing."""
HALF = 5e-2
"""Relative difference of a loss in bfloat16: rounding, a nearest neighbor or a low temperature included."""
ALONE, TOGETHER, AFTER = "alone", "together", "after"


@dataclass(slots=True)
class Findings:
    """What the checks know of one case."""

    case: Case
    device: torch.device
    folder: Path
    """For checkpoints; all processes see it."""
    reference: Trace = field(default_factory=dict)
    """Of one process."""
    problems: dict[str, str] = field(default_factory=dict)
    """By column: the first difference, "" where there is none."""


def repeated(it: Findings) -> list[str]:
    """Compare a run with itself, to the digit."""
    learner, modality = make(it.case, device=it.device)
    return differences(trace(learner, modality, it.device), it.reference, limit=0.0)


def chunked(it: Findings) -> list[str]:
    """Compare a batch that is encoded a few samples at a time with the whole one."""
    learner, modality = make(it.case, CHUNK, it.device)
    return differences(trace(learner, modality, it.device), it.reference)


def half(it: Findings) -> list[str]:
    """Compare the loss of a forward pass under bfloat16 autocast with that in single precision."""
    totals = []
    for narrow in (False, True):
        learner, modality = make(it.case, device=it.device)
        learner.float().train()
        data = StepBatches(modality, learner.objective.plans(), BATCH, 0, 0, 1, final=False)
        batch = data.views(copied(data[0][0], it.device), 0, it.device)
        torch.manual_seed(0)
        with torch.autocast(it.device.type, torch.bfloat16, enabled=narrow):
            losses = learner(batch, Progress(step=0, total=10, epoch_steps=1))
        totals.append(losses.total.detach())
    wide, narrow_total = totals
    if narrow_total.dtype != torch.float32:
        return [f"the loss is {narrow_total.dtype} under autocast, want float32"]
    worst = (narrow_total - wide).abs().item()
    fine = worst <= HALF * max(1.0, wide.abs().item())
    return [] if fine else [f"loss: {narrow_total.item():.4g} in bfloat16, {wide.item():.4g} in float32"]


def ranks(it: Findings) -> list[str]:
    """Compare ranks with different data with one process."""
    learner, modality = make(it.case, device=it.device)
    return differences(trace(learner, modality, it.device), it.reference)


def sharded(it: Findings) -> list[str]:
    """Compare a run whose parameters, gradients and teacher are shards with one process."""
    learner, modality = make(it.case, device=it.device)
    return differences(trace(learner, modality, it.device, sharded=True), it.reference)


def uninterrupted(it: Findings) -> Trace:
    """Return the state after two steps that nothing interrupted."""
    run = Run(it.case, it.device)
    run.make_step(0)
    run.make_step(1)
    return run.state()


def resumed(it: Findings) -> list[str]:
    """Compare a run that goes on from a checkpoint with one that nothing interrupted, to the digit."""
    first = Run(it.case, it.device)
    first.make_step(0)
    first.save(it.folder, 1)
    again = Run(it.case, it.device)
    again.load(it.folder)
    again.make_step(1)
    return differences(again.state(), uninterrupted(it), limit=0.0)


def moved(it: Findings) -> list[str]:
    """Compare a run that goes on, on one process, from the ranks' checkpoint with one that nothing interrupted."""
    again = Run(it.case, it.device)
    again.load(it.folder)
    again.make_step(1)
    # where a gradient is rounding alone, AdamW makes of it a step of up to eps of its rate, 1e-3
    return differences(again.state(), uninterrupted(it), smallest=1e-8)


CHECKS: dict[str, tuple[str, Callable[[Findings], list[str]]]] = {
    "repeated": (ALONE, repeated),
    "chunked": (ALONE, chunked),
    "half": (ALONE, half),
    "ranks": (TOGETHER, ranks),
    "sharded": (TOGETHER, sharded),
    "resumed": (TOGETHER, resumed),
    "moved": (AFTER, moved),
}
"""By the column's name: when it runs, and what it is."""
SEVERAL = ("ranks", "sharded")
"""What one process has nothing to compare with."""


def attempt(check: Callable[[Findings], list[str]], it: Findings) -> str:
    """Return what a check finds first, or its error: one broken objective must not hide the others."""
    try:
        return "; ".join(check(it)[:3])
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip()


def reference(it: Findings) -> list[str]:
    """Trace one process, which everything is compared with."""
    learner, modality = make(it.case, device=it.device)
    it.reference = trace(learner, modality, it.device)
    return []


def run_checks(
    chosen: Sequence[Case], device: torch.device, folder: Path, say: Callable[[str], None]
) -> list[Findings]:
    """Return the findings of cases, the same on every rank; called where no ranks have joined yet."""
    everything = [Findings(case, device, folder / f"{case.objective}-{case.modality}") for case in chosen]
    for it in everything:
        say(f"{it.case.objective} on {it.case.modality}, one process")
        if problem := attempt(reference, it):
            it.problems = dict.fromkeys(CHECKS, problem)
        else:
            _run(it, ALONE)
    with process_group():
        for it in everything:
            if broadcast_object(bool(it.reference)):
                say(f"{it.case.objective} on {it.case.modality}, {world()} processes")
                _run(it, TOGETHER)
            it.problems = {name: agreed(problem, it.device) for name, problem in it.problems.items()}
    for it in everything:
        if it.reference:
            _run(it, AFTER)
    return everything


def _run(it: Findings, now: str) -> None:
    for name, (when, check) in CHECKS.items():
        if when == now and (world() > 1 or name not in SEVERAL):
            it.problems[name] = attempt(check, it)


def agreed(problem: str, device: torch.device) -> str:
    """Return what this rank found, else that another one found something."""
    fine = all_true(torch.tensor([not problem], device=device)).item()
    return problem or ("" if fine else "another rank differs")
