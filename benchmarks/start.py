"""How long does multissl take to answer? Help, the list of recipes and a mistyped flag, beside `import torch`.

    python benchmarks/start.py [runs]

Prints the minimum and the median of 5 (or `runs`) starts of each command, taken in turn so that a busy moment hits
all of them, and the ratio to `import torch` where a limit is set on that. Exit code 1 where a median is over its limit.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time

MULTISSL = [sys.executable, "-m", "multissl"]
IMPORT = "import torch"
COMMANDS: dict[str, tuple[list[str], int]] = {
    IMPORT: ([sys.executable, "-c", "import torch"], 0),
    "multissl --help": ([*MULTISSL, "--help"], 0),
    "multissl list": ([*MULTISSL, "list"], 0),
    "mistyped flag": ([*MULTISSL, "train", "image", "--optim.lrr", "2e-3"], 2),
    "mistyped recipe": ([*MULTISSL, "train", "imege"], 2),
}
"""Command and the exit code it has to end with."""
SECONDS = {"multissl --help": 0.5, "multissl list": 0.5, "mistyped recipe": 0.5}
RATIO = {"mistyped flag": 1.5}


def start(name: str) -> float:
    """Seconds from start to end of a command, its answer thrown away."""
    command, code = COMMANDS[name]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise SystemExit(f"{name}: exit code {done.returncode}, want {code}\n{done.stdout}{done.stderr}")
    return seconds


def main(runs: int) -> int:
    """Measure, print, compare with the limits."""
    for name in COMMANDS:  # fills the page cache and writes byte code; not counted
        start(name)
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name in COMMANDS:
            taken[name].append(start(name))
    medians = {name: statistics.median(each) for name, each in taken.items()}
    print(f"{runs} starts each, {os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}")
    over = []
    for name, median in medians.items():
        limit = SECONDS.get(name, RATIO.get(name, 0.0) * medians[IMPORT])
        ratio = f", {median / medians[IMPORT]:.2f} x {IMPORT}" if name in RATIO else ""
        told = f" (limit {limit:.2f} s{ratio})" if limit else ""
        print(f"{name:<18} minimum {min(taken[name]):6.2f} s   median {median:6.2f} s{told}")
        over += [name] if limit and median > limit else []
    print(f"over the limit: {', '.join(over)}" if over else "all within their limits")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
