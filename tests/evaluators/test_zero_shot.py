from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from multissl.contract.data import Views
from multissl.contract.learning import Features, Progress
from multissl.evaluators.zero_shot import ZeroShot, class_embeddings, hits
from tests.evaluators.pairs import NAMES, Facts, Knows

DONE = Progress(step=1, total=1)


def run(encoders: Any, modality: Facts.Config | None = None, **options: Any) -> dict[str, float]:
    return ZeroShot.Config(**options).build().run(encoders, (modality or Facts.Config()).build(), DONE)


def test_encoders_that_know_name_every_class() -> None:
    found = run(Knows())
    assert (found["top1"], found["chance"], found["classes"], found["samples"]) == (100, 25, 4, 24)
    assert found["p"] == 0.001
    assert abs(found["shuffled"] - 25) < 2


def test_encoders_that_do_not_are_at_chance() -> None:
    found = run(Knows(wrong=True))
    assert found["top1"] <= 50
    assert found["p"] > 0.01


def test_some_classes_of_the_data_alone() -> None:
    found = run(Knows(), classes=("owl", "bee"))
    assert (found["top1"], found["chance"], found["samples"]) == (100, 50, 12)
    with pytest.raises(ValueError, match="'howl', which is none of the data's; did you mean owl"):
        run(Knows(), classes=("howl", "bee"))


def test_names_for_labels_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(Knows(), Facts.Config(named=False), classes=NAMES)
    assert found["top1"] == 100
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda *text: said.append(text[0] % text[1:])
    )
    assert run(Knows(), Facts.Config(named=False)) == {}
    assert "does not name its classes" in said[0]


def test_a_class_is_the_mean_of_its_descriptions() -> None:
    """Three descriptions: unit vectors first, then their mean, then a unit vector again."""
    modality = Facts.Config().build()
    (both,) = class_embeddings(Knows(), modality, "text", ["red_fox"], ["{} 3", "{} 5", "two {}"])
    each = [
        class_embeddings(Knows(), modality, "text", ["red_fox"], [t])[0] for t in ("{} 3", "{} 5", "two {}")
    ]
    mean = torch.stack(each).mean(0)
    torch.testing.assert_close(both, mean / mean.norm())
    assert float(both.norm()) == pytest.approx(1)


def test_without_a_shared_space_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda *text: said.append(text[0] % text[1:])
    )
    assert run(Knows(blind=True)) == {}
    assert "share no space" in said[0]


def test_the_verdict_tells_classes_chance_and_p() -> None:
    evaluator: Any = ZeroShot.Config().build()
    before, after = run(Knows(wrong=True)), run(Knows())
    verdict = evaluator.verdict([before, after])
    assert verdict is not None
    assert verdict.outcome == "learned"
    assert verdict.text.startswith("learned: zero-shot accuracy of 4 classes 100.0 % (n=24, ")
    assert verdict.text.endswith("and chance's 25.0 %")
    by_chance = evaluator.verdict([before, {**after, "p": 0.3}])
    assert by_chance is not None
    assert by_chance.outcome == "not learned"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"templates": ()}, "templates is empty"),
        ({"templates": ("a photo",)}, "without {}"),
        ({"classes": ("owl",)}, "two or more"),
        ({"classes": ("owl", "owl")}, "different"),
        ({"samples": -1}, "samples=-1"),
        ({"shuffles": 3}, "shuffles=3"),
    ],
)
def test_bad_options_say_what_they_want(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ZeroShot.Config(**options)


def test_a_stream_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="stream='words' is none of the modality's"):
        run(Knows(), text="words")


def test_equal_scores_are_worth_chance() -> None:
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.1, 0.4, 0.4, 0.0], [0.1, 0.2, 0.3, 0.9]])
    assert hits(scores, torch.tensor([2, 1, 3])).tolist() == [0.25, 1.0, 1.0]
    assert hits(scores, torch.tensor([[0, 0, 0], [1, 3, 3]])).tolist() == [[0.25, 0, 0], [0.25, 0, 1]]


def test_descriptions_that_all_lie_in_one_place_are_at_chance() -> None:
    class Deaf(Knows):
        def features(self, v: Views) -> Features:
            z = super().features(v)
            return z if v.stream == "numbers" else replace(z, embedding=torch.ones_like(z.pooled))

    found = run(Deaf())
    assert found["top1"] == found["shuffled"] == found["chance"] == 25
    assert found["p"] == 1
