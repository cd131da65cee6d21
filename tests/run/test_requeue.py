"""The batch script of docs/reliability.md asks for another turn where the run exits with 75, and else does not."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def script() -> str:
    """Return the lines of the page's batch script."""
    block = re.search(r"(?m)^    #SBATCH --signal.*\n(?:    .*\n)+", PAGE.read_text())
    assert block
    return "#!/bin/bash\n" + re.sub(r"(?m)^    ", "", block.group())


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (143, False), (1, False)])
def test_it_asks_for_another_turn_after_75_alone(code: int, requeued: bool, tmp_path: Path) -> None:
    programs = {
        "srun": 'exec "$@"',
        "multissl": f'echo "$@" > words; exit {code}',
        "scontrol": 'echo "$@" > requeued',
    }
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script())
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    ended = subprocess.run(["bash", "-e", "job.sh"], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == code
    assert (tmp_path / "words").read_text().split()[-2:] == ["--requeue-signal", "USR1"]
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 41\n"
