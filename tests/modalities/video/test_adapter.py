"""The video modality: clips, one draw a clip, masks of constant size, targets, places, and what users get wrong."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Batch, Mask, Sample, Unreadable, Views
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.modalities.masks.unions import union_size
from multissl.modalities.video.adapter import Video
from multissl.modalities.video.baselines import flow_floor
from multissl.modalities.video.clips import choose_frames, tubelet_centers, tubelets
from multissl.random import RowRandom
from tests.modalities import same_tensors

PLAN = ViewPlan(num_clean=1, num_global=2, num_local=2, mask_ratio=(0.75, 0.75), target=True, coords=True)
CPU = torch.device("cpu")
QUIET = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
RNG = np.random.default_rng(0)


def small(**options: Any) -> Video:
    given = {"frames": 4, "size": 16, "local_size": 8, "patch": 4, "stride": 1, "mask_group": 4, **options}
    return Video(Video.Config(**given))


def rows(first: int = 0, count: int = 4, total: int = 4, line: int = 0) -> RowRandom:
    return RowRandom((0, 0, line), first, count, total)


def videos(count: int, frames: int = 10) -> list[Sample]:
    return [
        Sample(RNG.integers(0, 255, (frames + i, 20, 24, 3)).astype(np.uint8), i, i % 2) for i in range(count)
    ]


def ramp(frames: int = 12, side: int = 16) -> Sample:
    """Frame t is of the one value 10 * t."""
    return Sample(
        np.broadcast_to(10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, side, side, 3)),
        0,
    )


def run(
    modality: Video, samples: list[Sample], plan: ViewPlan = PLAN, first: int = 0, total: int = 0
) -> Batch:
    place = (first, len(samples), total or len(samples))
    raw = modality.collate(samples, {"video": plan}, rows(*place))
    return modality.views(raw, {"video": plan}, rows(*place, line=1))


def values(views: Views, modality: Video) -> torch.Tensor:
    """Views as bytes, float [R, 3, T, S, S]."""
    mean, std = (torch.tensor(v)[:, None, None, None] for v in modality._statistics)
    return (views.x * std + mean) * 255


# views


def test_the_worker_hands_over_bytes_and_whole_masks() -> None:
    raw = small().collate(videos(4), {"video": PLAN}, rows())["video"]
    (mask,) = raw.pop("masks").values()
    assert isinstance(mask, Mask)
    assert mask.hidden.shape == (8, 32)
    assert {k: tuple(raw[k].shape) for k in ("clean", "global", "local")} == {
        "clean": (4, 4, 3, 16, 16), "global": (8, 4, 3, 16, 16), "local": (8, 2, 3, 8, 8),
    }  # fmt: skip
    assert {raw[role].dtype for role in ("clean", "global", "local")} == {torch.uint8}
    assert all(isinstance(v, torch.Tensor) for v in raw.values())


def test_views_are_clean_global_local_with_masks_targets_and_places() -> None:
    modality = small()
    clean, large, local = run(modality, videos(4))
    assert [(v.role, v.num_views) for v in (clean, large, local)] == [
        ("clean", 1),
        ("global", 2),
        ("local", 2),
    ]
    assert large.x.shape == (8, 3, 4, 16, 16)
    assert local.x.shape == (8, 3, 2, 8, 8)
    assert large.target is not None
    assert large.target.shape == (8, 32, 96)
    assert large.coords is not None
    assert local.coords is not None
    assert large.coords.shape == (8, 32, 3)
    assert local.coords.shape == (8, 4, 3)
    assert 0 < large.coords.min() < large.coords.max() < 1
    spec = modality.streams()["video"]
    assert (spec.shape, spec.patch, spec.num_tokens, spec.target_dim) == ((3, 4, 16, 16), (2, 4, 4), 32, 96)


def test_two_ranks_make_the_views_of_one() -> None:
    samples, modality = videos(8), small()
    whole = run(modality, samples)
    parts = [run(modality, samples[i : i + 4], first=i, total=8) for i in (0, 4)]
    for i, views in enumerate(whole):
        split = torch.cat([p[i].x.unflatten(0, (views.num_views, 4)) for p in parts], 1)
        torch.testing.assert_close(views.x.unflatten(0, (views.num_views, 8)), split, atol=1e-6, rtol=0)
        if views.mask is not None:
            masks = [p[i].mask for p in parts]
            hidden = [m.hidden.unflatten(0, (views.num_views, 4)) for m in masks if m]
            assert torch.equal(views.mask.hidden.unflatten(0, (views.num_views, 8)), torch.cat(hidden, 1))


@pytest.mark.parametrize("union", [0, 3])
def test_predictions_from_a_context_are_the_same_on_two_ranks(union: int) -> None:
    modality, samples = small(mask="block", union=union), videos(8)
    plan = ViewPlan(num_global=1, num_masks=1, mask_ratio=(0.2, 0.2), context_ratio=(1.0, 1.0))
    whole = run(modality, samples, plan)[0]
    parts = [run(modality, samples[i : i + 4], plan, i, 8)[0] for i in (0, 4)]
    for number, mask in enumerate(whole.masks):
        assert torch.equal(mask.hidden, torch.cat([p.masks[number].hidden for p in parts]))
        assert {p.masks[number].num_hidden for p in parts} == {mask.num_hidden}


def test_views_are_a_pure_function_of_their_arguments() -> None:
    modality, samples = small(), videos(4)
    raw = modality.collate(samples, {"video": PLAN}, rows())
    before = copy.deepcopy(raw["video"])
    a, b = (modality.views(raw, {"video": PLAN}, rows(line=1)) for _ in range(2))
    assert all(torch.equal(x.x, y.x) for x, y in zip(a, b, strict=True))
    same_tensors(raw["video"], before)
    again = modality.collate(samples, {"video": PLAN}, rows())["video"]
    same_tensors(again, before)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_do_not_change_the_stream(workers: int) -> None:
    plan = ViewPlan(num_global=2, mask_ratio=(0.5, 0.5))
    made = StepBatches(small(size=32, local_size=16), {"video": plan}, 4, 0, 0, 1, final=False)
    expected = [made.views(made[step][0], step)[0] for step in (2, 3)]
    for views, fetched in zip(expected, batches_of(made, 2, 4, Data(workers=workers), 1, CPU), strict=True):
        found = fetched.batch[0]
        assert torch.equal(found.x, views.x)
        assert found.mask is not None
        assert views.mask is not None
        assert torch.equal(found.mask.hidden, views.mask.hidden)


def test_a_clip_is_recolored_as_a_whole_and_keeps_its_crop() -> None:
    still = np.broadcast_to(RNG.integers(0, 255, (1, 20, 24, 3)).astype(np.uint8), (10, 20, 24, 3))
    samples = [Sample(still, i) for i in range(4)]
    modality = small(jitter=1.0, grayscale=0.5, flip=0.5, solarize=0.5)
    _, large, local = run(modality, samples)
    for views in (large, local):
        assert torch.equal(views.x, views.x[:, :, :1].expand_as(views.x)), (
            "a frame differs from its neighbors"
        )
        assert len({tuple(v.tolist()) for v in views.x.flatten(1)[:, :50]}) == len(views.x), (
            "two clips are the same"
        )


def test_without_augmentation_a_view_is_the_normalized_clip() -> None:
    modality = small(**QUIET, global_scale=(1, 1), ratio=(1, 1), frames=4)
    sample = Sample(RNG.integers(0, 255, (4, 16, 16, 3)).astype(np.uint8), 0)
    for views in run(modality, [sample], ViewPlan(num_clean=1, num_global=1)):
        expected = torch.from_numpy(sample.data).float().permute(3, 0, 1, 2)[None]
        torch.testing.assert_close(values(views, modality), expected, atol=1e-3, rtol=0)


def test_a_flip_mirrors_frames_and_places_alike() -> None:
    sample = Sample(
        np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 10, (4, 16, 16, 3)), 0
    )
    plan = ViewPlan(num_global=1, coords=True)
    found = {}
    for flip in (0.0, 1.0):
        modality = small(**{**QUIET, "flip": flip}, global_scale=(1, 1), ratio=(1, 1))
        (views,) = run(modality, [sample], plan)
        found[flip] = values(views, modality), views.coords
    torch.testing.assert_close(found[1.0][0], found[0.0][0].flip(-1))
    assert found[0.0][1] is not None
    assert found[1.0][1] is not None
    torch.testing.assert_close(found[1.0][1][..., 2], 1 - found[0.0][1][..., 2])
    torch.testing.assert_close(found[1.0][1][..., :2], found[0.0][1][..., :2])


# time


def test_frames_follow_stride_clamp_to_the_last_and_never_wrap() -> None:
    times = np.arange(10) / 25
    assert choose_frames(times, 4, 2, 0, 0.0).frames == [0, 2, 4, 6]
    assert choose_frames(times, 4, 2, 0, 0.999).frames == [3, 5, 7, 9]
    assert choose_frames(times, 4, 2, 0, 1.0).frames == [3, 5, 7, 9]
    assert choose_frames(times, 4, 4, 0, 0.7).frames == [0, 4, 8, 9]
    assert {choose_frames(times, 4, 2, 0, p).frames[0] for p in np.linspace(0, 0.999, 40)} == {0, 1, 2, 3}


def test_seconds_mean_time_whatever_the_rate_of_the_file() -> None:
    slow, fast = np.arange(25) / 25, np.arange(50) / 50
    assert choose_frames(slow, 5, 1, 0.5, 0.0).frames == [0, 2, 5, 7, 10]
    assert choose_frames(fast, 5, 1, 0.5, 0.0).frames == [0, 5, 10, 15, 20]
    uneven = np.array([0, 0.1, 0.2, 0.8, 0.9, 1.0])
    assert choose_frames(uneven, 4, 1, 0.8, 0.0).frames == [0, 2, 2, 2]
    assert choose_frames(uneven, 2, 1, 5.0, 0.5).frames == [0, 5]  # longer than the video: it stands still


@pytest.mark.parametrize("clips", ["anywhere", "apart", "same"])
def test_where_the_clips_of_a_pair_lie(clips: Any) -> None:
    modality = small(**QUIET, clips=clips, frames=4)
    samples = [Sample(ramp(20).data, i) for i in range(8)]
    (views,) = run(modality, samples, ViewPlan(num_global=2))
    start = (values(views, modality)[:, 0, 0, 0, 0] / 10).round().unflatten(0, (2, 8))
    if clips == "same":
        assert torch.equal(start[0], start[1])
        assert len(start[0].unique()) > 2
    elif clips == "apart":
        assert start[0].max() <= 8 <= start[1].min()
    else:
        assert (start[0] > start[1]).any()
        assert (start[0] < start[1]).any()


def test_clean_views_show_the_middle_one_frame_of_it_or_its_frames_in_disorder() -> None:
    frames = {}
    for clean in ("clip", "frame", "shuffled"):
        modality = small(clean=clean, frames=4)
        samples = [Sample(ramp(12).data, i) for i in range(6)]
        (views,) = run(modality, samples, CLEAN)
        frames[clean] = (values(views, modality)[:, 0, :, 0, 0] / 10).round().int().tolist()
    assert frames["clip"] == [[4, 5, 6, 7]] * 6
    assert frames["frame"] == [[6, 6, 6, 6]] * 6
    assert {tuple(sorted(f)) for f in frames["shuffled"]} == {(4, 5, 6, 7)}
    assert len({tuple(f) for f in frames["shuffled"]}) > 2


# tokens


def test_tubelets_hold_time_row_column_color_of_each_token() -> None:
    x = torch.arange(2 * 3 * 4 * 4 * 6).reshape(2, 3, 4, 4, 6)
    cut = tubelets(x, (2, 2, 3))
    assert cut.shape == (2, 8, 36)
    t, row, column, color = 1, 0, 2, 1  # inside token (1, 0, 1), which is number 5
    assert cut[1, 5, ((t * 2 + row) * 3 + column) * 3 + color] == x[1, color, 2 + t, 0 + row, 3 + column]


def test_tubelet_centers_lie_in_shares_of_the_video() -> None:
    places = torch.tensor([[0.5, 0.2, 0.0, 0.5, 0.4, 1.0]])
    found = tubelet_centers(places, (2, 1, 2), torch.tensor([False]))
    expected = [[0.625, 0.4, 0.25], [0.625, 0.4, 0.75], [0.875, 0.4, 0.25], [0.875, 0.4, 0.75]]
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize("kind", ["tube", "block", "random"])
def test_masks_have_the_same_size_in_every_row_and_step(kind: Any) -> None:
    modality = small(mask=kind, frames=8, size=32)
    sizes, hidden = set(), []
    for line in range(3):
        raw = modality.collate(videos(4), {"video": PLAN}, rows(line=line))
        views = modality.views(raw, {"video": PLAN}, rows(line=line))[1]
        assert views.mask is not None
        sizes.add((len(views.mask.index), views.mask.num_hidden, *set(views.mask.hidden.sum(1).tolist())))
        hidden.append(views.mask.hidden)
    (found,) = sizes
    assert found == (8 * found[1], found[1], found[1])
    slots = torch.stack(hidden).unflatten(-1, (4, 64))
    assert bool((slots == slots[..., :1, :]).all()) == (kind != "random")
    assert not torch.equal(hidden[0], hidden[1])


def test_a_union_of_blocks_leaves_everything_else_as_context() -> None:
    modality = small(mask="block", union=4, size=32, frames=4)
    plan = ViewPlan(num_global=1, num_masks=1, mask_ratio=(0.15, 0.15), context_ratio=(1.0, 1.0))
    counts = set()
    for line in range(3):
        raw = modality.collate(videos(4), {"video": plan}, rows(line=line))
        context, target = modality.views(raw, {"video": plan}, rows(line=line))[0].masks
        assert torch.equal(~context.hidden, ~target.hidden.logical_not().logical_not())
        counts.add((context.num_hidden, target.num_hidden, len(context.index), len(target.index)))
        slots = target.hidden.unflatten(1, (2, 64))
        assert torch.equal(slots[:, 0], slots[:, 1])
    wanted = 2 * union_size(plan, 64, 4)
    assert counts == {(wanted, wanted, 4 * wanted, 4 * wanted)}


# what belongs to the modality


def test_flow_tells_motion_and_its_direction() -> None:
    texture = RNG.normal(size=(40, 40)).cumsum(0).cumsum(1)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    frames = {s: np.stack([texture[4:36, 4 + s * t : 36 + s * t] if s > 0 else texture[4:36, 4:36] for t in range(4)])
              for s in (0, 1)}  # fmt: skip
    modality = small(size=32)
    clips = [
        Sample(np.repeat(f[..., None], 3, -1).astype(np.uint8), i) for i, f in enumerate(frames.values())
    ]
    (views,) = run(modality, clips, CLEAN)
    still, moving = flow_floor(views).unflatten(1, (2, 2, 16)).mean((1, 3))  # down, right
    assert still.abs().max() < 1e-3
    assert moving[1].abs() > 0.5 > moving[0].abs()


def test_figures_and_pictures_show_clips() -> None:
    modality = small()
    batch = run(modality, videos(4))
    (figure,) = modality.figures(batch)
    assert figure.image.dtype == np.uint8
    assert figure.image.ndim == 3
    assert "tubes" in figure.caption
    assert modality.pictures(batch[0]).shape == (4, 16, 48, 3)
    assert modality.figures(Batch()) == []


def test_it_travels_to_workers_and_its_state_restores() -> None:
    modality = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    other = small()
    other.restore(modality.state())
    samples = videos(2)
    assert torch.equal(run(modality, samples)[0].x, run(other, samples)[0].x)
    sent = pickle.loads(pickle.dumps(modality))
    assert torch.equal(run(sent, samples)[1].x, run(modality, samples)[1].x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 15}, "modality.size=15: want a multiple of patch=4: 12 or 16"),
        ({"frames": 5}, "modality.frames=5: want a multiple of tubelet=2: 4 or 6"),
        ({"frames": 2}, "a tube needs 2 or more tokens in time"),
        ({"local_frames": 3}, "modality.local_frames=3"),
        ({"union": 3}, "modality.union=3: want modality.mask=block"),
        ({"stride": -1}, "modality.stride=-1: want 0 to inf"),
        ({"hue": 0.7}, "modality.hue=0.7: want 0 to 0.5"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"global_scale": (0.9, 0.2)}, "want 0 < low <= high"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_a_union_of_several_targets_is_refused() -> None:
    plan = ViewPlan(num_global=1, num_masks=4, mask_ratio=(0.2, 0.2), context_ratio=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"set objective\.targets=1"):
        small(mask="block", union=2).collate(videos(4), {"video": plan}, rows())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "1 frame: a clip needs 2 or more"),
        (np.zeros((4, 8, 8, 3), np.float32), "float32 array"),
        (np.zeros((4, 8, 8, 2), np.uint8), "want uint8"),
        (b"", "the file is empty"),
    ],
)
def test_what_is_no_video_is_unreadable_with_the_reason(data: Any, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        small().collate([Sample(data, 7)], {"video": CLEAN}, rows(0, 1, 1))
    assert caught.value.index == 7
