"""TensorBoard: curves, the figures of the report, notes and options, as event files in the run's folder.

tensorboard --logdir RUN/tensorboard
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multissl.contract.learning import Figure
from multissl.contract.logger import Kind, Logger, Session


class TensorBoard(Logger):
    """Numbers as `kind/name`, texts as text, figures as images."""

    packages = ("tensorboard",)

    @dataclass(kw_only=True, slots=True)
    class Config(Logger.Config):
        """Options of TensorBoard."""

        seconds: float = 120.0
        """Between two writes of what was logged; the end of a run writes at once."""

        def __post_init__(self) -> None:
            if not self.seconds > 0:
                raise ValueError(f"seconds={self.seconds}: want more than 0")

    def __init__(self, cfg: Config, session: Session) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(session.folder), purge_step=session.start or None, flush_secs=math.ceil(cfg.seconds)
        )
        options = json.dumps(session.recipe, indent=1)
        self._writer.add_text("recipe", f"```json\n{options}\n```", session.start)

    def log(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> None:
        """Add every finite number and every text."""
        for name, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(f"{kind}/{name}", value, step)
            elif math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def draw(self, step: int, figures: Sequence[Figure]) -> None:
        """Add every figure as an image."""
        for figure in figures:
            self._writer.add_image(f"figures/{figure.title}", figure.image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held."""
        self._writer.close()
