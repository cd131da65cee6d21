"""What the figures of a run ask of it: another learning rate, its end, or less of the training in what it ships."""

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
    share: float = 1.0
    """Of the training in the weights that the run ships: 0 are those it started with, 1 those that were trained."""
    text: str = ""
    """Why, for the record; empty where nothing is asked for."""


GO_ON = Decision()


def joined(decisions: Iterable[Decision]) -> Decision:
    """Return what several decisions ask for together: factors multiply, one can stop it, the least share counts."""
    asked = [d for d in decisions if d != GO_ON]
    return Decision(
        lr=math.prod((d.lr for d in asked), start=1.0),
        stop=any(d.stop for d in asked),
        share=min((d.share for d in asked), default=1.0),
        text="; ".join(d.text for d in asked),
    )
