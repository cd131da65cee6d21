"""Accuracy under corruptions: a classifier that sees none of them, and every condition by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multissl.evaluators import corruptions as protocol
from multissl.evaluators.corrupting import FIFTEEN, NINETEEN
from multissl.evaluators.corruptions import Corruptions
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.every import Photos, seeing_photos


def test_figures_are_means_over_conditions_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corruption that does nothing and one that paints all black give the clean accuracy and that of one class."""

    def paint(picture: torch.Tensor, name: str, severity: int) -> torch.Tensor:
        return picture if name == "contrast" or severity == 1 else picture * 0

    monkeypatch.setattr(protocol, "corrupt", paint)
    photos = Photos.Config(noise=0.05).build()
    evaluator = Corruptions.Config(corruptions=("contrast", "pixelate"), severities=(1, 5)).build()
    figures = evaluator.run(seeing_photos(), photos, START)
    assert figures["clean"] > 95
    assert figures["contrast"] == figures["contrast/5"] == figures["pixelate/1"] == figures["clean"]
    assert figures["pixelate/5"] == pytest.approx(25)
    assert figures["pixelate"] == pytest.approx((figures["clean"] + 25) / 2)
    assert figures["top1"] == pytest.approx((3 * figures["clean"] + 25) / 4)
    assert figures["ratio"] == pytest.approx(100 * figures["top1"] / figures["clean"])
    assert figures["top1"].n == 60  # type: ignore[attr-defined]
    assert [*figures] == evaluator.metric_names()
    assert evaluator.baselines(photos)["majority"] == pytest.approx(25)


def test_corrupted_pictures_come_from_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    inner = protocol.corrupt

    def spy(picture: torch.Tensor, name: str, severity: int) -> torch.Tensor:
        seen.append(picture.numpy())
        return inner(picture, name, severity)

    monkeypatch.setattr(protocol, "corrupt", spy)
    photos = Photos.Config().build()
    evaluator = Corruptions.Config(corruptions=("contrast",), severities=(2,), queries=3).build()
    evaluator.run(seeing_photos(), photos, START)
    assert len(seen) == 3
    assert {x.dtype for x in seen} == {np.dtype(np.uint8)}


def test_clean_queries_are_encoded_once() -> None:
    """Three clean pictures and as many under each of two conditions, beside the training samples."""
    photos, rows = Photos.Config().build(), []
    whole = seeing_photos()

    def counting(views: Any, masking: Any, inner: int) -> Any:
        rows.append(sum(len(v.x) for v in views))
        return whole.function(views, masking, inner)

    evaluator = Corruptions.Config(corruptions=("contrast",), severities=(2, 3), queries=3).build()
    evaluator.run(replace(whole, function=counting, memory={}), photos, START)
    assert sum(rows) == len(photos.dataset("train")) + 3 * 3


def test_means_over_the_published_sets_want_all_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four extra corruptions show black, the fifteen nothing of themselves."""

    def paint(picture: torch.Tensor, name: str, severity: int) -> torch.Tensor:
        return picture if name in FIFTEEN else picture * 0

    monkeypatch.setattr(protocol, "corrupt", paint)
    photos = Photos.Config(noise=0.05).build()
    both = Corruptions.Config(corruptions=NINETEEN, severities=(1,)).build()
    figures = both.run(seeing_photos(), photos, START)
    assert figures["over15"] == figures["clean"]
    assert figures["over19"] == pytest.approx((15 * figures["clean"] + 4 * 25) / 19)
    assert [*figures] == both.metric_names()
    assert "over15" in Corruptions.Config().build().metric_names()
    assert "over19" not in Corruptions.Config().build().metric_names()
    assert "over15" not in Corruptions.Config(corruptions=FIFTEEN[1:]).build().metric_names()


def test_samples_that_are_no_pictures_give_no_figure_and_say_so(said: list[str]) -> None:
    assert Corruptions.Config().build().run(frozen(), Clusters.Config().build(), START) == {}
    assert "corruptions are of pictures of 1 or 3 channels" in said[0]


def test_what_cannot_be_made_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="corruptions has 'frost', which cannot be made"):
        Corruptions.Config(corruptions=("frost",))
    with pytest.raises(ValueError, match="severities of 1 to 5"):
        Corruptions.Config(severities=(0,))
