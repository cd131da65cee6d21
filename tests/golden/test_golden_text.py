"""Golden cases of text in the family `text_audio`: T5's spans, BERT's and SpanBERT's masks.

Statistics have to lie within three times the spread of re-draws of the reference's own code. Ours hide a constant
number of tokens, as SpanBERT's code does for both of its schemes; transformers' collator hides a binomial one, so of
its counts only the rate is compared.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from multissl.modalities.text.spans import (
    budget,
    hide,
    replace_hidden,
    span_lengths,
    t5_corrupt,
    t5_lengths,
    t5_mask,
    t5_spans,
)

from . import Case, cases
from .test_golden_stochastic import near

pytestmark = pytest.mark.reference
MASK, VOCABULARY = 0, 1000


def run_lengths(hidden: np.ndarray) -> np.ndarray:
    """Lengths of the runs of True in bool [N]."""
    edges = np.diff(np.concatenate([[0], hidden.astype(np.int8), [0]]))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


def histogram(masks: np.ndarray, size: int) -> np.ndarray:
    lengths = np.concatenate([run_lengths(row) for row in masks])
    return np.bincount(np.minimum(lengths, size - 1), minlength=size)


def rates(ids: np.ndarray, changed: np.ndarray, hidden: np.ndarray) -> tuple[float, float, float]:
    """Of the hidden tokens: mask id, another id, the same id."""
    was, now = ids[hidden], changed[hidden]
    return (
        float((now == MASK).mean()),
        float(((now != was) & (now != MASK)).mean()),
        float((now == was).mean()),
    )


@pytest.mark.parametrize("case", cases("text_audio", "t5_noise_mask"))
def test_golden_t5_masks(case: Case) -> None:
    hyper, out, rng = case.hyper, case.tensors("out"), np.random.default_rng(0)
    count, spans = t5_spans(hyper["L"], hyper["density"], hyper["mean_span"])
    assert (count, spans) == (int(out["num_noise"]), int(out["num_spans"]))
    masks = np.stack([t5_mask(rng, hyper["L"], count, spans) for _ in range(max(hyper["n"], 1000))])
    assert (masks.sum(1) == count).all()
    assert all(len(run_lengths(m)) == spans for m in masks)
    near(case, "position_freq", masks.mean(0))
    near(case, "span_len_hist", histogram(masks, len(out["span_len_hist"])))


@pytest.mark.parametrize("case", cases("text_audio", "t5_span_corruption"))
def test_golden_t5_corruption(case: Case) -> None:
    given, out = case.tensors("in"), case.tensors("out")
    ids, hidden, last = given["tokens"].numpy(), given["mask"].numpy(), case.hyper["vocab"] - 1
    assert np.array_equal(t5_corrupt(ids, hidden, last), out["inputs"].numpy())
    assert np.array_equal(t5_corrupt(ids, ~hidden, last), out["targets"].numpy())
    assert np.array_equal(ids[~hidden], out["dropped"].numpy())
    single = np.where(
        out["inputs"].numpy() >= last - len(run_lengths(hidden)) + 1, last, out["inputs"].numpy()
    )
    assert np.array_equal(single, out["single"].numpy())


@pytest.mark.parametrize("case", cases("text_audio", "t5_lengths"))
def test_golden_t5_lengths(case: Case) -> None:
    table = case.tensors("out")["table"].tolist()
    assert [length for length, _, _ in table] == case.hyper["lens"]
    for length, tokens, targets in table:
        assert t5_lengths(length, case.hyper["density"], case.hyper["mean_span"]) == (tokens, targets)


@pytest.mark.parametrize("case", cases("text_audio", "bert_mlm_mask"))
def test_golden_bert_masks(case: Case) -> None:
    hyper, rng = case.hyper, np.random.default_rng(0)
    length, able = hyper["L"], np.ones(hyper["L"], bool)
    count = budget("token", length, hyper["prob"])
    ids = rng.integers(1, hyper["V"], (1000, length))
    content = np.arange(1, hyper["V"])
    hidden = np.stack([hide(rng, "token", able, able, count) for _ in ids])
    pairs = zip(ids, hidden, strict=True)
    changed = np.stack([replace_hidden(rng, i, h, MASK, content, (0.8, 0.1), False) for i, h in pairs])
    near(case, "rate_selected", hidden.mean())
    for name, value in zip(("mask_token", "changed", "unchanged"), rates(ids, changed, hidden), strict=True):
        near(case, f"rate_{name}", value)


@pytest.mark.parametrize("case", cases("text_audio", "spanbert_mask"))
def test_golden_spanbert_masks(case: Case) -> None:
    hyper, out, rng = case.hyper, case.tensors("out"), np.random.default_rng(0)
    length, n = hyper["L"], max(hyper["n"], 1000)
    torch.testing.assert_close(torch.from_numpy(span_lengths(hyper["p"])).float(), out["len_probs"])
    count = budget("span", length, hyper["ratio"])
    assert count == int(out["count"]) == int(out["bert_count"]) == math.ceil(length * hyper["ratio"])
    able, content = np.ones(length, bool), np.arange(1, VOCABULARY)
    ids = rng.integers(1, VOCABULARY, (n, length))
    starts = rng.random((n, length)) < hyper["ws"]
    hidden = np.stack([hide(rng, "span", able, s, count, hyper["p"]) for s in starts])
    assert (hidden.sum(1) == count).all()
    by_run = hyper["rep"] == "span"
    pairs = zip(ids, hidden, strict=True)
    changed = np.stack([replace_hidden(rng, i, h, MASK, content, (0.8, 0.1), by_run) for i, h in pairs])
    near(case, "run_len_hist", histogram(hidden, len(out["run_len_hist"])))
    near(case, "position_freq", hidden.mean(0))
    for name, value in zip(("mask_token", "changed", "unchanged"), rates(ids, changed, hidden), strict=True):
        near(case, f"rate_{name}", value)
    plain = np.stack([hide(rng, "token", able, able, count) for _ in ids])
    pairs = zip(ids, plain, strict=True)
    changed = np.stack([replace_hidden(rng, i, h, MASK, content, (0.8, 0.1), False) for i, h in pairs])
    near(case, "bert_rates", rates(ids, changed, plain))
