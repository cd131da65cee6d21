"""What the figures of a run ask of its training: another learning rate, or its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What figures over time ask for, from them alone: a run that is resumed decides as one that never stopped."""

    lr: float = 1.0
    """Factor on the learning rate from now on."""
    stop: bool = False
    """Whether the run ends here, with a checkpoint and all evaluators."""
    text: str = ""
    """Why, for the record; empty where nothing is asked for."""


GO_ON = Decision()


def joined(decisions: Iterable[Decision]) -> Decision:
    """Return what several decisions ask for together: factors multiply, one of them is enough to stop."""
    asked = [d for d in decisions if d != GO_ON]
    return Decision(
        lr=math.prod((d.lr for d in asked), start=1.0),
        stop=any(d.stop for d in asked),
        text="; ".join(d.text for d in asked),
    )
