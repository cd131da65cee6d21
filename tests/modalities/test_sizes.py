"""Sizes that recipes leave to the data: what is chosen, what options keep, what a run and a restored modality have."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from multissl import catalogue
from multissl.contract.modality import Modality, NotFitted
from multissl.engine.checkpoint import META
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.sizes import Rule, sides_for
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.options import open_recipe
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.preparing import prepare, with_sizes
from multissl.run.remarks import describe_views

OPEN: dict[str, Any] = {"size": 0, "local_size": 0, "patch": 0, "blur_kernel": 0}
BUILT_IN: dict[str, dict[str, int]] = {
    "image/default": {"size": 32, "local_size": 16, "patch": 4, "blur_kernel": 5},
    "image/dinov2_cpu": {"size": 32, "local_size": 16, "patch": 4, "blur_kernel": 5},
    "audio/default": {"frames": 96, "local_frames": 48},
    "text/default": {"length": 64, "local_length": 24},
    "video/default": {"size": 32, "local_size": 16, "patch": 8, "stride": 1},
}
"""Sizes of built-in samples, at which their figures were measured."""


def pictures(folder: Path, width: int, height: int, count: int = 3) -> str:
    """Write gray pictures of a size and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Pictures.fromarray(np.full((height, width), 40 * number, np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def chosen(modality: Modality) -> dict[str, Any]:
    """Return the sizes of a fitted modality."""
    return {name: getattr(modality.cfg, name) for name in modality.cfg.sizes}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_samples_keep_the_sizes_that_were_measured(name: str) -> None:
    cfg: Any = catalogue.find(name)().modality
    if name == "text/default":
        modality = cfg.replace(vocab=300).build().fit()
    else:  # statistics are not asked for
        modality = cfg.build()
        modality.choose_sizes(said=False)
    assert chosen(modality) == BUILT_IN[name]
    assert not modality.sizing


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        (480, (224, 98, 14)), (150, (140, 70, 14)), (96, (96, 48, 8)), (64, (64, 32, 8)), (32, (32, 16, 4)),
        (28, (28, 12, 4)), (8, (8, 4, 2)), (1, (2, 2, 2)),
    ],
)  # fmt: skip
def test_sides_follow_from_the_short_side_of_pictures(side: int, sizes: tuple[int, int, int]) -> None:
    found = sides_for(side, Image.Config(**OPEN), Rule())
    assert (found["size"], found["local_size"], found["patch"]) == sizes


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"size": 256}, (256, 112, 16)),
        ({"size": 96}, (96, 48, 8)),
        ({"size": (32, 48)}, ((32, 48), (16, 24), 4)),
        ({"patch": 16}, (224, 96, 16)),
        ({"local_size": 96}, (224, 96, 16)),
        ({"patch": 14, "size": 56}, (56, 28, 14)),
        ({"mask_patch": 32, "mask": "random"}, (224, 96, 16)),
    ],
)
def test_an_option_wins_and_the_rest_follows_it(
    given: dict[str, Any], sizes: tuple[Any, ...], tmp_path: Path
) -> None:
    cfg = Image.Config(**{**OPEN, "data": pictures(tmp_path, 640, 480), **given})
    found = chosen(cfg.build().fit())
    assert (found["size"], found["local_size"], found["patch"]) == sizes


def test_sides_that_no_token_divides_are_refused_by_name(tmp_path: Path) -> None:
    cfg = Image.Config(**{**OPEN, "data": pictures(tmp_path, 640, 480), "size": 225})
    with pytest.raises(
        ValueError, match=r"modality.size=225 .*no token of 14, 16, 8, 4, 2 pixels.*modality.patch"
    ):
        cfg.build().fit()


def test_what_was_chosen_is_said_with_what_there_is(tmp_path: Path) -> None:
    recipe, _ = open_recipe("image", ["--data", pictures(tmp_path, 640, 480)])
    line = describe_views(recipe.modality.build().fit())
    assert line.startswith(
        "views of 224 px (256 tokens of 14 px) and local views of 98 px for images of 640 x 480 (median of 2): "
        "--modality.size,"
    )


def test_streams_of_open_sizes_ask_for_a_fit() -> None:
    with pytest.raises(NotFitted):
        Image.Config(**OPEN).build().streams()


def test_pictures_none_of_which_can_be_read_say_why_no_size_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(
        ValueError, match=r"none of \d images that were looked at can be read, .*modality.size should be"
    ):
        Image.Config(**OPEN, data=str(tmp_path)).build().fit()


def test_only_headers_are_read_and_turned_as_pictures_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6
    for number in range(3):
        Pictures.new("RGB", (200, 100)).save(tmp_path / f"{number}.jpg", exif=exif)
    monkeypatch.setattr("multissl.modalities.image.files.load", None)
    modality = Image.Config(**OPEN, data=str(tmp_path)).build().fit()
    assert "images of 100 x 200 (median of 2)" in modality.sizing


def test_a_restored_modality_has_the_sizes_of_its_state(tmp_path: Path) -> None:
    known = Image.Config(**OPEN, data=pictures(tmp_path, 96, 96)).build().fit()
    state = json.loads(json.dumps(known.state()))
    later = Image.Config(**OPEN).build()
    later.restore(state)
    assert chosen(later) == chosen(known)
    assert later.streams() == known.streams()


def in_folder(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with the sizes that a run in a folder has, written there."""
    run = RunFolder(folder)
    sized, _ = with_sizes(recipe, run)
    prepare(run, sized)
    return sized


@pytest.mark.parametrize(
    ("encoder", "sizes"),
    [
        (["timm", "--encoders.image.name", "vit_tiny_patch16_224"], (224, 96, 16)),
        (["timm", "--encoders.image.name", "resnet10t"], (224, 98, 14)),
        (["huggingface"], (224, 96, 16)),
        (["transformer"], (224, 98, 14)),
    ],
)
def test_tokens_are_those_of_a_network_that_fixes_them(
    encoder: list[str], sizes: tuple[int, int, int], tmp_path: Path
) -> None:
    pytest.importorskip("timm" if encoder[0] == "timm" else "transformers")
    words = ["--data", pictures(tmp_path, 640, 480), "--objective", "infonce", "--encoders.image", *encoder]
    sized, _ = with_sizes(open_recipe("image", words)[0], RunFolder(tmp_path / "run"))
    found = chosen(sized.modality.build())
    assert (found["size"], found["local_size"], found["patch"]) == sizes


def test_a_run_that_goes_on_keeps_its_sizes_whatever_its_data_has_become(tmp_path: Path) -> None:
    recipe, _ = open_recipe("image", ["--data", pictures(tmp_path / "data", 96, 96)])
    first = in_folder(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run/recipe.json").read_text())["modality"]["size"] == 96
    pictures(tmp_path / "data", 640, 480)
    (tmp_path / "run/checkpoints/step_00000001").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step_00000001" / META).write_text("{}")
    assert in_folder(recipe, tmp_path / "run") == first
    with pytest.raises(ValueError, match=r"modality.size: 96 -> 56"):
        in_folder(
            open_recipe("image", ["--data", str(tmp_path / "data"), "--modality.size", "56"])[0],
            tmp_path / "run",
        )


def test_recordings_are_heard_in_segments_of_three_fifths(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    rng = np.random.default_rng(0)
    for number in range(3):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(rng.integers(-9000, 9000, 5 * 8000, np.int16).tobytes())
    modality = Audio.Config(data=str(tmp_path), frames=0, local_frames=0, mels=16).build().fit()
    assert chosen(modality) == {"frames": 288, "local_frames": 144}  # of 500
    assert "views of 2.88 s and local views of 1.44 s for recordings of 5 s (median of 2)" in modality.sizing
    kept = Audio.Config(data=str(tmp_path), frames=64, local_frames=0, mels=16).build().fit()
    assert chosen(kept) == {"frames": 64, "local_frames": 32}


def test_documents_are_read_in_windows_that_hold_nine_of_ten(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"word {i} " * (4 + 20 * (i % 2))}) + "\n" for i in range(20))
    )
    modality = Text.Config(data=str(path), length=0, local_length=0, vocab=300).build().fit()
    lengths = [modality.extent(modality.dataset("train")[i])["tokens"] for i in range(10)]
    assert modality.cfg.length % 8 == 0
    assert max(lengths) <= modality.cfg.length < max(lengths) + 16
    assert modality.cfg.local_length == modality.cfg.length * 3 // 8


def test_videos_are_cut_as_they_are_large_and_long(tmp_path: Path) -> None:
    clips = [np.zeros((60, 130, 170, 3), np.uint8) for _ in range(3)]
    cfg = Video.Config(frames=8, size=0, local_size=0, patch=0, stride=0)
    modality = cfg.build().fit(clips)
    assert chosen(modality) == {"size": 112, "local_size": 48, "patch": 16, "stride": 3}
    assert "for videos of 60 frames of 170 x 130 (median of 3)" in modality.sizing


def test_members_of_pairs_choose_by_their_own_payloads(tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 128, 3), np.uint8)
        Pictures.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number} of a kind")
    recipe, _ = open_recipe("image_text", ["--data", str(tmp_path)])
    modality = recipe.modality.build()
    assert isinstance(modality, Paired)
    modality.fit()
    assert modality.cfg.members["image"].size == 96  # type: ignore[attr-defined]
    assert not modality.cfg.open_sizes()
    assert "--modality.members.image.size" in modality.sizing
    again = recipe.modality.with_sizes(json.loads(json.dumps({"members": {"image": {"size": 64}}})))
    assert again.members["image"].size == 64  # type: ignore[attr-defined]
