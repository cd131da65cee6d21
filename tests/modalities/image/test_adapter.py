"""The image modality: crops, views, masks, targets, statistics, baselines, and what users get wrong."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torchvision.transforms.v2 import functional as tv

from multissl.contract.data import Batch, Mask, Sample, Unreadable, Views
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.engine.batches import StepBatches
from multissl.modalities.image import files as image_files
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.crops import center, crop_box, patchify, resize
from multissl.random import RowRandom
from tests.modalities import same_tensors

PLAN = ViewPlan(num_clean=1, num_global=2, num_local=3, mask_ratio=(0.1, 0.5), mask_share=0.5, target=True)
RNG = np.random.default_rng(0)


def small(**options: Any) -> Image:
    return Image(Image.Config(**{"size": 16, "local_size": 8, "patch": 4, **options}))


def rows(first: int = 0, count: int = 4, total: int = 4, line: int = 0) -> RowRandom:
    return RowRandom((0, 0, line), first, count, total)


def pictures(count: int, channels: int = 3, dtype: Any = np.uint8) -> list[Sample]:
    top = np.iinfo(dtype).max
    return [
        Sample(RNG.integers(0, top, (20 + 3 * i, 40 - 2 * i, channels)).astype(dtype), i, i % 2)
        for i in range(count)
    ]


def run(
    modality: Image, samples: list[Sample], plan: ViewPlan = PLAN, first: int = 0, total: int = 0
) -> Batch:
    place = (first, len(samples), total or len(samples))
    raw = modality.collate(samples, {"image": plan}, rows(*place))
    return modality.views(raw, {"image": plan}, rows(*place, line=1))


# views


def test_a_plan_may_ask_for_another_size() -> None:
    """Clean and global views and their masks follow the plan; local views keep their own size."""
    views = run(small(), pictures(4), replace(PLAN, size=(24, 24)))
    assert views.of("image", "clean").x.shape[-2:] == (24, 24)
    shown = views.of("image", "global")
    assert shown.x.shape[-2:] == (24, 24)
    assert shown.mask is not None
    assert shown.mask.hidden.shape[1] == 36
    assert views.of("image", "local").x.shape[-2:] == (8, 8)


@pytest.mark.parametrize("size", [(24, 22), (26, 26), (0, 0), (24,)])
def test_a_size_without_whole_tokens_is_refused_with_one_that_fits(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"size=.*multiples of the 4 pixels.*such as \(16, 16\)"):
        run(small(), pictures(2), replace(PLAN, size=size))
    run(small(), pictures(2), replace(PLAN, size=(16, 16)))


def test_the_worker_hands_over_bytes_and_whole_masks() -> None:
    raw = small().collate(pictures(4), {"image": PLAN}, rows())["image"]
    (mask,) = raw.pop("masks").values()
    assert isinstance(mask, Mask)
    assert mask.hidden.shape == (8, 16)
    assert {k: tuple(v.shape) for k, v in raw.items()} == {
        "clean": (4, 3, 16, 16),
        "global": (8, 3, 16, 16),
        "local": (12, 3, 8, 8),
        "sample_id": (4,),
    }
    assert {raw[role].dtype for role in ("clean", "global", "local")} == {torch.uint8}


def test_views_come_clean_global_local_with_masks_and_targets_on_global_ones() -> None:
    clean, large, local = run(small(), pictures(4))
    assert [v.role for v in (clean, large, local)] == ["clean", "global", "local"]
    assert [v.num_views for v in (clean, large, local)] == [1, 2, 3]
    assert large.mask is not None
    assert clean.mask is None
    assert large.target is not None
    assert large.target.shape == (8, 16, 48)
    assert large.sample_id is not None
    assert torch.equal(large.sample_id, torch.arange(4))
    spec = small().streams()["image"]
    assert (spec.shape, spec.num_tokens, spec.target_dim) == ((3, 16, 16), 16, 48)


def test_two_ranks_make_the_views_of_one() -> None:
    samples = pictures(8)
    modality = small(mask_group=4)
    whole = run(modality, samples)
    parts = [run(modality, samples[i : i + 4], first=i, total=8) for i in (0, 4)]
    for i, views in enumerate(whole):
        split = [p[i].x.unflatten(0, (views.num_views, 4)) for p in parts]
        torch.testing.assert_close(
            views.x.unflatten(0, (views.num_views, 8)), torch.cat(split, 1), atol=1e-6, rtol=0
        )


def test_views_are_a_pure_function_and_masks_leave_crops_alone() -> None:
    modality, samples = small(), pictures(4)
    raw = modality.collate(samples, {"image": PLAN}, rows())
    before = copy.deepcopy(raw["image"])
    a, b = (modality.views(raw, {"image": PLAN}, rows(line=1)) for _ in range(2))
    assert all(torch.equal(x.x, y.x) for x, y in zip(a, b, strict=True))
    same_tensors(raw["image"], before)
    unmasked = ViewPlan(num_global=2)
    assert torch.equal(
        modality.collate(samples, {"image": unmasked}, rows())["image"]["global"], before["global"]
    )


def test_without_augmentation_a_view_is_the_normalized_crop() -> None:
    still = small(flip=0, jitter=0, grayscale=0, blur="none", solarize=0, global_scale=(1, 1), ratio=(1, 1))
    square = Sample(RNG.integers(0, 255, (16, 16, 3)).astype(np.uint8), 0)
    views = run(still, [square], ViewPlan(num_clean=1, num_global=1))
    expected = torch.from_numpy(square.data).permute(2, 0, 1)[None].float() / 255
    expected = tv.normalize(expected, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for v in views:
        torch.testing.assert_close(v.x, expected, atol=1e-6, rtol=0)


def test_only_the_second_view_is_blurred_and_solarized() -> None:
    quiet = {"flip": 0, "jitter": 0, "grayscale": 0}
    samples = pictures(8)
    plan = ViewPlan(num_global=2)

    def changed(**options: Any) -> list[int]:
        plain = run(small(**quiet, blur="none", solarize=0), samples, plan)[0].x
        found = run(small(**quiet, **{"blur": "none", "solarize": 0, **options}), samples, plan)[0].x
        return (found != plain).flatten(1).any(1).view(2, 8).sum(1).tolist()

    assert changed(solarize=1) == [0, 8]
    first, second = changed(blur="official")
    assert first == 0
    assert second >= 5
    assert changed(blur="paper")[0] == 8


def test_a_fixed_ratio_tells_how_many_tokens_are_hidden_in_each_row() -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.75, 0.75), target=True)
    views = run(small(mask="random"), pictures(4), plan)[0]
    assert views.mask is not None
    assert views.mask.num_hidden == 12
    several = run(small(), pictures(4), ViewPlan(num_global=1, mask_ratio=(0.2, 0.4), num_masks=3))[0]
    assert [m.num_hidden for m in several.masks] == [None] * 3


def test_targets_are_patches_in_the_order_row_column_channel() -> None:
    x = torch.arange(2 * 3 * 4 * 4).float().view(2, 3, 4, 4)
    target = patchify(x, 2)
    assert target.shape == (2, 4, 12)
    assert torch.equal(target[1, 1], x[1, :, 0:2, 2:4].permute(1, 2, 0).flatten())


def test_groups_are_carried_and_loners_are_alone() -> None:
    samples = [replace(s, group=g) for s, g in zip(pictures(4), (5, 5, -1, -1), strict=True)]
    group = run(small(), samples)[0].group_id
    assert group is not None
    assert group[0] == group[1]
    assert len(set(group.tolist())) == 3


# crops


def test_a_crop_is_what_pillow_makes_of_it() -> None:
    pixels = RNG.integers(0, 255, (60, 80, 3)).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for box, size in (((5, 7, 40, 50), 16), ((0, 0, 60, 80), 32), ((20, 30, 3, 4), 32)):
        top, left, h, w = box
        cut = Pillow.fromarray(pixels).crop((left, top, left + w, top + h))
        expected = np.array(cut.resize((size, size), Pillow.Resampling.BICUBIC))
        away = (resize(image, box, (size, size)).int() - torch.from_numpy(expected).permute(2, 0, 1)).abs()
        assert away.max() <= 2  # rounding, twice
        assert away.float().mean() < 0.02


def test_the_clean_view_is_resize_256_and_center_crop_224() -> None:
    pixels = torch.randint(0, 255, (3, 90, 70), dtype=torch.uint8)
    expected = tv.resize(pixels, [32], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(center(pixels, (28, 28), 256 / 224), tv.center_crop(expected, [28, 28]))
    assert center(pixels[:, :28, :28], (28, 28), 256 / 224).equal(pixels[:, :28, :28])


def test_a_clean_view_of_the_whole_image_squeezes_it_and_a_center_is_told(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(image_files, "_said", set())
    pixels = np.zeros((16, 64, 3), np.uint8)
    pixels[:, :16] = 200  # what the center does not show
    samples = [Sample(pixels, i) for i in range(2)]
    centered, whole = (run(small(clean_whole=w), samples, CLEAN)[0].x for w in (False, True))
    assert centered.std((2, 3)).max() < 1e-4
    assert (whole[..., :3] > whole[..., 6:].max() + 1).all()
    assert sum("64 x 16 pixels is judged by its center" in line for line in said) == 1


def test_crops_of_impossible_shape_fall_back_to_the_center() -> None:
    never = [[0.99, 0.5, 0.0, 0.0]] * 10
    assert crop_box(40, 200, never, (0.32, 1.0), (3 / 4, 4 / 3)) == (0, 73, 40, 53)
    assert crop_box(200, 40, never, (0.32, 1.0), (3 / 4, 4 / 3)) == (73, 0, 53, 40)
    assert crop_box(1, 1, [[0.1, 0.5, 0.5, 0.5]], (0.05, 0.1), (3 / 4, 4 / 3)) == (0, 0, 1, 1)


# data


def test_sixteen_bits_are_cropped_as_floats_and_mix_with_bytes() -> None:
    deep, flat = pictures(1, 1, np.uint16), pictures(2, 1)[1:]
    modality = small(channels=1, mean=(0.5,), std=(0.25,))
    for samples in (deep + flat, flat + deep):
        raw = modality.collate(samples, {"image": PLAN}, rows(count=2, total=2))
        pixels = raw["image"]["clean"]
        assert pixels.dtype == torch.float32
        assert 0 <= pixels.min() < pixels.max() <= 255
    ramp = Sample(np.full((9, 9, 1), 40000, np.uint16), 0)
    view = run(modality, [ramp], CLEAN)[0].x
    torch.testing.assert_close(view, torch.full_like(view, (40000 / 65535 - 0.5) / 0.25), atol=1e-3, rtol=0)


def test_channel_statistics_are_measured_kept_and_restored(tmp_path: Path) -> None:
    for i in range(10):
        np.save(tmp_path / f"{i}.npy", np.full((9, 9, 5), 10 * i, np.uint8))
    (tmp_path / "x.npy").write_bytes(b"broken")
    modality = small(channels=5, data=str(tmp_path))
    mean, std = modality.statistics()
    train = [s.data for s in modality.dataset("train") if "x.npy" not in s.data]
    values = np.array([np.load(path)[0, 0, 0] / 255 for path in train])
    assert mean == pytest.approx([values.mean()] * 5)
    assert std == pytest.approx([values.std()] * 5)
    other = small(channels=5, data="/nowhere")
    other.restore(modality.state())
    assert other.statistics() == modality.statistics()
    assert run(other, pictures(2, 5))[0].x.shape == (2, 5, 16, 16)
    assert small().state()["mean"] == [0.485, 0.456, 0.406]
    assert small(measure=True).statistics()[0] != (0.485, 0.456, 0.406)


def test_the_demo_needs_no_path_and_its_pictures_stay_as_they_are() -> None:
    modality = small(size=32)
    train = modality.dataset("train")
    assert {len(modality.dataset(s)) for s in ("val", "test")} == {1000}
    assert train[0].label >= 0
    raw = modality.collate([train[0]], {"image": CLEAN}, rows(count=1, total=1))["image"]["clean"]
    assert torch.equal(raw[0], torch.from_numpy(train[0].data).permute(2, 0, 1))


def test_the_modality_travels_to_workers_without_its_samples() -> None:
    modality = small()
    modality.dataset("train")
    assert len(pickle.dumps(modality)) < 3000


# baselines and pictures


def test_baselines_are_pixels_and_histograms() -> None:
    modality = small(size=32)
    views = run(modality, [modality.dataset("train")[i] for i in range(3)], CLEAN)[0]
    baselines = modality.baselines()
    raw = baselines["raw"](views)
    assert raw.shape == (3, 3 * 32 * 32)
    first = modality.dataset("train")[0].data
    assert np.array_equal((raw * 255).round().view(3, 3, 32, 32)[0].byte().permute(1, 2, 0).numpy(), first)
    assert np.array_equal(modality.pictures(views)[0], first)
    assert baselines["hog"](views).shape == (3, 7 * 7 * 36 + 64)
    large = Views(x=torch.rand(2, 3, 200, 200), stream="image", role="clean")
    assert baselines["raw"](large).shape == (2, 3072)
    assert baselines["hog"](large).shape == (2, 7 * 7 * 36 + 64)


def test_gradient_histograms_see_the_direction_of_an_edge() -> None:
    from multissl.modalities.image.baselines import hog

    upright = torch.zeros(1, 32, 32)
    upright[:, :, 16:] = 1
    found = hog(upright).view(9, 4, 49).sum((1, 2))
    assert found.argmax() == 0  # the gradient of an upright edge points along the row
    assert hog(upright.mT).view(9, 4, 49).sum((1, 2)).argmax() == 4  # a quarter turn: bin 4 of 9
    torch.testing.assert_close(hog(upright), hog(upright * 0.5 + 0.2), atol=1e-3, rtol=0)


def test_color_histograms_count_every_pixel() -> None:
    from multissl.modalities.image.baselines import colors

    found = colors(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(found.pow(2).sum(1), torch.ones(2))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_figures_show_samples_as_lines_and_say_what_they_show(channels: int) -> None:
    given = (0.5,) * channels
    modality = small(channels=channels, mean=given, std=given)
    batch = Batch(v.samples(torch.arange(3)) for v in run(modality, pictures(4, channels)))
    (figure,) = modality.figures(batch)
    assert figure.image.dtype == np.uint8
    assert figure.image.shape == (3 * 104, 6 * 104, 3)
    assert "hidden" in figure.caption
    assert modality.figures(Batch()) == []


# what users get wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 225, "patch": 14}, r"modality.size=225: want a multiple of patch=14: 224 or 238"),
        ({"size": 8, "patch": 16}, r"modality.size=8: want a multiple of patch=16: 16"),
        ({"local_size": 50}, r"modality.local_size=50: want a multiple of patch=16: 48 or 64"),
        ({"global_scale": (0.5, 1.2)}, r"modality.global_scale=\(0.5, 1.2\): want 0 < low <= high <= 1"),
        ({"jitter": 1.5}, r"modality.jitter=1.5: want 0 to 1"),
        ({"hue": 0.7}, r"modality.hue=0.7: want 0 to 0.5"),
        ({"patch": -1}, r"modality.patch=-1: want 0 to inf"),
        ({"blur_kernel": 8}, r"modality.blur_kernel=8: want an odd number up to 191, or modality.blur=none"),
        ({"size": 4, "local_size": 4, "patch": 4}, r"blur_kernel=9: want an odd number up to 7"),
        ({"mean": (0.5,)}, r"modality.mean=\(0.5,\) modality.std=\(\): want 3 of each"),
    ],
)
def test_options_out_of_range_are_told_with_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Image.Config(**options)


def test_a_file_that_is_no_image_is_unreadable_by_its_index(tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("shopping list")
    with pytest.raises(Unreadable, match=r"notes\.jpg: not an image") as caught:
        small().collate([*pictures(3), Sample(str(bad), 17)], {"image": PLAN}, rows())
    assert caught.value.index == 17


@pytest.mark.parametrize(("shape", "kind"), [((1, 1, 3), "1 x 1"), ((30, 20_000, 3), "20000 x 30")])
def test_images_of_odd_size_are_used_with_one_notice(
    shape: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(image_files, "_said", set())
    monkeypatch.setattr(image_files.log, "warning", lambda text, *values: said.append(text % values))
    odd = Sample(RNG.integers(0, 255, shape).astype(np.uint8), 0)
    for _ in range(2):
        for views in run(small(clean_whole=True), [odd, *pictures(3)]):
            assert bool(torch.isfinite(views.x).all())
    assert [kind in text for text in said] == [True]


def test_a_truncated_file_among_good_ones_is_skipped_and_listed(tmp_path: Path) -> None:
    for i in range(8):
        Pillow.fromarray(RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / f"{i}.jpg")
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.jpg").write_text("no picture")
    plan = {"image": ViewPlan(num_global=2)}
    steps = StepBatches(small(data=str(tmp_path)), plan, 7, 0, 0, 1, final=False)
    raw, skipped = steps[0]
    assert raw["image"]["global"].shape == (14, 3, 16, 16)
    assert sorted(index for index, _ in skipped) == [3, 5]
    assert any("3.jpg: Image is incomplete or truncated" in reason for _, reason in skipped)
    assert not {3, 5} & set(raw["image"]["sample_id"].tolist())


def test_larger_views_are_the_global_crops_once_more_flipped_alike_in_plain_colors(tmp_path: Path) -> None:
    """A ramp from left to right: its direction tells the flip, its ends the crop."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = Pillow.fromarray(np.repeat(np.tile(ramp, (64, 1))[..., None], 3, 2))
    for place in range(4):
        picture.save(tmp_path / f"{place}.png")
    made = small(data=str(tmp_path), jitter=0.0, grayscale=0.0, solarize=0.0, blur="none", flip=0.5)
    plan = {"image": ViewPlan(num_global=2, larger=(64, 64))}
    steps = StepBatches(made, plan, 4, 0, 0, 1, final=True)
    (views,) = steps[0][0]
    assert views.larger.shape == (8, 3, 64, 64)
    again = torch.nn.functional.interpolate(views.larger, size=views.x.shape[-2:], mode="area")
    assert (again - views.x).abs().mean() < 0.05
    assert len({bool(row[0, 0, 0] < row[0, 0, -1]) for row in views.x}) == 2
