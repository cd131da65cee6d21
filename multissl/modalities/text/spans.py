"""Which tokens of a text are hidden, and what stands in their place.

token: uniformly random tokens (BERT, Devlin et al., NAACL 2019, arXiv 1810.04805). word: whole words. span: runs of
whole words of geometric length (SpanBERT, Joshi et al., TACL 2020, arXiv 1907.10529, section 3.1). All three hide
exactly ceil(share * N) tokens, so the last word may be cut. t5: round(share * N) tokens in a fixed number of spans,
lengths drawn as random compositions; a text begins with a shown token and ends with a hidden one (Raffel et al., JMLR
2020, arXiv 1910.10683, section 3.1.4). Tokens that stand for no text are never hidden, and a span does not cross them.
Replacement: of the hidden tokens 80 % become the mask id, 10 % another token, 10 % stay (BERT); under `span` a whole
run shares one fate (SpanBERT).
Shapes: N tokens of a row, S spans.  State: none.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np

Kind = Literal["token", "word", "span", "t5"]
GEOMETRIC, LONGEST = 0.2, 10
"""SpanBERT's chance that a span ends after a word, and its longest span in words."""
T5_MEAN = 3.0
"""Mean tokens of a span of T5."""


def budget(kind: Kind, tokens: int, share: float) -> int:
    """Hidden tokens of `tokens`, 1 to tokens - 1."""
    if kind == "t5":  # half to even, in single precision
        wanted = int(np.rint(np.float32(tokens) * np.float32(share)))
    else:
        wanted = math.ceil(round(tokens * share, 6))  # 100 * 0.07 is 7.000000000000001
    return min(max(wanted, 1), tokens - 1)


@cache
def span_lengths(p: float = GEOMETRIC, longest: int = LONGEST) -> np.ndarray:
    """Probabilities of 1 to `longest` words: geometric, cut off and renormalized."""
    weights = p * (1 - p) ** np.arange(longest)
    return weights / weights.sum()


def hide(
    rng: np.random.Generator,
    kind: Kind,
    able: np.ndarray,
    starts: np.ndarray,
    count: int,
    p: float = GEOMETRIC,
    constant: int = 0,
) -> np.ndarray:
    """Exactly `count` of the tokens that are `able` hidden: bool [N]. `starts` tells where words begin.

    `p` is the geometric chance of `span`; a `constant` number of words may take its place.
    """
    hidden = np.zeros(len(able), dtype=bool)
    places = np.flatnonzero(able)
    if kind == "token":
        hidden[rng.permutation(places)[:count]] = True
    elif kind == "t5":
        hidden[places] = t5_mask(rng, len(places), count, max(1, int(np.rint(count / T5_MEAN))))
    else:
        _hide_words(rng, able, starts, count, hidden, None if kind == "word" else span_lengths(p), constant)
    return hidden


def _hide_words(
    rng: np.random.Generator, able: np.ndarray, starts: np.ndarray, count: int, hidden: np.ndarray,
    lengths: np.ndarray | None, constant: int,
) -> None:  # fmt: skip
    """Words around random tokens, into `hidden`: one at a time, or as many as `lengths` or `constant` say."""
    first = starts | ~able
    first[0] = True
    first[1:] |= ~able[:-1]  # what follows a separator begins a word
    heads = np.flatnonzero(first)
    ends = np.append(heads[1:], len(able))
    number = np.cumsum(first) - 1  # the word of every token
    left = count
    while left:
        free = np.flatnonzero(able & ~hidden)
        word = int(number[free[rng.integers(len(free))]])
        words = 1
        if lengths is not None:
            words = constant or 1 + int(rng.choice(len(lengths), p=lengths))
        for each in range(word, min(word + words, len(heads))):
            if not able[heads[each]] or not left:
                break
            part = np.arange(heads[each], ends[each])
            part = part[~hidden[part]][:left]
            hidden[part] = True
            left -= len(part)


def t5_spans(tokens: int, share: float, mean: float = T5_MEAN) -> tuple[int, int]:
    """Hidden tokens and spans of a text of `tokens`."""
    count = budget("t5", tokens, share)
    return count, max(1, int(np.rint(np.float32(count) / np.float32(mean))))


def t5_mask(rng: np.random.Generator, tokens: int, count: int, spans: int) -> np.ndarray:
    """`count` of `tokens` hidden in `spans` runs, bool [N]; the first token is shown, the last one hidden."""
    spans = min(spans, count, tokens - count)
    runs = np.stack(
        [_parts(rng, tokens - count, spans), _parts(rng, count, spans)], 1
    )  # [S, shown and hidden]
    return np.repeat(np.tile([False, True], spans), runs.reshape(-1))


def _parts(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """A total cut into non-empty parts, every way as likely: int64 [parts]."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def t5_corrupt(ids: np.ndarray, hidden: np.ndarray, first: int) -> np.ndarray:
    """Every run of hidden tokens becomes one sentinel; ids `first`, `first` - 1, ... in order."""
    begins = hidden & ~np.concatenate([[False], hidden[:-1]])
    out = np.where(begins, first - (np.cumsum(begins) - 1), ids)
    return out[~hidden | begins]


def t5_lengths(length: int, share: float, mean: float = T5_MEAN) -> tuple[int, int]:
    """How many tokens give inputs of at most `length`, and their targets' length; both with an end of text."""

    def both(tokens: int) -> tuple[int, int]:
        count, spans = t5_spans(tokens, share, mean)
        return tokens - count + spans + 1, count + spans + 1

    tokens = length
    while both(tokens + 1)[0] <= length:
        tokens += 1
    targets = both(tokens)[1]
    if share == 0.5 and targets > length:
        return tokens - 1, targets - 1
    return tokens, targets


def replace_hidden(
    rng: np.random.Generator,
    ids: np.ndarray,
    hidden: np.ndarray,
    mask: int,
    content: np.ndarray,
    shares: tuple[float, float],
    by_run: bool,
) -> np.ndarray:
    """ids [N] with hidden tokens replaced: shares of (mask id, random token of `content`), the rest stays."""
    fate = rng.random(len(ids))
    if by_run:
        begins = hidden & ~np.concatenate([[False], hidden[:-1]])
        fate = fate[np.maximum.accumulate(np.where(begins, np.arange(len(ids)), 0))]
    other = content[rng.integers(len(content), size=len(ids))]
    out = np.where(hidden & (fate < shares[0]), mask, ids)
    return np.where(hidden & (fate >= shares[0]) & (fate < sum(shares)), other, out)
