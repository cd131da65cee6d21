"""How well a language model foretells held-out text, beside count models of the same training text.

`MaskedWord`: one word of a row is hidden whole and all its pieces are predicted (objective mlm); in nats a word, the
sum over its pieces. The floor interpolates counts of the word between the same two neighbours; see
modalities.text_counts. `BitsPerCharacter`: every token of running text from those before it (objective next_token); the
sum over the tokens, over the characters they spell, so that tokenizers compare. The first token of a document costs as
much as a uniform guess. The floor counts runs of six characters. Both need the objective, so they measure while a run
trains, not a saved encoder.
Shapes: W words, R rows, N tokens, M hidden tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from multissl.evaluators.base import Evaluator, device_of, evaluating, first_and_last
from multissl.types import Encode, Modality, Progress, Views

Errors = Callable[[Views], Tensor]


class HeldOut(Evaluator):
    """What the two share: the objective's errors on what the modality asks, lower is better."""

    figure: ClassVar[str] = ""
    floor: ClassVar[str] = ""
    asks: ClassVar[str] = ""
    """The modality's method."""
    what: ClassVar[str] = ""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of an evaluation on held-out text."""

        split: str = "val"
        """Where the text comes from; the counts see the train split alone."""
        count: int = 0
        """Words or documents, drawn with a fixed seed; 0: all."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.count < 0:
                raise ValueError(f"count={self.count}: want 0 (all) or a number")

    cfg: Config

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._asked: Any = None

    def run(self, encoders: Encode, modality: Modality, progress: Progress) -> dict[str, float]:
        """The figure; nothing where modality or objective have no such prediction, or the objective is not at hand."""
        errors: Errors | None = getattr(encoders, "errors", None)
        if errors is None or not hasattr(modality, self.asks):
            self.nothing("the objective and the modality at hand cannot tell")
            return {}
        device = device_of(encoders)
        with evaluating(encoders), torch.no_grad():
            return self.measure(lambda views: errors(views.to(device)).double().cpu(), self._ask(modality))

    def measure(self, errors: Errors, asked: Any) -> dict[str, float]:
        """Figures by name."""
        raise NotImplementedError

    def _ask(self, modality: Modality) -> Any:
        if self._asked is None:
            self._asked = getattr(modality, self.asks)(self.cfg.split, self.cfg.count)
        return self._asked

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Learned where the last figure is below that of the counts."""
        measured = first_and_last(self.figure, history)
        if measured is None or self.floor not in measured[0]:
            return None
        first, last = measured
        now, start, counts = last[self.figure], first[self.figure], first[self.floor]
        said = f"{self.what} {now:.2f} against {counts:.2f} of counts (untrained {start:.2f})"
        if now < counts:
            return True, f"learned: {said}"
        return False, f"not learned: {said}"


class MaskedWord(HeldOut):
    """Nats that a hidden word costs."""

    titles: ClassVar[dict[str, str]] = {"nats": "a hidden word, nats", "gain": "nats below the counts"}
    figure, floor, asks, what = "nats", "counts", "hidden_words", "nats a hidden word"

    @dataclass(kw_only=True, slots=True)
    class Config(HeldOut.Config):
        """Options of hidden words."""

        count: int = 2_000

    def measure(self, errors: Errors, asked: tuple[list[Views], dict[str, np.ndarray]]) -> dict[str, float]:
        """`nats` a word; `gain`, by how much the counts are above, with its 95 % interval over the words."""
        found = []
        for views in asked[0]:
            mask = cast(Any, views.mask)
            rows = mask.index // views.x.shape[1]
            cost = errors(views)  # [M]
            found.append(cost.new_zeros(len(views.x)).index_add_(0, rows, cost))
        nats = torch.cat(found).numpy()  # [W]
        gains = asked[1]["counts"] - nats
        error = 1.96 * float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        gain = float(gains.mean())
        return {"nats": float(nats.mean()), "gain": gain, "gain_low": gain - error, "gain_high": gain + error}

    def floors(self, modality: Modality) -> dict[str, float]:
        """Nats a word of the count models."""
        if not hasattr(modality, self.asks):
            return {}
        return {name: float(paid.mean()) for name, paid in self._ask(modality)[1].items()}


class BitsPerCharacter(HeldOut):
    """Bits that a character of running text costs."""

    titles: ClassVar[dict[str, str]] = {"bits": "bits a character"}
    figure, floor, asks, what = "bits", "counts", "running", "bits a character"

    @dataclass(kw_only=True, slots=True)
    class Config(HeldOut.Config):
        """Options of running text."""

        count: int = 200

    def measure(self, errors: Errors, asked: Any) -> dict[str, float]:
        """`bits` a character."""
        nats = sum(
            float((errors(views) * told).sum()) for views, told in zip(asked.views, asked.told, strict=True)
        )
        nats += asked.documents * math.log(asked.symbols)
        return {"bits": nats / math.log(2) / asked.characters}

    def floors(self, modality: Modality) -> dict[str, float]:
        """Bits a character of the counts."""
        return {"counts": self._ask(modality).floor} if hasattr(modality, self.asks) else {}
