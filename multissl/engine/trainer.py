"""The trainer: one loop for every modality, objective and number of ranks, from start to end.

It sees the contract only. The step number is the random state: (seed, step) fixes data, views, masks and what modules
draw, so a resumed run repeats an uninterrupted one exactly, and so does one on another number of ranks.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multissl.config import to_dict
from multissl.contract.decision import Decision
from multissl.contract.estimate import Estimate, described
from multissl.contract.evaluator import Evaluator
from multissl.contract.learning import Figure, Progress
from multissl.contract.logger import Kind
from multissl.contract.modality import Modality
from multissl.contract.places import Places
from multissl.engine import checkpoint
from multissl.engine.batches import Fetched, StepBatches, batches_of
from multissl.engine.checkpoint import NonFinite
from multissl.engine.display import Display
from multissl.engine.flops import Blueprint
from multissl.engine.judging import alarm_of
from multissl.engine.learner import Learner
from multissl.engine.loop import Loop, Span
from multissl.engine.measuring import Measuring, line_of, numbers_of
from multissl.engine.memory import memory_advice
from multissl.engine.metrics import Metrics, check_loggers
from multissl.engine.optim.base import Optimizer
from multissl.engine.signals import EndRequest, MeasuringEnded
from multissl.engine.step import Step, StepResult
from multissl.engine.trace import Trace
from multissl.engine.window import Rates, Window
from multissl.files import make_folder, replace_text
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.gradients import largest_gradient
from multissl.parallel.ranks import is_main, rank, world
from multissl.parallel.watch import watched
from multissl.shapes import read_record


class Interrupted(RuntimeError):
    """A signal ended the run early; its checkpoint is written."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
        """The signal that reached this rank, SIGINT where it was another one's."""


class Trainer:
    """Everything a run needs, and the loop over its steps."""

    def __init__(
        self,
        cfg: Loop,
        modality: Modality,
        learner: Learner,
        optimizer: Optimizer,
        evaluators: Mapping[str, Evaluator],
        places: Places,
        device: torch.device,
        blueprint: Blueprint | None = None,
        guard: Callable[[], object] = bool,
        span: Span | None = None,
        load: Callable[[Path, nn.Module, torch.optim.Optimizer], int] = checkpoint.load,
    ) -> None:
        """`guard` raises a RuntimeError on the first rank where nothing more may be written into the run.

        `span` says where in the run these steps lie, `load` restores a checkpoint and returns its step.
        """
        self.span = span or Span()
        self.end = self.span.start + cfg.steps
        self.total, self.load = self.span.total or self.end, load
        self.cfg, self.modality, self.learner, self.optimizer = cfg, modality, learner, optimizer
        self.places, self.device, self.guard = places, device, guard
        self.main = is_main()
        self.reached = checkpoint.newest_step(places.checkpoints)
        """The number of steps that were taken."""
        self.plans = learner.objective.plans()
        self.steps = StepBatches(
            modality, self.plans, cfg.batch_size, cfg.seed, rank(), world(),
            cfg.data.views_on == "worker", (self.span.start, self.span.samples),
        )  # fmt: skip
        samples = len(self.steps.samples)
        learner.objective.check_dataset_size(samples)
        self.epoch_steps = samples / cfg.batch_size
        self.make_step = Step(learner, optimizer, cfg.clip, cfg.clip_per)
        self.trainable = [p for p in learner.parameters() if p.requires_grad]
        self.display = Display(self.main)
        self.rates = Rates(blueprint, cfg.batch_size, device)
        self.metrics: Metrics | None = None
        self.trace: Trace | None = None
        check_loggers(cfg.loggers, places)
        self.skipped: dict[int, str] = {}
        self.history: list[dict[str, float]] = []
        self.ending = EndRequest(self.display.say)
        self.measuring = Measuring(
            cfg, evaluators, learner, modality, device, self.display.say, self.ending.agree
        )
        self.alarmed = ""
        self.bad_in_a_row = 0

    def fit(
        self, notes: Sequence[str] = (), *, floors_again: bool = False, until: int = 0
    ) -> list[dict[str, Any]]:
        """Train from the newest checkpoint, or from the start, to the last step; return the lines of the record.

        One of the last step or a later one is loaded, and nothing is trained. A new record begins with `notes`, which
        are said, too. `floors_again`: measure the untrained encoder and the baselines before a resume, too. `until`
        ends it after so many steps, with a checkpoint.
        """
        start, marks, untrained = 0, dict[str, Any](), dict[str, float]()
        self.measuring.begin()
        if newest := checkpoint.newest_whole(self.places.checkpoints, self.display.say):
            untrained = self.measuring.measured(0, first=True) if floors_again else {}
            start = self.reached = self.load(newest[0], self.learner, self.optimizer.torch)
            marks = newest[1]
            if start > self.span.start:
                self.display.say(f"resuming at step {start} of {self.total}")
        if self.main:
            self.metrics = Metrics(
                self.cfg.loggers, self.places, start=start, recipe=to_dict(self.cfg),
                say=self.display.say, mark=marks.get("record"),
            )  # fmt: skip
            self.trace = Trace(self.places.trace, start, marks.get("trace"))
            if earlier := self.metrics.record.earlier:
                self.display.say(f"beginning anew: the metrics of an earlier start are in {earlier}")
        self._remember(read_record(self.places.metrics) if start and self.main else [])
        if start:  # a process that was killed before it removed old ones has left them
            places, save = self.places.checkpoints, self.cfg.save
            checkpoint.on_main(lambda: checkpoint.remove_old(places, save, self._kept()))
        with self.ending.heard(), watched(self.cfg.parallel.timeout) as self.watch:
            if start == self.span.start:
                for text in notes:
                    self._note(start, text)
            if start == 0 and not self._evaluate(0, first=True):
                raise self._interrupted(0)
            if untrained:
                self._write_evaluation(0, untrained, first=True)
            # at the border itself the stage before has measured
            if start > self.span.start and not self._catch_up(start):
                raise self._interrupted(start)
            if start < self.end and not self.measuring.decision.stop:
                self._loop(start, min(until or self.end, self.end))
        return read_record(self.places.metrics)

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Give figures to the loggers of this start, where there was one."""
        if self.metrics:
            self.metrics.draw(step, figures)

    def close(self) -> None:
        """Close all files and loggers; whoever calls `fit` does so, however it ends."""
        if self.trace:
            self.trace.close()
        if self.metrics:
            self.metrics.close()

    def _write(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics, on the rank that does."""
        if self.metrics:
            self.metrics.log(kind, step, metrics)

    def _note(self, step: int, text: str, said: str = "") -> None:
        """Record something, and say it, in other words where some are given."""
        self.display.say(said or text)
        self._write("note", step, {"text": text})

    def _loop(self, start: int, stop: int) -> None:
        cfg, window = self.cfg, Window()
        unread: deque[StepResult] = deque()
        batches = batches_of(self.steps, start, stop, cfg.data, world(), self.device)
        with self.display.running(start, self.total), contextlib.closing(batches):
            for step, fetched in zip(range(start, stop), batches, strict=True):
                logged = (step + 1) % cfg.log_every == 0 or step + 1 == self.end
                progress = self._progress(step, described=logged)
                if step == start and (problem := self.rates.count(fetched.batch, progress)):
                    self.display.say(problem)
                result = self._one_step(step, fetched, progress, window)
                largest = largest_gradient(self.trainable) if logged else None
                self.optimizer.zero_grad()
                self.reached = self.watch.step = step + 1
                self._note_skipped(step, fetched.skipped)
                unread.append(result)
                last = step + 1 == self.end
                saving = step + 1 == stop or (step + 1) % cfg.save.every == 0
                # while this step is under way, the host reads how the one before went
                waiting = (
                    logged
                    or saving
                    or bool(self.measuring.due(step + 1, last=last))
                    or (self.ending.came and world() == 1)
                )
                interrupted = self._read(unread, 0 if waiting else 1)
                if interrupted:
                    self._read(unread, 0)
                    saving = True
                if largest is not None and self.bad_in_a_row == 0:
                    self._log(step + 1, window, largest)
                    window = Window()
                self.display.step(step + 1, self.total)
                if saving:  # of weights that are not finite none is written: the newest one is always good
                    checkpoint.check_finite(self.learner.shipped(), self.places.checkpoints)
                began = time.perf_counter()
                if not interrupted and not self._evaluate(step + 1, last=last):
                    interrupted = saving = True
                window.paused += time.perf_counter() - began
                stopping = self.measuring.decision.stop
                if not saving and (stopping or self.measuring.best_at == step + 1):
                    checkpoint.check_finite(self.learner.shipped(), self.places.checkpoints)
                    saving = True
                if saving:
                    self._save(step + 1)
                if interrupted:
                    raise self._interrupted(step + 1)
                if stopping:
                    break

    def _one_step(self, step: int, fetched: Fetched, progress: Progress, window: Window) -> StepResult:
        """Take a step on a batch and count it; what modules draw in it is the same on all ranks."""
        cfg = self.cfg
        torch.manual_seed(hash_of(cfg.seed, step))
        samples = cfg.chunk or cfg.batch_size // world()
        with memory_advice(samples=samples, batch_norm=self.learner.trains_batch_norm):
            result = self.make_step(fetched.batch, progress, lambda: self.ending.came)
        window.add(
            result.losses, result.norms, lr=result.lr, waited=fetched.waited, samples=cfg.batch_size,
            counted=result.counted,
        )  # fmt: skip
        return result

    def _kept(self) -> set[int]:
        """Return the steps whose checkpoints are kept for good: borders of stages, and the best step."""
        return {self.measuring.best_at, *self.span.borders}

    def _progress(self, step: int, *, described: bool = True) -> Progress:
        """Return where a step of the run stands in its stage, over which schedules are laid out."""
        at, steps = step - self.span.start, self.cfg.steps
        return Progress(step=at, total=steps, epoch_steps=self.epoch_steps, described=described)

    def _interrupted(self, step: int) -> Interrupted:
        """Return what is raised where a signal ended the run after `step` steps."""
        saved = f"the checkpoint of step {step} is in {self.places.path}" if step else "no step was taken yet"
        return Interrupted(
            f"interrupted: {saved}; repeat the command to go on from there", self.ending.number
        )

    def _catch_up(self, step: int) -> bool:
        """Measure what a signal kept from being measured at a checkpoint; return whether no signal came again."""
        missing = self.main and not any(e["step"] == step for e in self.measuring.lines)
        if not broadcast_object(missing):
            return True
        return self._evaluate(step, last=step == self.end)

    def _save(self, step: int) -> None:
        """Write a checkpoint, and in it how far the record went."""
        checkpoint.on_main(self.guard)
        checkpoint.save(
            self.places.checkpoints, step, self.learner, self.optimizer.torch, self.cfg.save,
            modality=self.modality.state(), record=self.metrics.record.mark() if self.metrics else None,
            trace=self.trace.mark() if self.trace else None,
            stage=self.span.stage, good=self._kept(),
        )  # fmt: skip

    def _read(self, unread: deque[StepResult], left: int) -> bool:
        """Read how steps went, all but the last `left`; return whether a signal had reached some rank by then."""
        interrupted = False
        while len(unread) > left:
            result = unread.popleft()
            counted, going = result.answer.read().tolist()
            interrupted |= not going
            self.bad_in_a_row = 0 if counted else self.bad_in_a_row + 1
            if self.trace:
                step = self.span.start + result.step
                self.trace.add(step, result.lr, self.steps.indices(step), result.loss.read().item())
            if not counted:
                self._dump(result)
        return interrupted

    def _dump(self, result: StepResult) -> None:
        """Describe a step that was skipped; raise `NonFinite` after too many in a row."""
        step, in_a_row = self.span.start + result.step, self.bad_in_a_row
        terms = {n: v.item() for n, v in result.losses.terms.items()}
        culprits = [n for n, v in terms.items() if not math.isfinite(v)]
        culprits += [f"gradient of {n}" for n, v in result.norms.items() if not math.isfinite(v.item())]
        samples = self.steps.indices(step).tolist()
        record = {"step": step, "not_finite": culprits, "terms": {n: str(v) for n, v in terms.items()}}
        path = self.places.nonfinite(step, rank())
        make_folder(path.parent)
        replace_text(path, json.dumps({**record, "samples": samples}, indent=1))
        who = ", ".join(culprits) or "another rank"
        self._note(step + 1, f"step {step} skipped: {who} not finite; see {path}")
        if in_a_row >= self.cfg.patience:
            raise NonFinite(
                f"the loss was not finite {in_a_row} steps in a row, up to step {step} "
                f"({', '.join(culprits) or 'on another rank'}); lower --optim.lr, or raise --patience"
            )

    def _note_skipped(self, step: int, skipped: list[tuple[int, str]]) -> None:
        for index, reason in skipped:
            if index not in self.skipped:
                self.skipped[index] = reason
                said = f"sample {index} cannot be read and is skipped: {reason}"
                self._note(step + 1, f"unreadable sample {index}: {reason}", said)

    def _log(self, step: int, window: Window, largest: Tensor) -> None:
        metrics = window.summary()
        metrics |= {"gradient_max": largest.item(), "unreadable": len(self.skipped)}
        metrics |= self.rates.metrics(step, metrics["samples_per_s"])
        metrics["samples"] = self.steps.drawn(step)
        self._write("train", step, metrics)
        text = "loss {loss:.4f}  {samples_per_s:.0f} samples/s  {waiting_percent:.0f} % waiting for data"
        if "utilization_percent" in metrics:
            text += "  {utilization_percent:.0f} % of the device's peak"
        self.display.step(step, self.total, text.format(**metrics))
        if self.main:
            self.history.append({"step": step, **metrics})
            self._alarm(step)

    def _remember(self, lines: list[dict[str, Any]]) -> None:
        """Take the logged metrics of an interrupted run back, so that alarms see the whole of its stage."""
        train = (x for x in lines if x["kind"] == "train" and x["step"] > self.span.start)
        self.history = [numbers_of(x) for x in train]
        self.measuring.remember([numbers_of(x) for x in lines if x["kind"] == "eval"])
        self.optimizer.factor = self.measuring.decision.lr
        self.alarmed = alarm_of(lines)

    def _alarm(self, step: int) -> None:
        """Say once what objective and evaluators find wrong with the metrics so far, and once when that is over."""
        progress = self._progress(step - 1)
        said = [self.learner.objective.alarm(self.history, progress) or ""]
        text = "; ".join(filter(None, [*said, *self.measuring.worries]))
        if re.sub(r"[\d.]+", "", text) != re.sub(r"[\d.]+", "", self.alarmed):  # numbers in it may move
            self.display.say(f"step {step}: {text or 'what raised the alarm is over'}")
            self._write("alarm", step, {"text": text})
            self.alarmed = text

    def _evaluate(self, step: int, first: bool = False, last: bool = False) -> bool:
        """Run the evaluators that are due; return whether no signal ended that, which leaves no trace of it."""
        try:
            with self.ending.measuring():
                metrics = self.measuring.measured(step, first=first, last=last)
        except MeasuringEnded:
            return False
        if metrics:
            self._write_evaluation(step, metrics, first=first, last=last)
        if not first and (lost := self.measuring.lost(step, metrics, last)):
            self._note(step, lost, f"step {step}: {lost}")
        return True

    def _write_evaluation(
        self, step: int, metrics: Mapping[str, float], first: bool = False, last: bool = False
    ) -> None:
        """Record what was measured, say it, and see what is wrong with it."""
        asked = self.measuring.decision
        self.measuring.remember([*self.measuring.lines, line_of(step, metrics)])
        self._write("eval", step, metrics)
        last |= self.measuring.decision.stop
        # scores are compared between the untrained and the last encoder alone
        known = {
            n: v.to_json(with_scores=first or last) for n, v in metrics.items() if isinstance(v, Estimate)
        }
        if known and self.metrics:
            self.metrics.record.log("estimates", step, known)
        when = "step 0, before training" if first else f"step {step}"
        self.display.say(f"{when}: " + ", ".join(f"{n} {described(v)}" for n, v in metrics.items()))
        self._follow(step, asked)

    def _follow(self, step: int, before: Decision) -> None:
        """Do what figures ask for: say it once, change the learning rate; note which step is the best so far."""
        decision, best = self.measuring.decision, self.measuring.best
        self.optimizer.factor = decision.lr
        if decision != before:
            text = decision.text or "figures ask for nothing any more"
            self._note(step, text, f"step {step}: {text}")
        if self.metrics and best and best.step == step:
            self.metrics.record.log("best", step, {"figure": self.measuring.figure, "value": best.value})


def hash_of(*numbers: int) -> int:
    """Return a seed made of several numbers, another one for each of them; below 2**63."""
    value = 0
    for number in numbers:
        value = (value * 6364136223846793005 + number * 2 + 1442695040888963407) % 2**63
    return value
