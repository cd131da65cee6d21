"""Verdicts: five outcomes, how seldom chance alone is called "learned", and how often a true gain is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator
from multissl.contract.verdict import Verdict, whole_verdict
from multissl.engine.judging import verdicts
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN, knn_accuracy
from multissl.evaluators.linear_probe import LinearProbe, probe_accuracy, scaled
from multissl.evaluators.verdicts import Scale, _missed, judged, learned, majority_accuracy
from multissl.statistics import Gain


def right(hits: np.ndarray) -> float:
    return estimate(100.0 * hits)


def first(share: float, n: int = 400) -> float:
    """Right on the first so many."""
    return right(np.arange(n) < share * n)


def told(now: float, untrained: float, **baselines: float) -> Verdict:
    verdict = learned("k-NN", "top1", [{"top1": untrained, **baselines}, {"top1": now}], 2.0)
    assert verdict is not None
    assert verdict.text.startswith(verdict.outcome)
    return verdict


def test_learned_is_above_every_gate() -> None:
    assert told(first(0.8), first(0.4), raw=first(0.5), majority=first(0.1)).outcome == "learned"
    for gate in ("raw", "majority"):
        gates = {"raw": first(0.1), "majority": first(0.1), gate: first(0.9)}
        verdict = told(first(0.8), first(0.4), **gates)
        assert verdict.outcome == "not learned"
        name = {"raw": "the raw input's", "majority": "the most frequent class's"}[gate]
        assert f" on {name} 90.0 %" in verdict.text


def test_a_classical_feature_above_is_named_with_the_difference() -> None:
    """As TREC-6, 16 points under TF-IDF."""
    verdict = told(first(0.6), first(0.4), raw=first(0.3), tfidf=first(0.76), counts=first(0.5))
    assert verdict.outcome == "learned, but below"
    assert verdict.learned
    assert verdict.text.startswith("learned, but below tfidf 76.0 %, -16.0 (-1")
    assert "(counts 50.0 %)" in verdict.text


def test_few_samples_cannot_tell_and_say_what_they_resolve() -> None:
    verdict = told(first(0.55, 60), first(0.5, 60))
    assert verdict.outcome == "cannot be told"
    assert verdict.text.startswith("cannot be told: k-NN 55.0 % (n=60, ")
    assert verdict.text.endswith("and n=60 resolves +-6.2")


def test_many_samples_exclude_what_would_matter() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(5000) < 0.5
    changed = hits ^ (rng.random(5000) < 0.02)
    assert told(right(changed), right(hits)).outcome == "not learned"


@pytest.mark.parametrize(("high", "outcome"), [(2.0, "not learned"), (2.1, "cannot be told")])
def test_a_gain_that_ends_at_the_margin_is_excluded(high: float, outcome: str) -> None:
    gain = Gain(mean=1.0, low=0.0, high=high, p=0.5)
    verdict = _missed("k-NN 50.0 %", {"raw": gain}, {"raw": "the raw input's"}, 9, 2.0, Scale(" %", 1))
    assert verdict.outcome == outcome


@pytest.mark.parametrize(("gate", "share"), [("raw", 1.0), ("raw", 398 / 400), ("majority", 1.0)])
def test_nothing_above_a_baseline_leaves_nothing_to_tell(gate: str, share: float) -> None:
    verdict = told(first(1.0), first(0.5), **{gate: first(share)})
    assert verdict.outcome == "cannot be told"
    assert ("all 400 labels are of one class" in verdict.text) is (gate == "majority")
    assert ("no room above the raw input's" in verdict.text) is (gate == "raw")


def test_what_is_no_number_or_was_measured_on_others_is_not_learned() -> None:
    assert told(math.nan, first(0.5)).outcome == "not learned"
    assert told(first(0.9), math.nan).outcome == "not learned"
    assert told(90.0, 50.0).outcome == "cannot be told"
    assert told(first(0.9, 400), first(0.5, 399)).outcome == "cannot be told"
    assert learned("k-NN", "top1", [{"top1": first(0.9)}], 2.0) is None


def test_one_group_tells_nothing() -> None:
    one = np.zeros(40, int)
    verdict = told(estimate(100.0 * (np.arange(40) < 30), one), estimate(100.0 * (np.arange(40) < 3), one))
    assert verdict.text.startswith("cannot be told: all 40 samples are of one group")


def test_groups_count_once() -> None:
    """Ten videos, each of forty clips that share their fate: eight gained are too few to tell, of 400 samples not."""
    groups = np.repeat(np.arange(10), 40)
    now, before = estimate(100.0 * (groups < 8), groups), estimate(100.0 * (groups < 6), groups)
    assert told(now, before).outcome == "cannot be told"
    assert told(right(groups < 8), right(groups < 6)).outcome == "learned"


def test_less_is_better_where_a_figure_is_a_cost() -> None:
    rng = np.random.default_rng(0)
    counts = rng.normal(3, 1, 300)
    now = estimate(counts - rng.normal(0.4, 0.5, 300), percent=False)
    options = {"margin": 0.05, "unit": "", "digits": 2, "rising": False}
    gates = {"the counts'": estimate(counts, percent=False)}
    assert judged("nats", now, gates, {}, **options).outcome == "learned"
    assert judged("nats", now, gates, {}, **{**options, "rising": True}).outcome == "not learned"


def test_the_whole_verdict_begins_with_what_decides_and_names_the_others() -> None:
    good = Verdict(outcome="learned", text="learned: a", tested=True)
    below = Verdict(outcome="learned, but below", text="learned, but below b", tested=True)
    bad = Verdict(outcome="not learned", text="not learned: c", tested=True)
    flat = Verdict(outcome="collapsed", text="collapsed: d")
    fine = Verdict(outcome="cannot be told", text="cannot be told: not collapsed")
    assert whole_verdict([bad, good, fine]).text == "learned: a; not learned: c"
    assert whole_verdict([good, below]).outcome == "learned, but below"
    assert whole_verdict([good, flat]).outcome == "collapsed"
    assert not whole_verdict([good, flat]).learned
    assert whole_verdict([fine]).text == fine.text
    assert whole_verdict([]).text == "no evaluator gave a verdict"
    assert whole_verdict([good], "sinking").text == "learned: a; alarm: sinking"


def test_evaluators_that_test_share_the_level() -> None:
    """18 wins and 8 losses have a p of .038: one evaluator may say learned, of two none."""
    places = np.arange(50)
    before, now = right(places >= 42), right(places < 18)
    alone: dict[str, Evaluator] = {"knn": KNN.Config().build()}
    lines = [{"step": 0, "knn/top1": before}, {"step": 9, "knn/top1": now}]
    assert verdicts(alone, lines)[0].outcome == "learned"
    both = {**alone, "linear": LinearProbe.Config().build(), "collapse": Collapse.Config().build()}
    lines = [{**line, "linear/top1": line["knn/top1"]} for line in lines]
    assert [v.outcome for v in verdicts(both, lines)] == ["cannot be told"] * 2


# ------------------------------------------------------------------- how often

EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "knn": lambda: KNN.Config().build(),
    "linear": lambda: LinearProbe.Config().build(),
}


EVEN, UNEVEN = (0.25, 0.25, 0.25, 0.25), (0.8, 0.15, 0.05)


def evaluation(
    x: torch.Tensor, raw: torch.Tensor | None, labels: torch.Tensor, bank: int
) -> dict[str, float]:
    """What k-NN and linear probe make of features [S, F] of labeled samples, the first `bank` of them for training."""
    figures: dict[str, float] = {}
    for name, features in (("top1", x), ("raw", raw)):
        if features is None:
            continue
        parts = features[:bank], labels[:bank], features[bank:], labels[bank:]
        figures[f"knn/{name}"] = knn_accuracy(*parts)[20]
        scale = None if name == "top1" else scaled
        figures[f"linear/{name}"] = probe_accuracy(*parts, (1e-2,), 10, scale=scale)
    if raw is not None:
        majority = majority_accuracy(labels[:bank], labels[bank:])
        figures |= {"knn/majority": majority, "linear/majority": majority}
    return figures


def permutations(count: int, classes: tuple[float, ...]) -> Iterator[tuple[bool, bool]]:
    """Whether permuted labels are called learned: by the verdict, and by two points above untrained and raw."""
    draw, size, bank = torch.Generator().manual_seed(0), 300, 200
    raw = torch.randn(size, 6, generator=draw)
    untrained = torch.tanh(raw @ torch.randn(6, 16, generator=draw))
    trained = torch.tanh(2 * raw @ torch.randn(6, 12, generator=draw))
    labels = torch.multinomial(torch.tensor(classes), size, replacement=True, generator=draw)
    evaluators = {name: build() for name, build in EVALUATORS.items()}
    for _ in range(count):
        dealt = labels[torch.randperm(size, generator=draw)]
        start = {"step": 0, **evaluation(untrained, raw, dealt, bank)}
        end = {"step": 9, **evaluation(trained, None, dealt, bank)}
        said = whole_verdict(verdicts(evaluators, [start, end]))
        yield said.learned, end["knn/top1"] > max(start["knn/top1"], start["knn/raw"]) + 2


@pytest.mark.parametrize(
    ("count", "classes"),
    [
        (60, EVEN),
        pytest.param(400, EVEN, marks=pytest.mark.slow),
        pytest.param(400, UNEVEN, marks=pytest.mark.slow),
    ],
)
def test_of_permutations_of_the_labels_at_most_5_percent_are_called_learned(
    count: int, classes: tuple[float, ...]
) -> None:
    said, margins = map(sum, zip(*permutations(count, classes), strict=True))
    assert said <= 0.05 * count
    if classes == EVEN:
        assert margins > 0.1 * count  # points alone are no test


@pytest.mark.parametrize("n", [200, 2000])
def test_of_200_true_gains_of_three_standard_errors_at_least_80_percent_are_called_learned(n: int) -> None:
    """Two evaluators, each three standard errors of the paired difference above its best gate, the raw input."""
    draw, said = np.random.default_rng(0), 0
    evaluators = {name: build() for name, build in EVALUATORS.items()}
    shared = 0.2  # of samples on which encoder and raw input may differ
    gain = 3 * math.sqrt(shared / n)
    for _ in range(200):
        start: dict[str, float] = {"step": 0}
        end: dict[str, float] = {"step": 9}
        for name in EVALUATORS:
            base = draw.random(n) < 0.5
            differ = draw.random(n) < shared
            wins = draw.random(n) < 0.5 + gain / (2 * shared)
            start[f"{name}/raw"] = right(np.where(differ, ~wins, base))
            start[f"{name}/top1"] = right(base & (draw.random(n) < 0.6))
            start[f"{name}/majority"] = right(draw.random(n) < 0.25)
            end[f"{name}/top1"] = right(np.where(differ, wins, base))
        said += whole_verdict(verdicts(evaluators, [start, end])).learned
    assert said >= 0.8 * 200
