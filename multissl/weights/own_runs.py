"""What an encoder must be to hold the weights of one of our runs: what that run's recipe says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multissl.config import from_dict, to_dict
from multissl.contract.encoder import Encoder
from multissl.run.folder import RunFolder, run_of


def as_in_run(configs: Mapping[str, Encoder.Config], place: str) -> dict[str, Encoder.Config]:
    """Return encoder configs in which options at their defaults are those of the run that a place is.

    A place that is no run changes nothing, and neither does a run for streams that it has not, or encoders of another
    kind. Others that contradict are found as the weights load.
    """
    run = run_at(place)
    saved = run.read_options().get("encoders", {}) if run else {}
    return {stream: _like(cfg, saved.get(stream, {})) for stream, cfg in configs.items()}


def run_at(place: str) -> RunFolder | None:
    """Return the run that `RUN`, `RUN@STEP` or a file that it left names, if it is one."""
    return run_of(str(Path(place).parent) if Path(place).is_file() else place)


def _like(cfg: Encoder.Config, saved: Mapping[str, Any]) -> Encoder.Config:
    own, usual = to_dict(cfg), to_dict(type(cfg)())
    if own.get("kind") != saved.get("kind"):
        return cfg
    derived = {n: saved[n] for n, value in own.items() if n in saved and value == usual.get(n)}
    return from_dict(type(cfg), own | derived, "encoders")
