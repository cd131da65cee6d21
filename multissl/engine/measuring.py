"""What evaluators measure of a learner while it is trained: who is due, who is affordable, what was measured so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from multissl.contract.data import Views
from multissl.contract.decision import GO_ON, Decision, joined
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking
from multissl.engine.best import BestStep, best_step, patience_over
from multissl.engine.judging import alarms, decided
from multissl.engine.learner import Learner
from multissl.engine.loop import Loop
from multissl.engine.mixture import Mixture
from multissl.parallel.collectives import broadcast_object
from multissl.registry import suggest


class Measuring:
    """The evaluators of a run, and their figures so far."""

    def __init__(
        self, cfg: Loop, evaluators: Mapping[str, Evaluator], learner: Learner, modality: Modality,
        device: torch.device, say: Callable[[str], None], agree: Callable[[], None],
    ) -> None:  # fmt: skip
        """`agree` ends what is measured, on all ranks at the same place, where a signal has reached one of them."""
        self.cfg, self.evaluators, self.learner, self.modality = cfg, evaluators, learner, modality
        self.device, self.say, self.agree = device, say, agree
        self.epoch_steps = len(modality.dataset("train")) / cfg.batch_size
        self.lines: list[dict[str, Any]] = []
        """The figures of every step at which something was measured."""
        self.worries: list[str] = []
        """What evaluators find wrong as of the last figures."""
        self.decision: Decision = GO_ON
        """What the figures so far ask of the training, the same on all ranks."""
        self.best: BestStep | None = None
        """The best step so far by `figure`, the same on all ranks."""
        self.figure = cfg.best.named(evaluators)
        """By which steps are compared; "" for none."""
        self.mixture: Mixture | None = None
        """What the run would ship at its start, where an evaluator may ask for a share of the training."""
        if self.figure and (mixing := [name for name, e in evaluators.items() if e.mixes]):
            raise ValueError(
                f"best.figure={cfg.best.figure}: evals.{mixing[0]} chooses the share of the training that is shipped "
                "and measured, while a checkpoint holds all of what was trained: leave --best.figure out, or "
                f"give --evals.{mixing[0]}.action another value"
            )
        self.seconds: dict[str, float] = {}
        """That evaluators took last, by name."""
        self.left_out: set[str] = set()
        """Evaluators of which was said that they take too long."""

    @property
    def best_at(self) -> int:
        """Return the best step so far, 0 for none."""
        return self.best.step if self.best else 0

    def remember(self, lines: list[dict[str, Any]]) -> None:
        """Take figures as those so far; called on all ranks, of which the first one's count."""
        self.lines = lines
        self.worries = alarms(self.evaluators, lines)
        self.decision, self.best = self.judged(lines)

    def judged(self, lines: list[dict[str, Any]]) -> tuple[Decision, BestStep | None]:
        """Return what figures ask of the training, and the best step among them."""
        best = best_step(lines, self.figure, self.cfg.best.lower)
        asked = [decided(self.evaluators, lines), patience_over(best, self.cfg.best, self.figure)]
        return broadcast_object((joined(asked), best))

    def begin(self) -> None:
        """Show evaluators the encoders as the run starts with them."""
        if any(evaluator.mixes for evaluator in self.evaluators.values()):
            self.mixture = Mixture(self.learner.shipped())
        exported = self._exported()
        for evaluator in self.evaluators.values():
            evaluator.begin(exported, self.modality)

    def mixed(self, share: float) -> AbstractContextManager[None]:
        """Return within what the encoders have this share of the training, where an evaluator may ask for one."""
        return self.mixture.within(self.learner.shipped(), share) if self.mixture else nullcontext()

    def shipping(self) -> AbstractContextManager[None]:
        """Return within what the encoders are those to be shipped, as of the figures so far."""
        return self.mixed(self.decision.share)

    def _exported(self) -> FrozenEncoders:
        """Return what the run would ship as it is now, in evaluation mode."""
        self.learner.eval()
        exported = self._agreeing(self.learner.frozen("exported", self.device))
        exported.mixed = self.mixed if self.mixture else None
        return exported

    def due(self, step: int, first: bool = False, last: bool = False) -> dict[str, Evaluator]:
        """Return the evaluators that measure after `step` steps."""
        return {
            name: e for name, e in self.evaluators.items()
            if first or last or (e.cfg.every and step % e.cfg.every == 0)
        }  # fmt: skip

    def _affordable(self, due: Mapping[str, Evaluator]) -> dict[str, Evaluator]:
        """Return those that fit into `eval_seconds` together, by how long they took last; say which do not.

        The learning may depend on what some find, and never on a clock: these are measured in any case.
        """
        budget, chosen = self.cfg.eval_seconds, dict[str, Evaluator]()
        seconds = broadcast_object(self.seconds)
        for name, evaluator in due.items():
            watched = evaluator.decides or self.figure.startswith(f"{name}/")
            if watched or sum(seconds[n] for n in [*chosen, name] if n in seconds) <= budget:
                chosen[name] = evaluator
            elif name not in self.left_out:
                self.left_out.add(name)
                self.say(
                    f"{name} took {seconds[name]:.0f} s last and goes over eval_seconds={budget:g}: it is left out "
                    "until the last step"
                )
        return chosen

    def measured(self, step: int, first: bool = False, last: bool = False) -> dict[str, float]:
        """Return what the evaluators that are due measure; all of them where these ask for the end of the run."""
        due = self.due(step, first=first, last=last)
        if self.cfg.eval_seconds and not first and not last:
            due = self._affordable(due)
        metrics = self._measured_by(due, step, first) if due else {}
        regular = metrics and not first and not last
        if regular and self.judged([*self.lines, line_of(step, metrics)])[0].stop:
            rest = {n: e for n, e in self.evaluators.items() if n not in due}
            metrics |= self._measured_by(rest, step)
        return metrics

    def lost(self, step: int, metrics: Mapping[str, float], last: bool = False) -> str:
        """Return what to say where the figure by which steps are compared was not measured after `step` steps.

        "" where it was, was not due, or was missing the time before, when it was said.
        """
        name, _, metric = self.figure.partition("/")
        if not name or name not in self.due(step, last=last) or self.figure in metrics:
            return ""
        every = self.evaluators[name].cfg.every
        before = (step - 1) // every * every
        known = [line for line in self.lines if line["step"] and self.figure in line]
        if before and not any(line["step"] == before for line in known):
            return ""
        stays = f"step {self.best_at} stays the best" if self.best_at else "no step is the best"
        counts = (
            f", best.patience={self.cfg.best.patience} counts no measurement without it, and the run goes on"
        )
        return (
            f"{name} gives no {metric} any more, by which steps are compared (best.figure={self.cfg.best.figure}): "
            f"until it does, {stays}{counts if self.cfg.best.patience and not last else ''}"
        )

    def _measured_by(
        self, evaluators: Mapping[str, Evaluator], step: int, first: bool = False
    ) -> dict[str, float]:
        """Return what some evaluators measure: first those that choose what is shipped, then others of that."""
        if self.mixture is None:
            return self._in_turn(evaluators, step, first)
        metrics = self._in_turn({n: e for n, e in evaluators.items() if e.mixes}, step, first)
        with self.mixed(self.judged([*self.lines, line_of(step, metrics)])[0].share):
            return metrics | self._in_turn({n: e for n, e in evaluators.items() if not e.mixes}, step, first)

    def _in_turn(self, evaluators: Mapping[str, Evaluator], step: int, first: bool) -> dict[str, float]:
        """Return what evaluators measure of the encoders as they are."""
        progress = Progress(step=step, total=self.cfg.steps, epoch_steps=self.epoch_steps)
        exported = self._exported()
        metrics: dict[str, float] = {}
        idle: list[str] = []
        student = self._agreeing(self.learner.frozen("student", self.device))
        for name, evaluator in evaluators.items():
            self.agree()
            began = time.perf_counter()
            measured = evaluator.run(exported, self.modality, progress)
            if first:
                self._check_figure(name, measured)
                measured |= evaluator.baselines(self.modality)
                idle += [] if measured else [name]
            elif evaluator.measures_student and self.learner.has_teacher():
                other = evaluator.run(student, self.modality, progress)
                measured |= {f"student/{n}": v for n, v in other.items()}
            metrics |= {f"{name}/{n}": v for n, v in measured.items()}
            self.seconds[name] = time.perf_counter() - began
        if idle:
            flags = " ".join(f"--evals.{name} none" for name in idle)
            self.say(f"nothing to measure here for {', '.join(idle)}: {flags} leaves that out")
        return metrics

    def _check_figure(self, name: str, measured: Mapping[str, float]) -> None:
        """Refuse to compare steps by a figure that this evaluator does not measure, before anything is trained."""
        if not self.figure.startswith(f"{name}/"):
            return
        asked = f"best.figure={self.cfg.best.figure}"
        if not measured:
            raise ValueError(
                f"{asked}: {name} measures nothing on this data, so no step would be the best: take another figure, or "
                "leave it empty"
            )
        evaluator = self.evaluators[name]
        metrics = dict.fromkeys([*measured, *evaluator.metric_names()])  # some are measured later alone
        known = [f"{name}/{metric}" for metric in metrics]
        if evaluator.measures_student and self.learner.has_teacher():
            known += [f"{name}/student/{metric}" for metric in metrics]
        if self.figure not in known:
            raise ValueError(f"{asked}: {name} has no such figure{suggest(self.figure, known)}")

    def _agreeing(self, encoders: FrozenEncoders) -> FrozenEncoders:
        """Return the encoders; before each use of them ranks agree to go on."""
        function = encoders.function

        def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
            self.agree()
            return function(views, masking, inner)

        encoders.function = encode
        return encoders


def line_of(step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return figures as a line of those that were measured: plain numbers, with their step."""
    return {"step": step, **{name: float(value) for name, value in metrics.items()}}


def numbers_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a line of the record; what it has as null is NaN."""
    return {name: math.nan if value is None else value for name, value in line.items() if name != "kind"}
