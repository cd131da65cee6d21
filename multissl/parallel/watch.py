"""Ranks that watch one another: one that was killed or stands still is named, and those that wait show where.

A thread of every rank writes into the store of the process group, every second or so, how many steps its rank has
taken. A process that was killed or is frozen writes no more, which the threads of the others see; one whose main
thread stands still while its thread goes on is seen by its number of steps and its own stacks.
State: the thread, and when each rank wrote last.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from multissl.parallel.ranks import barrier, rank, world

SHARE = 0.6
"""Of the timeout, after which a silent rank is said, so that the line comes before the backend gives up."""
STDERR = 2


class RankDiedError(RuntimeError):
    """Another rank ended or does not answer; checkpoints are intact."""


class Watch:
    """What this rank tells the others, and what it knows of them."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.step = 0
        """The number of steps that this rank has taken."""
        self.interval = min(max(1.0, world() / 32), timeout / 10)  # so that many ranks do not flood the store
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()  # a connection of the thread's own
        self._last = {number: ("", time.monotonic()) for number in range(world())}
        self._stop = threading.Event()
        self._said = False
        self._round()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch over ranks")

    def begin(self) -> None:
        """Begin to watch; every rank has written once by then."""
        barrier()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(2 * self.interval)
        faulthandler.cancel_dump_traceback_later()

    def _round(self) -> None:
        """Write how far this rank is."""
        self._store.set(_key(rank()), f"{self.step} {time.monotonic()}")

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone with the rank that held it
            while not self._stop.wait(self.interval):
                # where the store itself no longer answers, this thread waits for it: the stacks are shown all the same
                faulthandler.dump_traceback_later(SHARE * self.timeout, file=STDERR)
                self._round()
                values = self._store.multi_get([_key(number) for number in self._last])
                now = time.monotonic()
                for number, value in enumerate(values):
                    if (text := value.decode()) != self._last[number][0]:
                        self._last[number] = text, now
                self._show(self.silent(SHARE * self.timeout))

    def _show(self, numbers: Sequence[int]) -> None:
        """Say once that ranks are silent, with the stacks of this one, which waits for them."""
        if not numbers or self._said:
            return
        self._said = True
        print(f"{self.describe(numbers)}; here rank {rank()} waits:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(STDERR)

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks that have written nothing for so long."""
        now = time.monotonic()
        return [n for n, (_, when) in self._last.items() if n != rank() and now - when > seconds]

    def dead(self) -> list[int]:
        """Return the ranks that no longer write, once those that still do have had the time to."""
        time.sleep(6 * self.interval)
        return self.silent(3.5 * self.interval)  # what lives has been read within two

    def describe(self, numbers: Sequence[int]) -> str:
        """Return which ranks are silent, for how long, and the last step that each reported."""
        now = time.monotonic()
        parts = []
        for number in numbers:
            text, when = self._last[number]
            step = text.partition(" ")[0] or "0"
            parts.append(
                f"rank {number} has not answered for {now - when:.0f} seconds; the last step that it reported is {step}"
            )
        return "; ".join(parts)


def _key(number: int) -> str:
    return f"multissl/step/{number}"


class Alone:
    """The watch of a run of one rank, which has nobody to watch."""

    step = 0


@contextlib.contextmanager
def watched(timeout: float) -> Iterator[Watch | Alone]:
    """Watch over the ranks for the time of a `with`; an error because of one that died becomes one that names it."""
    if world() == 1:
        yield Alone()
        return
    watch = Watch(timeout)
    watch.begin()
    try:
        yield watch
    except RuntimeError as error:
        if type(error).__module__.startswith("multissl") or not (numbers := watch.dead()):
            raise
        text = (
            f"{watch.describe(numbers)}: it was killed, as where memory runs out, or stands still; "
            "repeat the command to go on from the newest checkpoint"
        )
        if 0 in numbers and rank() == min(set(range(world())) - {*numbers}):
            print(f"error: {text}", file=sys.stderr, flush=True)  # else the first rank says it
        raise RankDiedError(text) from error
    finally:
        watch.stop()
