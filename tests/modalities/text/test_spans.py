"""Spans of words: how long they are (SpanBERT, Joshi et al. 2020, arXiv 1907.10529, section 3.1), and where."""

from __future__ import annotations

import numpy as np
import pytest

from multissl.modalities.text.spans import hide, span_lengths, t5_mask

LENGTH = 4000


def runs(hidden: np.ndarray) -> np.ndarray:
    """The lengths of the stretches of hidden tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    return edges[1::2] - edges[::2]


def test_lengths_follow_a_geometric_law_cut_at_ten() -> None:
    share = span_lengths(0.2)
    expected = 0.2 * 0.8 ** np.arange(10)
    np.testing.assert_allclose(share, expected / expected.sum())
    assert (share * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.05)


def test_spans_have_lengths_of_that_law() -> None:
    able, found = np.ones(LENGTH, bool), np.zeros(10)
    for seed in range(30):  # so few that they hardly meet
        hidden = hide(np.random.default_rng(seed), "span", able, able, 60, 0.2)
        assert hidden.sum() == 60
        found += np.bincount(np.minimum(runs(hidden), 10), minlength=11)[1:]
    found /= found.sum()
    np.testing.assert_allclose(found, span_lengths(0.2), atol=0.05)


def test_words_are_hidden_whole_and_separators_never() -> None:
    starts = np.arange(LENGTH) % 4 == 0  # words of four tokens
    able = np.arange(LENGTH) % 40 >= 4  # every tenth of them is a separator
    for kind in ("word", "span"):
        hidden = hide(np.random.default_rng(0), kind, able, starts, 200, 0.2)
        assert hidden.sum() == 200
        assert not hidden[~able].any()
        by_word = hidden.reshape(-1, 4).sum(1)
        assert set(by_word.tolist()) == {0, 4}
    assert (runs(hide(np.random.default_rng(0), "word", able, starts, 40, 0.2)) == 4).mean() > 0.8


def test_spans_of_constant_length_have_it() -> None:
    able = np.ones(LENGTH, bool)
    hidden = hide(np.random.default_rng(0), "span", able, able, 50, 0.2, 5)
    assert (runs(hidden) == 5).mean() > 0.8


def test_tokens_are_hidden_one_by_one() -> None:
    able = np.arange(LENGTH) % 2 == 0
    hidden = hide(np.random.default_rng(0), "token", able, able, 50)
    assert hidden.sum() == 50
    assert not hidden[~able].any()


@pytest.mark.parametrize(("count", "spans"), [(30, 10), (15, 15), (1, 1), (90, 10)])
def test_noise_of_t5_has_as_many_spans_and_ends_hidden(count: int, spans: int) -> None:
    for seed in range(20):
        mask = t5_mask(np.random.default_rng(seed), 100, count, spans)
        assert mask.sum() == count
        assert len(runs(mask)) == spans
        assert mask[-1]
        assert not mask[0]
