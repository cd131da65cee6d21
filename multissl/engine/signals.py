"""Signals that ask a run to end: it saves after the step at hand, and the second one ends it at once.

What is measured beside the steps ends at once and is measured at the next start: it moves nothing. Several ranks, which
a signal reaches at different moments or not at all, agree at every batch that is encoded and before every evaluator.

State: whether one came, which, and when.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import torch

from multissl.engine.batches import ENDING
from multissl.parallel.collectives import all_true
from multissl.parallel.ranks import world

PASSED_ON = 2.0
"""Seconds within which another signal is the same request, as torchrun and SLURM both pass it on; not Ctrl-C."""


class MeasuringEnded(BaseException):
    """A signal came while something was measured; no `except Exception` on the way may stop it."""


class EndRequest:
    """Whether a signal of `ENDING` has asked this process to end its run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.came = False
        self.number: int = signal.SIGINT
        """The signal that came first; SIGINT where none did, as where it reached another rank."""
        self._when = 0.0
        self._measuring = self._at_once = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear the signals of `ENDING`; a second one raises KeyboardInterrupt.

        One that comes soon after the first may be the same, passed on by torchrun and SLURM both, unless it is Ctrl-C.
        """
        # under nohup a closed terminal is nothing to a run
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        try:
            before = {s: signal.signal(s, self._ask) for s in ENDING if s not in ignored}
        except ValueError:  # not in the main thread: the host program handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Raise a `MeasuringEnded` as soon as a signal comes; on several ranks where `agree` is called next."""
        self._measuring, self._at_once = True, world() == 1
        try:
            yield
        finally:
            self._measuring = self._at_once = False

    def agree(self) -> None:
        """Raise a `MeasuringEnded` on all ranks where a signal has reached one; each rank calls this equally often."""
        if self._measuring and world() > 1 and not all_true(torch.tensor([not self.came])).item():
            raise MeasuringEnded

    def _ask(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.came and (number == signal.SIGINT or now - self._when > PASSED_ON):
            raise KeyboardInterrupt
        if not self.came:
            self.came, self.number, self._when = True, number, now
            what = "ending what is measured" if self._measuring else "saving a checkpoint after this step"
            with contextlib.suppress(RuntimeError):  # it came in the middle of another line
                self.say(f"{signal.Signals(number).name}: {what}")
            if self._at_once:
                raise MeasuringEnded
