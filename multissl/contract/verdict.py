"""What a run's figures say of it: five outcomes, of one evaluator and of the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["learned", "learned, but below", "not learned", "cannot be told", "collapsed"]
"""learned: above every gate by more than chance allows; learned, but below: so, and under a classical feature that is
no gate, which is named; not learned: a gain that would matter is excluded; cannot be told: the samples are too few to
say, or nothing is left to gain, or nothing is labeled; collapsed: the features no longer tell samples apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An outcome, and a sentence that begins with it."""

    outcome: Outcome
    text: str
    tested: bool = False
    """Whether it comes of a test, which could have said "learned" by chance."""

    @property
    def learned(self) -> bool:
        """Return whether something was learned, be it less than a classical feature tells."""
        return self.outcome in ("learned", "learned, but below")


UNMEASURED = Verdict(outcome="cannot be told", text="no evaluator gave a verdict")
RANKED: tuple[Outcome, ...] = (
    "collapsed", "learned, but below", "learned", "not learned", "cannot be told",
)  # fmt: skip
"""What decides first. One evaluator that tells it is enough for "learned": each is held to its share of the level."""


def whole_verdict(verdicts: Sequence[Verdict], alarm: str = "") -> Verdict:
    """Return the verdict of a run from those of its evaluators and the alarm it ended with.

    Those of tests that say otherwise are named after the one that decides.
    """
    verdicts = verdicts or [UNMEASURED]
    first = min(verdicts, key=lambda v: RANKED.index(v.outcome))
    others = [v.text for v in verdicts if v.outcome != first.outcome and v.tested]
    alarms = [f"alarm: {alarm}"] if alarm else []
    text = "; ".join([first.text, *others, *alarms])
    return Verdict(outcome=first.outcome, text=text, tested=first.tested)
