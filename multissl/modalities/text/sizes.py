"""How many tokens views of documents should have, how that is said, and which options fit each other.

State: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from multissl.modalities.sizes import LOOKED_AT
from multissl.modalities.text import tokenizer
from multissl.modalities.text.tokenizer import Vocabulary

SMALLEST_VOCABULARY = tokenizer.BYTES + tokenizer.SPECIAL
WHOLE = 0.9
"""Share of the documents that a view should hold whole."""
STEP, SHORTEST, LONGEST = 8, 16, 256
"""Lengths that are chosen are multiples of the first, from the second to the last."""
BUILT_IN = 64
"""Tokens of a view of the built-in documents, at which their figures were measured."""


def sizes_for(
    texts: Sequence[str], vocabulary: Vocabulary, cfg: Any, built_in: bool
) -> tuple[dict[str, Any], str]:
    """Return the lengths that suit training texts, of which those that `cfg` says stay, and a line that says both.

    Raises a ValueError where there are none.
    """
    count = min(len(texts), LOOKED_AT)
    if not count:
        raise ValueError(
            "modality.data: no document can be read, so none says what modality.length should be"
        )
    some = [texts[number * len(texts) // count] for number in range(count)]
    lengths = sorted(len(tokens.ids) for tokens in vocabulary.encode(some))
    usual, most = lengths[count // 2], lengths[min(int(WHOLE * count), count - 1)]
    fitting = BUILT_IN if built_in else min(max(-(-most // STEP) * STEP, SHORTEST), LONGEST)
    length = cfg.length or fitting
    local = cfg.local_length or max(length * 3 // 8, 1)
    line = (
        f"views of {length} tokens and local views of {local} for documents of {usual} tokens (median of {count}; nine "
        f"of ten have up to {most}): --modality.length and --modality.local_length say otherwise; shorter views train "
        "faster"
    )
    return {"length": length, "local_length": local}, "" if built_in else line


def check_options(cfg: Any) -> None:
    """Raise a ValueError where an option is out of range, or two do not fit each other."""
    top = math.inf
    limits = {
        "vocab": (SMALLEST_VOCABULARY, top), "length": (4 if cfg.length else 0, top),
        "local_length": (1 if cfg.local_length else 0, cfg.length or top),
        "mask_group": (1, top), "span_p": (0.01, 1), "span_words": (0, top), "infill": (0, 0.9),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        if not low <= getattr(cfg, name) <= high:
            raise ValueError(f"modality.{name}={getattr(cfg, name)}: want {low:g} to {high:g}")
    if not 0 < cfg.crop[0] <= cfg.crop[1] <= 1:
        raise ValueError(f"modality.crop={cfg.crop}: want 0 < low <= high <= 1")
    if min(cfg.replacement) < 0 or sum(cfg.replacement) > 1 + 1e-9:
        raise ValueError(
            f"modality.replacement={cfg.replacement}: want two shares whose sum is at most 1, as 0.8 0.1"
        )
    if cfg.pack and cfg.crop != (1.0, 1.0):
        raise ValueError(f"modality.crop={cfg.crop} needs rows of one document: set modality.pack=False")
    if cfg.infill and not cfg.pack:
        raise ValueError(f"modality.infill={cfg.infill} needs full rows: set modality.pack=True")
