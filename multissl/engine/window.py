"""What is logged of the steps since the last line: means of their metrics, and what they cost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.learning import Losses, Progress
from multissl.engine.flops import Blueprint, StepFlops, peak, power
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world


class Window:
    """Means over the steps since the last log line that have a value; stays on the device until it is read."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}
        """By the names of the metrics that some steps have: their sums over the steps that counted, and how many."""
        self.lr, self.waited, self.samples = 0.0, 0.0, 0
        self.since, self.paused = time.perf_counter(), 0.0

    def add(
        self,
        losses: Losses,
        norms: Mapping[str, Tensor],
        *,
        lr: float,
        waited: float,
        samples: int,
        counted: Tensor | None = None,
    ) -> None:
        """Add a step; its metrics only where it counted, bool []."""
        values = {"loss": losses.total.detach()}
        values |= {f"terms/{n}": v for n, v in losses.terms.items()}
        values |= {f"stats/{n}": v for n, v in losses.stats.items()}
        values |= {f"gradient_norm/{n}": v for n, v in norms.items()} if len(norms) < 16 else {}
        numbers = torch.stack([v.detach().float() for v in (*values.values(), torch.ones_like(losses.total))])
        if counted is not None:
            numbers = torch.where(counted, numbers, 0.0)
        names = tuple(values)
        self.sums[names] = self.sums[names] + numbers if names in self.sums else numbers
        self.lr, self.waited, self.samples = lr, self.waited + waited, self.samples + samples

    def summary(self) -> dict[str, float]:
        """Return the means over steps and ranks, and what the steps cost; waits for the device. Every rank calls it."""
        totals: dict[str, float] = defaultdict(float)
        steps: dict[str, float] = defaultdict(float)
        summed = sum_ranks(torch.cat([*self.sums.values()])).tolist() if self.sums else []
        for names, numbers in self.sums.items():
            mine, summed = summed[: len(numbers)], summed[len(numbers) :]
            for name, value in zip(names, mine, strict=False):  # the last one counts the steps
                totals[name] += value
                steps[name] += mine[-1]
        seconds = max(time.perf_counter() - self.since - self.paused, 1e-9)
        costs = {"lr": self.lr, "samples_per_s": self.samples / seconds}
        costs["waiting_percent"] = 100 * min(1.0, self.waited / seconds)
        return {name: total / steps[name] for name, total in totals.items() if steps[name]} | costs


class Rates:
    """What a run costs so far and at the moment: samples, operations a second, share of the peak, energy."""

    def __init__(self, blueprint: Blueprint | None, batch_size: int, device: torch.device) -> None:
        self.blueprint, self.batch_size, self.device = blueprint, batch_size, device
        self.peak = peak(device)
        self.flops: StepFlops | None = None
        """Of a sample."""

    def count(self, batch: Batch, progress: Progress) -> str:
        """Count the operations of this rank's part of a batch, once; return why that cannot be done, or nothing."""
        if self.blueprint is None:
            return ""
        rows = self.batch_size // world()
        try:
            step = self.blueprint.count(batch, progress)
        except Exception as error:  # an objective may do with its tensors what needs their numbers
            reason = (str(error).strip().splitlines() or [""])[0]
            return f"operations of a step are not counted: {type(error).__name__} {reason}"
        finally:
            self.blueprint = None  # a model's worth of names is no longer needed
        self.flops = StepFlops(step.executed / rows, step.nominal / rows)
        return ""

    def metrics(self, step: int, samples_per_s: float) -> dict[str, float]:
        """Return them after a step, at a rate of samples of all ranks."""
        metrics: dict[str, float] = {"samples": step * self.batch_size}
        if self.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.flops:
            metrics["tflops"] = samples_per_s * self.flops.executed / 1e12
            metrics["nominal_tflops"] = samples_per_s * self.flops.nominal / 1e12
            if self.peak:
                whole = self.peak * world() / 1e12
                metrics["utilization_percent"] = 100 * metrics["tflops"] / whole
                metrics["nominal_utilization_percent"] = 100 * metrics["nominal_tflops"] / whole
        if (watts := power(self.device)) is not None:
            metrics["watts"] = watts
            metrics["joules_per_sample"] = watts * world() / max(samples_per_s, 1e-9)
        return metrics
