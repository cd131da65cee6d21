"""TF-IDF of word 1-2-grams: scikit-learn's, of what a row of ids holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multissl.inference import clean_views
from multissl.modalities.text import baselines
from multissl.modalities.text.adapter import Text
from multissl.modalities.text.baselines import Tfidf, grams

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
LINES = [
    f"The {a} {b}, the {c} near 3 houses." for a in ("cat", "dog") for b in ("sees", "walks") for c in "xyz"
]


def test_grams_are_words_and_their_neighbors() -> None:
    assert grams("The cat, the") == ["the", "cat", "the", "the cat", "cat the"]


def test_it_is_scikit_learns_of_the_decoded_rows(tmp_path: Path) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES))
    modality = Text(Text.Config(data=str(path), vocab=300, length=64)).fit()
    data = modality.dataset("val")
    views = clean_views(modality, [data[i] for i in range(len(data))], "text")
    train = modality._texts("train")
    theirs = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+").fit(train)
    expected = torch.from_numpy(theirs.transform(modality._texts("val")).toarray()).float()
    ours = modality.baselines()["tfidf"]
    assert isinstance(ours, Tfidf)
    order = [ours.place[gram] for gram in theirs.get_feature_names_out()]
    torch.testing.assert_close(ours(views)[:, order], expected)


def test_the_most_frequent_grams_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "WIDTH", 3)
    made = Tfidf(["a b", "a c", "a b"], decode=lambda ids: "")
    assert [*made.place] == ["a", "b", "a b"]
