"""How well a language model foretells held-out text, beside count models of the same training text.

`MaskedWord`: one word of a row is hidden whole and all its pieces are predicted (objective mlm); in nats a word, the
sum over its pieces. The baseline interpolates counts of the word between the same two neighbors; see
modalities.text_counts. `BitsPerCharacter`: every token of running text from those before it (objective next_token); the
sum over the tokens, over the characters they spell, so that tokenizers compare. The first token of a document costs as
much as a uniform guess. The baseline counts runs of six characters. Both need the objective, so they measure while a
run trains, not a saved encoder.
Shapes: W words, R rows, N tokens, M hidden tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from multissl.contract.abilities import HasText, HiddenWords, Running
from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.finite import NotFinite
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.verdicts import UNTRAINED, first_and_last, judged
from multissl.statistics import LEVEL

Errors = Callable[[Views], Tensor]
COUNTS = "counts"
"""The count model that a verdict compares with."""


class HeldOut(Evaluator):
    """What the two share: the objective's errors on held-out text, lower is better."""

    figure: ClassVar[str]
    what: ClassVar[str]
    """What the figure is called in verdicts."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of an evaluation on held-out text."""

        split: str = "val"
        """Where the text comes from; the counts see the train split alone."""
        count: int = 0
        """Words or documents, drawn with a fixed seed; 0: all."""
        margin: float = 0.05
        """How far below the counts and the untrained encoder would matter, in the figure's unit."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.count < 0:
                raise ValueError(f"count={self.count}: want 0 (all) or a number")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """The figure; nothing where modality or objective have no such prediction, or the objective is not at hand."""
        errors = encoders.part_errors
        if errors is None or not isinstance(modality, HasText):
            self.warn_nothing_to_measure("the objective and the modality at hand cannot tell")
            return {}
        device = encoders.device
        with torch.no_grad():
            return self.measure(lambda views: errors(views.to(device)).double().cpu(), modality)

    @abstractmethod
    def measure(self, errors: Errors, text: HasText) -> dict[str, float]:
        """Return figures by name."""

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last figure is below that of the counts and of the untrained encoder."""
        measured = first_and_last(self.figure, history)
        if measured is None or COUNTS not in measured[0]:
            return None
        first, last = measured
        return judged(
            self.what,
            last[self.figure],
            {UNTRAINED: first[self.figure], "the counts'": first[COUNTS]},
            {},
            margin=self.cfg.margin,
            level=level,
            unit="",
            rising=False,
            digits=2,
        )


class MaskedWord(HeldOut):
    """Nats that a hidden word costs."""

    titles: ClassVar[dict[str, str]] = {"nats": "a hidden word, nats", "gain": "nats below the counts"}
    figure, what = "nats", "nats a hidden word"

    @dataclass(kw_only=True, slots=True)
    class Config(HeldOut.Config):
        """Options of hidden words."""

        count: int = 2_000
        """Words or documents to measure, drawn with a fixed seed; 0 takes all."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._words: HiddenWords | None = None

    def words(self, text: HasText) -> HiddenWords:
        """Return the words that are asked for, drawn once."""
        if self._words is None:
            self._words = text.hidden_words(self.cfg.split, self.cfg.count)
        return self._words

    def measure(self, errors: Errors, text: HasText) -> dict[str, float]:
        """`nats` a word; `gain`, by how much the counts are above."""
        words, paid = self.words(text), []
        for views in words.views:
            assert views.mask is not None
            rows = views.mask.index // views.x.shape[1]
            try:
                cost = errors(views)  # [M]
            except NotFinite as bad:
                word = sum(len(costs) for costs in paid) + int(rows[bad.rows[0]])
                raise bad.named(f"hidden word {word} of the {self.cfg.split} split") from None
            paid.append(cost.new_zeros(len(views.x)).index_add_(0, rows, cost))
        nats = torch.cat(paid).numpy()  # [W]
        gains = words.nats[COUNTS] - nats
        return {"nats": estimate(nats, percent=False), "gain": estimate(gains, percent=False)}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """Nats a word of the count models."""
        if not isinstance(modality, HasText):
            return {}
        return {name: estimate(paid, percent=False) for name, paid in self.words(modality).nats.items()}


class BitsPerCharacter(HeldOut):
    """Bits that a character of running text costs."""

    titles: ClassVar[dict[str, str]] = {"bits": "bits per character"}
    figure, what = "bits", "bits per character"

    @dataclass(kw_only=True, slots=True)
    class Config(HeldOut.Config):
        """Options of running text."""

        count: int = 200
        """Words or documents to measure, drawn with a fixed seed; 0 takes all."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._running: Running | None = None

    def running(self, text: HasText) -> Running:
        """Return the documents that are asked for, drawn once."""
        if self._running is None:
            self._running = text.running(self.cfg.split, self.cfg.count)
        return self._running

    def measure(self, errors: Errors, text: HasText) -> dict[str, float]:
        """`bits` a character; its interval is over rows, each of which is scored on what is new in it."""
        rows = self.running(text)
        paid, before = [], 0
        for views, new in zip(rows.views, rows.first_seen, strict=True):
            try:
                paid.append((errors(views) * new).sum(1))
            except NotFinite as bad:
                row = before + bad.rows[0]
                raise bad.named(f"row {row} of the running text of the {self.cfg.split} split") from None
            before += len(views.x)
        nats = torch.cat(paid).double().numpy()  # [R], the first tokens of documents spread over all rows
        nats = nats + rows.documents * math.log(rows.symbols) / len(nats)
        return {"bits": estimate(nats * len(nats) / math.log(2) / rows.characters, percent=False)}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """Bits per character of the counts."""
        return {COUNTS: self.running(modality).baseline} if isinstance(modality, HasText) else {}
