"""Plant bugs, one at a time, in the code that trains, measures and makes views, and count how many the tests notice.

    python tools/mutants.py --seed 0 --count 120            # what `make mutants` runs
    python tools/mutants.py --seed 0 --only multissl/losses # in one room
    python tools/mutants.py --named --count 0               # those of tools/mutants.json that have a name

Each bug lives in a copy of the package in a temporary folder; the checkout is never changed. The tests of a file are
those of its longest prefix in tools/mutants.json, cheapest first, and end with the first failure, so run it where they
pass, or with --sound. A bug that makes them run out of their seconds is noticed. Bugs that change nothing anybody could
see are listed there too, each with the reason, by their function and line; they are printed and not counted. Ends with
1 where fewer than 97 % are noticed, or where a named one is not.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.mutation import Mutant, mutants_of  # noqa: E402

LIST = ROOT / "tools" / "mutants.json"
ANY = "*"
"""What a line becomes where no change of it could be seen."""
AIM = 97.0
"""Percent of the bugs that must be noticed."""
SECONDS, PATIENCE = 120, 600
"""CPU seconds that the tests of a bug may take, and seconds of the clock."""


class Named(NamedTuple):
    """A bug by name: in a file, `old` becomes `new`, and these tests are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What became of a bug."""

    killed: bool
    why: str
    seconds: float


class Job(NamedTuple):
    """A file with a bug, and the tests to run."""

    label: str
    file: str
    text: str
    tests: str


@functools.cache
def known() -> dict[str, Any]:
    """Return tools/mutants.json: where bugs are planted, what runs against them, those named, those without effect.

    `rooms` are prefixes of paths in the package; `tests` has the tests of a prefix, cheapest first, as paths in tests.
    """
    return json.loads(LIST.read_text())


def candidates(only: str = "") -> dict[str, list[Mutant]]:
    """Return all bugs of every room, those of files that begin with `only`."""
    return {
        room: [
            mutant
            for path in sorted((ROOT / "multissl").rglob("*.py"))
            if path.relative_to(ROOT / "multissl").as_posix().startswith(tuple(prefixes))
            and path.relative_to(ROOT).as_posix().startswith(only)
            for mutant in mutants_of(path.relative_to(ROOT).as_posix(), path.read_text())
        ]
        for room, prefixes in known()["rooms"].items()
    }


def draw(rooms: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Return `count` bugs, equally many of every room that has some; any seed draws any kind and place alike."""
    rng = random.Random(seed)
    filled = [mutants for mutants in rooms.values() if mutants]
    chosen: list[Mutant] = []
    for number, mutants in enumerate(filled):
        share = count // len(filled) + (number < count % len(filled))
        chosen += rng.sample(mutants, min(share, len(mutants)))
    return chosen


def tests_of(file: str) -> str:
    """Return the tests of a file."""
    tests = known()["tests"]
    fitting = [prefix for prefix in tests if file.removeprefix("multissl/").startswith(prefix)]
    return " ".join(f"tests/{path}" for path in tests[max(fitting, key=len)])


def overlay(folder: Path) -> None:
    """Make a folder look like the checkout, with a package and tests of its own."""
    for entry in ROOT.iterdir():
        if entry.name in ("multissl", "tests"):
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.name not in (".git", ".venv"):
            (folder / entry.name).symlink_to(entry)


def prepare() -> None:
    """Import what all tests import, once, so that a process forked from this one starts at once."""
    import numpy
    import pytest
    import safetensors.torch
    import torch
    import torchvision

    assert all((numpy, pytest, safetensors.torch, torch, torchvision))


def run(job: Job) -> tuple[Job, Outcome]:
    """Plant a bug in this process's overlay and run its tests in a fork."""
    folder = FOLDERS[os.getpid()] if os.getpid() in FOLDERS else _new_folder()
    path = folder / job.file
    before = path.read_text()
    try:
        _write(path, job.text)
        return job, _forked(folder, job.tests)
    finally:
        _write(path, before)


FOLDERS: dict[int, Path] = {}
"""The overlay of this process."""


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=os.environ["MUTANTS"]))
    overlay(folder)
    FOLDERS[os.getpid()] = folder
    return folder


def _write(path: Path, text: str) -> None:
    # Compiled code is taken to be that of a source of the same second and size.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    path.write_text(text)


def _forked(folder: Path, tests: str) -> Outcome:
    """Run tests in a fork of this process, with the overlay's package."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _child(folder, tests)
        finally:
            os._exit(code)
    began, status, usage = time.monotonic(), 0, None
    while usage is None:
        done, status, spent = os.wait4(child, os.WNOHANG)
        if done:
            usage = spent
        elif time.monotonic() - began > PATIENCE:
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        else:
            time.sleep(0.05)
    seconds = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        return Outcome(True, "out of time", seconds)
    said = (folder / "said.txt").read_text(errors="replace")
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    code = os.WEXITSTATUS(status)
    why = failed[0][:150] if failed else f"code {code}: {said[-300:]}"
    return Outcome(code != 0, why if code else "no test noticed", seconds)


def _child(folder: Path, tests: str) -> int:
    import pytest
    import torch

    # a fork has to make torch's pool of threads anew: two threads that do it at once abort the process
    torch.set_num_threads(torch.get_num_threads())
    gc.freeze()  # what the parent left is the parent's to end: its threads are not here
    os.setsid()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined] # one that was inherited is the parent's
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() != ROOT)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("multissl", "tests", "tools")]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")  # processes of tests would import this file again
    log = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    options = f"-x -q --tb=no -p no:cacheprovider --basetemp={scratch} --rootdir={folder} {tests}"
    code = 0
    for marks in (
        "not ranks and not slow and not gpu",
        "ranks and not slow and not gpu",
    ):  # several processes are dear
        code = code or int(pytest.main([*options.split(), "-m", marks])) % pytest.ExitCode.NO_TESTS_COLLECTED
    server._stop()  # so that its seconds count
    return code


def read_list() -> tuple[list[Named], dict[tuple[str, ...], str]]:
    """Return the named bugs, and why others change nothing, by file, function, line and what the line becomes."""
    keys = ("file", "function", "line", "becomes")
    reasons = {tuple(each[key] for key in keys): each["reason"] for each in known()["equivalent"]}
    return [Named(**each) for each in known()["named"]], reasons


def jobs_of(named: Sequence[Named]) -> list[Job]:
    """Return the jobs of named bugs; one whose line is no longer there is an error."""
    jobs = []
    for each in named:
        source = (ROOT / each.file).read_text()
        if source.count(each.old) != 1:
            raise SystemExit(
                f"{LIST.name}: {each.name}: {each.file} has {source.count(each.old)} of {each.old!r}"
            )
        text = source.replace(each.old, each.new)
        tests = " ".join(f"tests/{path}" for path in each.tests) or tests_of(each.file)
        jobs.append(Job(f"named: {each.name}", each.file, text, tests))
    return jobs


def main() -> int:
    """Run the bugs and print each with what became of it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="draws the bugs")
    parser.add_argument("--count", type=int, default=120, help="bugs drawn")
    parser.add_argument("--only", default="", help="files whose path begins so, such as multissl/losses")
    parser.add_argument("--named", action="store_true", help="plant those with a name too")
    parser.add_argument("--processes", type=int, default=2, help="bugs at a time")
    parser.add_argument("--sound", action="store_true", help="first see that the tests pass without a bug")
    parser.add_argument("--list", action="store_true", help="print the bugs and run nothing")
    args = parser.parse_args()
    named, reasons = read_list()
    jobs = jobs_of([n for n in named if n.file.startswith(args.only)]) if args.named else []
    equivalent = 0
    for mutant in draw(candidates(args.only), args.count, args.seed):
        source = (ROOT / mutant.file).read_text()
        number, old, new = mutant.lines(source)
        label = f"{mutant.file}:{number} {mutant.function}, {mutant.kind}\n    - {old}\n    + {new}"
        place = mutant.file, mutant.function, old
        reason = reasons.get((*place, new)) or reasons.get((*place, ANY))
        if reason:
            equivalent += 1
            print(f"equivalent {label}\n    {reason}")
        else:
            jobs.append(Job(label, mutant.file, mutant.apply(source), tests_of(mutant.file)))
    if args.list:
        print("\n".join(job.label for job in jobs))
        return 0
    return report(jobs, equivalent, args.processes, args.sound)


def check_sound(jobs: list[Job]) -> None:
    """Stop where the tests of some jobs fail without a bug, which would count all of them as noticed."""
    words = " ".join(dict.fromkeys(word for job in jobs for word in job.tests.split()))
    file = "multissl/version.py"
    _, outcome = run(Job("no bug", file, (ROOT / file).read_text(), words))
    if outcome.killed:
        raise SystemExit(f"the tests fail without a bug: {outcome.why}")
    print(f"no bug: the tests pass in {outcome.seconds:.0f} CPU s", flush=True)


def report(jobs: list[Job], equivalent: int, processes: int, sound: bool) -> int:
    """Run jobs, print each as it ends, then the score; the exit code."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    outcomes: list[tuple[Job, Outcome]] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MUTANTS"] = scratch
        prepare()
        if sound:
            check_sound(jobs)
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                job, outcome = future.result()
                outcomes.append((job, outcome))
                word = "killed" if outcome.killed else "SURVIVED"
                print(f"{word} {outcome.seconds:.0f}s {job.label}\n    {outcome.why}", flush=True)
    survivors = [job for job, outcome in outcomes if not outcome.killed]
    score = 100 * (1 - len(survivors) / max(len(outcomes), 1))
    spent = sum(outcome.seconds for _, outcome in outcomes)
    counts = f"{len(outcomes)} bugs, {len(survivors)} not noticed, {equivalent} equivalent"
    print(f"{counts}: {score:.1f} %, {spent:.0f} CPU s")
    return 1 if score < AIM or any(job.label.startswith("named") for job in survivors) else 0


if __name__ == "__main__":
    sys.exit(main())
