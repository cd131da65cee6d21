"""What is said of views at the start: smaller groups of masks, and views that show little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from multissl.configs.image import cifar
from multissl.contract.plans import ViewPlan
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.options import open_recipe
from multissl.run.remarks import describe_mask_groups, describe_views

MASKED = {"image": ViewPlan(num_global=2, mask_ratio=(0.1, 0.5))}


def test_a_group_that_does_not_divide_is_named_with_the_one_that_does() -> None:
    recipe = cifar.simclr_cifar().replace(modality=Image.Config(mask_group=32), batch_size=48)
    assert describe_mask_groups(recipe, MASKED, 1) == [
        "modality.mask_group=32 is lowered to 24, the largest divisor of batch_size=48 up to it"
    ]
    (line,) = describe_mask_groups(recipe.replace(batch_size=80), MASKED, 2)
    assert "lowered to 20, the largest divisor of the 40 samples of each of 2 ranks" in line
    assert describe_mask_groups(recipe.replace(batch_size=64), MASKED, 1) == []
    assert describe_mask_groups(recipe, {"image": ViewPlan(num_global=2)}, 1) == []
    members = {"image": Image.Config(), "text": Text.Config(mask_group=48)}
    recipe = recipe.replace(
        modality=Paired.Config(members=members), encoders=dict.fromkeys(members, recipe.encoders["image"])
    )
    assert [line.split("=")[0] for line in describe_mask_groups(recipe, MASKED, 1)] == [
        "modality.members.image.mask_group"
    ]


@pytest.mark.parametrize(("side", "little"), [(32, True), (64, True), (100, False)])
def test_views_that_show_little_of_pictures_are_said(side: int, little: bool, tmp_path: Path) -> None:
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (120, 100, 3), np.uint8)
        Pictures.fromarray(pixels).save(tmp_path / f"{number}.png")
    modality = Image.Config(data=str(tmp_path), size=side, local_size=16, patch=4).build().fit()
    line = describe_views(modality)
    assert bool(line) == little
    if side == 32:
        assert line == "views show 32 x 32 pixels of 100 x 120 (median), 8.5 % (--modality.size)"


def test_what_a_view_shows_is_told_in_the_units_of_samples() -> None:
    assert Audio.Config(frames=160).build().shown() == {"seconds": (1.6, "frames")}
    assert Text.Config(length=64).build().shown() == {"tokens": (64, "length")}
    assert Video.Config(frames=8, stride=4, size=64).build().shown()["frames"] == (32, "stride")
    assert Video.Config(seconds=2.0).build().shown()["seconds"] == (2.0, "seconds")


def test_evaluators_are_added_by_their_names() -> None:
    words = ["--evals.add", "retrieval", "few_labels", "--evals.retrieval.every", "7"]
    recipe, _ = open_recipe("image/simclr_cifar", words)
    assert recipe.evals["retrieval"].every == 7
    assert "few_labels" in recipe.evals
    assert "knn" in recipe.evals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evals.add", "knn"], "--evals.add knn: it is there; .*--evals.knn.OPTION VALUE"),
        (["--evals.add", "nope"], "--evals.add nope: "),
        (["--evals.add.every", "3"], "--evals.add.every: want names, such as knn"),
    ],
)
def test_what_cannot_be_added_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_recipe("image/simclr_cifar", words)
