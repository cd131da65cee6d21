"""Run cases of all formats, or some: python -m tests.faults.fuzz COUNT [--seed N] [--formats NAME ...] [--cases N ...].

After `--then` other words follow, which are done in the same process: what costs most is to make the formats.
A case is a format, a seed and a number, and always the same bytes. Cases run in forked children, many in each, with 5
seconds of processor time and 2 GB of memory for each. What was not fine is printed; a problem ends with code 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import itertools
import json
import logging
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from multissl.contract.data import Unreadable
from tests.faults.fuzz.formats import Format, all_formats
from tests.faults.fuzz.mutate import mutated

SECONDS, MEMORY = 5, 2 << 30
"""Of a case: processor time, and memory beyond what a child begins with."""
WAIT = 60
"""Seconds after which a child that says nothing, as it waits for something, is ended."""
GOOD = ("fine", "refused")
THEN = "--then"


class Outcome(NamedTuple):
    """What became of a case."""

    number: int
    kind: str
    """fine, refused, unnamed (refused without the file's name), traceback, hang, died."""
    what: str = ""


class Hang(BaseException):
    """A case took too long."""


def body_of(name: str, kind: Format, seed: int, number: int) -> bytes:
    """Return the bytes of a case; those before 0 are the whole files, from the last on."""
    if number < 0:
        return kind.bodies[number]
    rng = random.Random(f"{seed}/{name}/{number}")
    return mutated(rng.choice(kind.bodies), rng.choice(kind.bodies), rng, kind.text)


def judged(kind: Format, path: Path, number: int) -> Outcome:
    """Read a file, and say what became of that."""
    try:
        kind.read(path)
    except Hang:
        return Outcome(number, "hang")
    except (ValueError, OSError, ImportError) as error:  # what the command line says in a line
        expected = not isinstance(error, UnicodeError | json.JSONDecodeError)
        text = f"{error} {error.filename if isinstance(error, OSError) else ''}"
        # a listing names pictures beside it; the bytes in a cell have the number of their sample
        named = str(path.parent) in text or (isinstance(error, Unreadable) and "sample " in text)
        if expected and named:
            return Outcome(number, "refused", str(error)[:200])
        return Outcome(number, "unnamed", f"{type(error).__name__}: {str(error)[:200]}")
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/multissl/" in f.filename]
        place = f"{frames[-1].filename.rpartition('multissl/')[2]}:{frames[-1].lineno}" if frames else "?"
        return Outcome(number, "traceback", f"{type(error).__name__}: {str(error)[:150]} at {place}")
    return Outcome(number, "fine")


def run_child(kind: Format, name: str, seed: int, numbers: Sequence[int], folder: Path, out: IO[str]) -> None:
    """Run cases one after the other, and write before and after each of them."""
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, stop)
    for number in numbers:
        path = folder / f"{name}_{number}{kind.suffix}"
        path.write_bytes(body_of(name, kind, seed, number))
        out.write(json.dumps([number]) + "\n")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome = judged(kind, path, number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(outcome) + "\n")
        path.unlink(missing_ok=True)


def stop(*_: object) -> None:
    raise Hang


def outcomes(name: str, kind: Format, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[Outcome]:
    """Run cases in as many children as it takes, and yield what became of each."""
    left = list(numbers)
    while left:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(write, "w", buffering=1) as out:
                run_child(kind, name, seed, left, folder, out)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as lines:
            while select.select([lines], [], [], WAIT)[0] and (line := lines.readline()):
                values = json.loads(line)
                if len(values) > 1:
                    yield Outcome(*values)
                    left.remove(values[0])
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if left:
            code = os.waitstatus_to_exitcode(status)
            yield Outcome(left.pop(0), "died" if code != -signal.SIGKILL else "hang", f"exit code {code}")


def fuzz(
    counts: dict[str, Sequence[int]], seed: int, good: Sequence[str] = GOOD
) -> list[tuple[str, Outcome]]:
    """Run cases by format; return the problems, one for each kind and place."""
    problems: dict[tuple[str, str, str], Outcome] = {}
    total = collections.Counter[str]()
    formats = all_formats()
    with tempfile.TemporaryDirectory() as folder:
        for name, numbers in counts.items():
            began, kinds = time.monotonic(), collections.Counter[str]()
            for outcome in outcomes(name, formats[name], seed, numbers, Path(folder)):
                kinds[outcome.kind] += 1
                if outcome.kind not in good:
                    place = outcome.what.rpartition(" at ")[2][:60]
                    problems.setdefault((name, outcome.kind, place), outcome)
            total += kinds
            print(f"{name:<18} {dict(kinds)}  {time.monotonic() - began:.0f} s", flush=True)
    print(f"{sum(total.values()):,} cases of seed {seed}: {dict(total)}")
    return [(name, outcome) for (name, _, _), outcome in problems.items()]


def asked(words: list[str]) -> list[tuple[str, Outcome]]:
    """Run the cases that words ask for; return the problems, after they are printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    parser.add_argument("count", type=int, help="cases over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*")
    parser.add_argument("--cases", nargs="*", type=int, help="these numbers alone; -1 is a whole file")
    parser.add_argument("--without", nargs="*", default=[], help="all formats but these")
    parser.add_argument("--fine", action="store_true", help="a file that is refused is a problem, too")
    known = parser.parse_args(words)
    names = known.formats or [name for name in all_formats() if name not in known.without]
    each = -(-known.count // len(names))
    good = ("fine",) if known.fine else GOOD
    problems = fuzz({name: known.cases or range(each) for name in names}, known.seed, good)
    for name, outcome in problems:
        print(f"{name} case {outcome.number} of seed {known.seed}: {outcome.kind} {outcome.what}")
    return problems


def main(words: list[str]) -> int:
    """Run the cases that are asked for, and those that are asked for then."""
    warnings.simplefilter("ignore")
    for module in ("torchvision.io", "decord", "torchaudio"):  # once, and not in every child
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    logging.disable(logging.CRITICAL)
    problems = 0
    for then, several in itertools.groupby(words, lambda word: word == THEN):
        if not then:
            found = asked([*several])
            print(f"{len(found)} problems", flush=True)
            problems += len(found)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
