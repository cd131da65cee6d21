"""What the loss over prototypes costs, in bytes and in time, beside the plain matrix form it stands for.

    python -m benchmarks.sinkhorn                 # 512 rows, 65,536 prototypes; two minutes on two cores
    python -m benchmarks.sinkhorn --prototypes 131072

Three forms of Sinkhorn's targets and of the cross entropy with its gradient: the matrix form as it is printed (the
targets are a matrix, the loss a log softmax times it), ours compiled, and ours as written, which a CPU trains with.
Bytes are counted by the rule of `launches`, which needs no GPU. Times are medians of five calls on the machine at hand,
side by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.launches import count
from benchmarks.lowering import META
from multissl.losses.sinkhorn import sinkhorn
from multissl.losses.targets import Targets, cross_entropy
from multissl.parallel.compiling import choose

STUDENT, TEACHER = 0.1, 0.07


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    """Let functions of the loss run compiled, or as written, for a `with`."""
    choose(on)
    try:
        yield
    finally:
        choose(None)


def seconds(work: Callable[[], Any], times: int = 5) -> float:
    """Return the median duration of a call."""
    work()

    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return median(once() for _ in range(times))


def matrix_targets(logits: Tensor) -> Tensor:
    """Sinkhorn-Knopp as it is printed (Caron et al. 2020, algorithm 1): [M, K]."""
    q = (logits.float() / TEACHER).exp().t()  # [K, M]
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= len(q)
        q /= q.sum(0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).t()


@dataclass
class Cost:
    """What one form costs."""

    bytes: float
    """Per logit."""
    seconds: float


@dataclass
class Case:
    """Logits of a teacher and a student [M, K] in bf16, and the forms of what is made of them."""

    teacher: Tensor
    student: Tensor

    def targets(self) -> Targets:
        """Return ours."""
        return sinkhorn(self.teacher, TEACHER)

    def loss(self, targets: Targets) -> Tensor:
        """Return the gradient of ours."""
        student = self.student.detach().requires_grad_()
        rows = torch.arange(len(student), device=student.device)[:, None]
        cross_entropy(student, targets, rows, STUDENT).mean().backward()
        assert student.grad is not None
        return student.grad

    def matrix_loss(self, q: Tensor) -> Tensor:
        """Return the gradient of the printed form."""
        student = self.student.detach().requires_grad_()
        (-(q * (student.float() / STUDENT).log_softmax(-1)).sum(-1)).mean().backward()
        assert student.grad is not None
        return student.grad


def forms(case: Case) -> dict[str, tuple[bool, Callable[[], Any]]]:
    """Return whether each form is compiled, and a call of it, by its name."""
    targets, q = case.targets(), matrix_targets(case.teacher).contiguous()
    return {
        "targets, matrix form": (False, lambda: matrix_targets(case.teacher)),
        "targets, compiled": (True, case.targets),
        "targets, as written": (False, case.targets),
        "loss and gradient, matrix form": (False, lambda: case.matrix_loss(q)),
        "loss and gradient, compiled": (True, lambda: case.loss(targets)),
        "loss and gradient, as written": (False, lambda: case.loss(targets)),
    }


def measure(rows: int, prototypes: int, timed: bool = True) -> dict[str, Cost]:
    """Return the cost of each form by its name."""
    noise = torch.Generator().manual_seed(0)
    here = Case(*(torch.randn(rows, prototypes, generator=noise).bfloat16() for _ in range(2)))
    there = Case(*(torch.empty(rows, prototypes, dtype=torch.bfloat16, device=META) for _ in range(2)))
    works = forms(here)
    costs: dict[str, Cost] = {}
    for name, (on, counted) in forms(there).items():
        with compiled(on):
            size = count(counted, backward=True).bytes
            costs[name] = Cost(size / (rows * prototypes), seconds(works[name][1]) if timed else 0.0)
    return costs


def main() -> None:
    """Print a line per form, and the ratios to the matrix form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prototypes", type=int, default=65_536)
    options = parser.parse_args()
    costs = measure(options.rows, options.prototypes)
    print(f"{options.rows} rows, {options.prototypes} prototypes, bf16, {torch.get_num_threads()} threads")
    for name, cost in costs.items():
        plain = costs[name.split(",")[0] + ", matrix form"]
        ratios = (
            f"{cost.bytes / plain.bytes:6.1%} of its bytes, {plain.seconds / cost.seconds:5.1f} x as fast"
        )
        print(f"{name:32s} {cost.bytes:6.1f} bytes a logit {1e3 * cost.seconds:8.1f} ms   {ratios}")


if __name__ == "__main__":
    main()
