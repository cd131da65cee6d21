"""Count models of text: values by hand, chances that sum to one, and a baseline as other tools compute it."""

from __future__ import annotations

import math

import numpy as np

from multissl.modalities.text.counts import Neighbors, Words, characters, words_of


def word(number: int, pieces: int = 1) -> bytes:
    return np.array([number] * pieces, dtype=np.int32).tobytes()


def corpus(documents: int = 40) -> list[list[bytes]]:
    rng = np.random.default_rng(0)
    return [[word(n, 1 + n % 2) for n in rng.integers(6, size=12).tolist()] for _ in range(documents)]


def test_words_know_their_neighbors_inside_a_document() -> None:
    known: dict[bytes, int] = {}
    words = words_of([[word(7), word(8, 2), word(7)], [word(9)]], known, True)
    assert words.word.tolist() == [1, 2, 1, 3]
    assert words.left.tolist() == [0, 1, 2, 0]
    assert words.right.tolist() == [2, 1, 0, 0]
    assert words.pieces.tolist() == [1, 2, 1, 1]
    assert words.document.tolist() == [0, 0, 0, 1]
    assert words_of([[word(9), word(5)]], known, False).word.tolist() == [3, 0]
    assert len(known) == 3


def test_terms_are_relative_frequencies() -> None:
    known: dict[bytes, int] = {}
    a, b, c, long = word(1), word(2), word(3), word(4, 2)
    train = words_of([[a, b, c], [a, b, c], [a, c, c], [b, c, long]] * 10, known, True)
    asked = words_of([[a, b, c]], known, False).where(np.array([1]))
    terms, seen, _ = Neighbors(train).terms(asked)
    # b of one-piece words: between a and c 2 of 3 times, after a 2 of 3, before c 3 of 5, of all 3 of 11
    np.testing.assert_allclose(terms, [[2 / 3, 2 / 3, 3 / 5, 3 / 11]])
    assert seen.all()


def test_the_chances_of_all_words_of_as_many_pieces_sum_to_one() -> None:
    known: dict[bytes, int] = {}
    train = words_of(corpus(), known, True)
    model = Neighbors(train)
    assert np.allclose(model.weights.sum(1), 1)
    of_one = [number for spelled, number in known.items() if len(spelled) == 4]
    for left, right in ((1, 2), (3, 3), (0, 4), (0, 0)):
        ones = np.ones(len(of_one), dtype=np.int64)
        asked = Words(np.array(of_one), left * ones, right * ones, ones, 0 * ones)
        assert math.isclose(np.exp(-model.nats(asked)).sum(), 1.0, rel_tol=1e-9)


def test_neighbors_that_tell_are_found_and_unknown_words_cost_infinitely() -> None:
    rng = np.random.default_rng(0)
    known: dict[bytes, int] = {}
    # the word in the middle is told by the one before it, the one after it is drawn
    told = [
        [word(n), word(n + 10), word(30 + int(rng.integers(5)))] for n in rng.integers(10, size=400).tolist()
    ]
    model = Neighbors(words_of(told, known, True))
    middle = words_of(told[:50], known, False).where(np.tile([False, True, False], 50))
    assert model.nats(middle).mean() < 0.1
    stranger = words_of([[word(1), word(99), word(30)]], known, False).where(np.array([1]))
    assert np.isinf(model.nats(stranger)).all()


def test_characters_by_hand_and_told_by_what_comes_before() -> None:
    # counts of "aab": a 2, b 1, two kinds; "a": uniform 1/3, then (2 + 2/3) / (3 + 2)
    assert math.isclose(characters(["aab"], ["a"], 1), -math.log2((2 + 2 / 3) / 5))
    # after "a": a 1, b 1, two kinds: (1 + 2 * p(b)) / (2 + 2) with p(b) = (1 + 2/3) / 5
    both = -math.log2((2 + 2 / 3) / 5) - math.log2((1 + 2 * (1 + 2 / 3) / 5) / 4)
    assert math.isclose(characters(["aab"], ["ab"], 2), both / 2)
    text = "the cat sees the dog and the dog sees the cat. " * 50
    assert characters([text], [text[:500]]) < 0.3
    assert characters([text], ["\N{SNOWMAN}"]) > 4
