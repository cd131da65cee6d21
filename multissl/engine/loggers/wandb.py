"""Weights & Biases: curves, the figures of the report, notes and options, in a project there or in a folder here.

A run keeps its identity in its folder, so a run that is resumed goes on in the same curves. Steps that are taken again
after a kill are logged again, over the step that each line carries: W&B cannot take lines back.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from multissl.contract.learning import Figure
from multissl.contract.logger import Kind, Logger, Session
from multissl.files import make_folder, replace_text
from multissl.registry import require


class WandB(Logger):
    """Numbers and texts as `kind/name` over `step`, figures as images."""

    packages = ("wandb",)

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        """Options of Weights & Biases."""

        project: str = "multissl"
        """Name of the project that the run belongs to."""
        entity: str = ""
        """User or team; empty: the one that is logged in."""
        mode: Literal["online", "offline"] = "online"
        """Offline keeps all in the run's folder, for `wandb sync`."""

    def __init__(self, cfg: Config, session: Session) -> None:
        wandb = require("wandb")
        make_folder(session.folder)
        identity = session.folder / "id.txt"
        fresh = not (session.start and identity.is_file())
        if fresh:
            replace_text(identity, uuid.uuid4().hex[:8])
        self._image = wandb.Image
        self._run = wandb.init(
            project=cfg.project,
            entity=cfg.entity or None,
            mode=cfg.mode,
            name=session.name,
            id=identity.read_text(),
            resume=None if fresh else "allow",
            dir=str(session.folder),
            config=dict(session.recipe),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Log every finite number and every text."""
        usable = {n: v for n, v in metrics.items() if isinstance(v, str) or math.isfinite(v)}
        self._run.log({"step": step, **{f"{kind}/{n}": v for n, v in usable.items()}})

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Log every figure as an image."""
        images = {f"figures/{f.title}": self._image(f.image, caption=f.caption) for f in figures}
        self._run.log({"step": step, **images})

    def close(self) -> None:
        """Send or write what is still held."""
        self._run.finish()
