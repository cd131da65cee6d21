"""A rank that is killed or frozen is named, with the last step it reported and where the others wait for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multissl.parallel.ranks import barrier
from multissl.parallel.watch import RankDiedError, Watch, watched
from tests.helpers.ranks import free_port, run_ranks

ROOT = Path(__file__).parents[2]
PAUSE = 7
TIMEOUT = 10.0


def start(number: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """Start one rank of two, without a launcher, which would end the other one."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PAUSE_AT": f"{PAUSE}:{folder / 'paused'}",
    }  # fmt: skip
    recipe = f"{ROOT / 'tests' / 'helpers' / 'stubs.py'}:recipe"
    options = ["--out", str(folder / "run"), "--parallel.timeout", str(TIMEOUT)]
    return subprocess.Popen(
        [sys.executable, "-m", "multissl", "train", recipe, *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def silent(number: int) -> str:
    """Fall silent on rank 1; on rank 0 raise what a backend raises then, and return what becomes of it."""
    try:
        with watched(timeout=3.0) as watch:
            watch.step = 5
            time.sleep(1.5)
            if number:
                assert isinstance(watch, Watch)
                watch.stop()
                time.sleep(4)  # in whatever it is that it does not come back from
            else:
                time.sleep(0.5)
                raise RuntimeError("Connection closed by peer")
    except RankDiedError as error:
        return str(error)
    return ""


@pytest.mark.ranks
def test_an_error_because_of_another_rank_names_it() -> None:
    said, nothing = run_ranks(2, silent)
    assert re.search(
        r"rank 1 has not answered for \d seconds; the last step that it reported is 5: it was killed", said
    )
    assert not nothing


def own(number: int) -> str:
    with pytest.raises(RuntimeError, match="of its own") as error, watched(timeout=2.0):
        raise RuntimeError("of its own")
    barrier()
    return type(error.value).__name__


@pytest.mark.ranks
def test_an_error_of_its_own_stays_what_it_is() -> None:
    assert run_ranks(2, own) == ["RuntimeError", "RuntimeError"]


def test_one_rank_watches_nobody() -> None:
    with watched(timeout=1.0) as watch:
        watch.step = 3
        assert not isinstance(watch, Watch)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_rank_that_is_lost_is_named(tmp_path: Path, number: signal.Signals, victim: int) -> None:
    port = free_port()
    ranks = [start(n, port, tmp_path) for n in (0, 1)]
    marker, deadline = tmp_path / "paused", time.monotonic() + 90
    while not marker.exists() and time.monotonic() < deadline and ranks[0].poll() is None:
        time.sleep(0.05)
    try:
        assert marker.exists(), ranks[0].communicate()
        time.sleep(2)  # a rank writes every second how far it is
        ranks[victim].send_signal(number)
        marker.unlink()
        began = time.monotonic()
        said = ranks[1 - victim].communicate(timeout=3 * TIMEOUT)[0]
        assert time.monotonic() - began < TIMEOUT + 12
        assert ranks[1 - victim].returncode == 1, said
        last = said.splitlines()[-1]
        assert re.search(
            rf"error: rank {victim} has not answered.*last step that it reported is {PAUSE}", last
        )
        assert "Traceback" not in said
        if number == signal.SIGSTOP:
            assert re.search(r"Timeout|here rank", said), said
            assert "all_reduce" in said or "all_gather" in said, said  # where it waits
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
