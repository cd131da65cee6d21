"""Held-out text: what is asked of a language model, its sums, and what stands beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import build_encoders
from multissl.contract.estimate import Estimate, estimate
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Progress
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.evaluators.hidden_text import BitsPerCharacter, MaskedWord
from multissl.modalities.text.adapter import Text
from multissl.modalities.views import pack_masks
from multissl.objectives.language import MLM, NextToken
from tests.evaluators.clusters import Clusters, frozen

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

START, CPU = Progress(step=0, total=10), torch.device("cpu")
WORDS = ["the", "cat", "dog", "sees", "walks", "unbelievably", "near", "house", "3", ","]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    rng = np.random.RandomState(0)
    lines = [" ".join(rng.choice(WORDS, rng.randint(1, 60))) for _ in range(100)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return Text(Text.Config(data=str(path), vocab=280, length=16, local_length=8)).fit()


def predicting(text: Text, objective: Any) -> FrozenEncoders:
    torch.manual_seed(0)
    config = TransformerEncoder.Config(dim=16, depth=1, heads=2, pooling="mean", init_std=0.0)
    specs = text.streams()
    made = build_encoders({"text": config}, specs)
    return Learner(made, objective.build(made, specs)).eval().frozen("exported", CPU)


def answering(errors: Callable[[Views], Tensor]) -> FrozenEncoders:
    """Encoders of the identity whose objective gives these errors."""
    return replace(frozen(), part_errors=errors)


def test_each_row_hides_one_whole_word_that_training_knows(text: Text) -> None:
    hidden_words = text.hidden_words("val", 0)
    views, paid = hidden_words.views, hidden_words.nats
    train: Any = text.dataset("train")
    pieces = text.vocabulary().pieces
    known = set("".join(pieces(train.ids.tolist())).split())
    words = []
    for each in views:
        assert each.mask is not None
        assert each.target is not None
        assert each.valid is not None
        hidden = each.mask.hidden
        assert (each.x[hidden] == text.vocabulary().mask).all()
        assert torch.equal(each.x[~hidden], each.target[~hidden])
        assert not (hidden & ~each.valid).any()
        for row, under, real in zip(each.target, hidden, each.valid, strict=True):
            words.append("".join(pieces(row[under].tolist())))
            assert (row[~real] == text.vocabulary().pad).all()
    assert {w[0] for w in words} == {" "}
    assert {w.strip() for w in words} == known - {"3", ","} == set(WORDS) - {"3", ","}
    assert any(int(v.mask.hidden.sum(1).max()) > 1 for v in views if v.mask)  # several pieces
    assert paid["counts"].shape == paid["unigram"].shape == (len(words),)
    assert np.isfinite(paid["counts"]).all()
    again = text.hidden_words("val", 7)
    assert sum(len(v.x) for v in again.views) == 7


def test_nats_are_summed_over_the_pieces_of_a_word(text: Text) -> None:
    words = text.hidden_words("val", 50)

    def errors(views: Views) -> Tensor:
        assert views.mask is not None
        return torch.where(views.mask.weight > 0, 2.0, 0.0)

    evaluator = MaskedWord(MaskedWord.Config(count=50))
    found = evaluator.run(answering(errors), text, START)
    pieces = [int(hidden.sum()) for v in words.views if v.mask for hidden in v.mask.hidden]
    assert len(pieces) == 50
    assert found["nats"] == pytest.approx(2 * np.mean(pieces))
    baselines = evaluator.baselines(text)
    assert baselines["counts"] == pytest.approx(words.nats["counts"].mean())
    assert found["gain"] == pytest.approx(baselines["counts"] - found["nats"])
    gain = found["gain"]
    assert isinstance(gain, Estimate)
    assert gain.n == 50
    assert gain.low < gain < gain.high


def test_running_text_tells_every_token_once(text: Text) -> None:
    running = text.running("val", 0)
    data: Any = text.dataset("val")
    predicted = sum(int(t.sum()) for t in running.first_seen)
    assert predicted == len(data.ids) - len(data.ends)  # all but the first of each document
    assert running.documents == len(data.ends)
    rows = [row for v in running.views for row in v.x]
    new = [row for t in running.first_seen for row in t]
    spelled = [int(i) for row, fresh in zip(rows, new, strict=True) for i in row[1:][fresh]]
    firsts = set(np.append(0, data.ends[:-1]).tolist())
    assert spelled == [int(i) for n, i in enumerate(data.ids) if n not in firsts]
    late = [
        int(fresh.nonzero()[0]) for row, fresh in zip(rows, new, strict=True) if fresh.any() and not fresh[0]
    ]
    assert late
    assert min(late) >= 16 // 2 - 1  # what is predicted late has half a row before it
    assert 0 < running.baseline < 8
    assert text.running("val", 3).documents == 3


def test_bits_are_those_of_a_uniform_guess(text: Text) -> None:
    size = text.vocabulary().size
    running = text.running("val", 0)
    tokens = sum(int(t.sum()) for t in running.first_seen) + running.documents

    def errors(views: Views) -> Tensor:
        return torch.full((len(views.x), views.x.shape[1] - 1), math.log(size))

    evaluator = BitsPerCharacter(BitsPerCharacter.Config(count=0))
    found = evaluator.run(answering(errors), text, START)
    assert found["bits"] == pytest.approx(tokens * math.log2(size) / running.characters)
    assert evaluator.baselines(text) == {"counts": running.baseline}
    raw = [json.loads(line)["text"] for line in Path(text.cfg.data).read_text().splitlines()]
    assert running.characters == sum(len(t) for i, t in enumerate(raw) if i % 10 == 9)


@pytest.mark.parametrize(
    ("objective", "evaluator", "figure"),
    [
        (MLM.Config(), MaskedWord.Config(count=40), "nats"),
        (NextToken.Config(), BitsPerCharacter.Config(), "bits"),
    ],
)
def test_an_untrained_model_guesses_uniformly(
    text: Text, objective: Any, evaluator: Any, figure: str
) -> None:
    made = evaluator.build()
    found = made.run(predicting(text, objective), text, START)
    baselines = made.baselines(text)
    assert found[figure] > baselines["counts"]
    first, start = {**found, **baselines}, found[figure]
    assert isinstance(start, Estimate)
    assert start.scores is not None
    gain = start - baselines["counts"] + 5
    verdict = made.verdict([first, {figure: estimate(start.scores - gain, percent=False)}])
    assert verdict is not None
    assert verdict.outcome == "learned"
    assert f"the counts' {baselines['counts']:.2f}" in verdict.text
    verdict = made.verdict([first, found])
    assert verdict is not None
    assert verdict.outcome == "not learned"
    assert made.verdict([first]) is None


@pytest.mark.parametrize("row", [0, 3, 7])
def test_the_row_of_an_error_that_is_no_number_is_named(text: Text, row: int, said: list[str]) -> None:
    running = text.running("val", 0)
    ((whole,), (new,)) = running.views, running.first_seen
    parts = [torch.arange(5), torch.arange(5, len(whole.x))]
    evaluator = BitsPerCharacter(BitsPerCharacter.Config(count=0))
    evaluator._running = replace(
        running, views=[whole.samples(p) for p in parts], first_seen=[new[p] for p in parts]
    )
    seen = 0

    def errors(views: Views) -> Tensor:
        nonlocal seen
        costs = torch.ones(len(views.x), views.x.shape[1] - 1)
        if seen <= row < seen + len(costs):
            costs[row - seen] = math.nan
        seen += len(costs)
        return costs

    found = evaluator.run(answering(errors), text, START)
    assert math.isnan(found["bits"])
    assert said == [f"bits_per_character: not a number: row {row} of the running text of the val split"]


@pytest.mark.parametrize("word", [0, 2, 5, 11])
def test_the_word_of_an_error_that_is_no_number_is_named(text: Text, word: int, said: list[str]) -> None:
    """Words are counted over all views; some have several pieces, any of which may be at fault."""
    hidden = text.hidden_words("val", 12)
    (whole,) = hidden.views
    evaluator = MaskedWord(MaskedWord.Config(count=12))
    parts = [whole.samples(torch.arange(low, low + 4)) for low in (0, 4, 8)]
    evaluator._words = replace(
        hidden, views=[p.with_mask(pack_masks(p.mask.hidden)) for p in parts if p.mask]
    )
    seen = 0

    def errors(views: Views) -> Tensor:
        nonlocal seen
        assert views.mask is not None
        rows = views.mask.index // views.x.shape[1]
        seen += len(views.x)
        return torch.where(rows == word - (seen - len(views.x)), math.nan, 1.0)

    found = evaluator.run(answering(errors), text, START)
    assert math.isnan(found["nats"])
    assert said == [f"masked_word: not a number: hidden word {word} of the val split"]


def test_nothing_is_measured_without_the_objective(text: Text) -> None:
    for evaluator in (MaskedWord(MaskedWord.Config()), BitsPerCharacter(BitsPerCharacter.Config())):
        assert evaluator.run(frozen(), text, START) == {}
        points = Clusters(Clusters.Config())
        assert evaluator.run(answering(lambda views: views.x), points, START) == {}
        assert evaluator.baselines(points) == {}


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match="count=-1: want 0"):
        MaskedWord.Config(count=-1)
