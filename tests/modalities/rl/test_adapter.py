"""Frames of RL: stacks and positives stay in their episode, actions are those taken, views depend on the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Batch, Sample, Unreadable
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.engine.batches import Data as Loading
from multissl.engine.batches import StepBatches, batches_of
from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.replay import Moment, Replay
from multissl.modalities.rl.views import cut, near
from multissl.random import RowRandom

PAIR = ViewPlan(num_global=2)


def tiny(**options: Any) -> RL:
    return RL(RL.Config(episodes=10, steps=12, **options)).fit()


def counted(tmp_path: Any, lengths: tuple[int, ...] = (9, 5, 7, 9), side: int = 12) -> str:
    """A replay whose pixels say episode and time: 40 * episode + t; its action is t % 3."""
    frames = [np.full((side, side), 40 * e + t, np.uint8) for e, n in enumerate(lengths) for t in range(n)]
    actions = np.concatenate([np.arange(n) % 3 for n in lengths])
    path = tmp_path / "replay.npz"
    np.savez(path, observations=np.stack(frames), actions=actions, episode_ends=np.cumsum(lengths))
    return str(path)


def from_file(path: str, **options: Any) -> RL:
    return RL(RL.Config(data=path, size=12, local_size=12, patch=4, shift=0, intensity=0.0, **options)).fit()


def pixels(modality: RL, x: torch.Tensor) -> torch.Tensor:
    """The gray level of each frame of normalized stacks of one color, [R, k]."""
    fitted = modality.fitted()
    return ((x[:, :, 0, 0] * fitted["std"] + fitted["mean"]) * 255).round().long()


def batch_of(modality: RL, split: str, places: list[int], plan: ViewPlan, key: int = 0) -> Any:
    data: Any = modality.dataset(split)
    rng = RowRandom((key, 0), 0, len(places), len(places))
    raw = modality.collate([data[i] for i in places], {"rl": plan}, rng)
    return modality.views(raw, {"rl": plan}, rng.fork("device"))


def test_a_stack_repeats_the_first_frame_of_its_own_episode(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path))
    (views,) = batch_of(modality, "all", [0, 1, 8, 9, 10, 20], CLEAN)
    expected = [[0, 0, 0], [0, 0, 1], [6, 7, 8], [40, 40, 40], [40, 40, 41], [84, 85, 86]]
    assert pixels(modality, views.x).tolist() == expected


@pytest.mark.parametrize(
    ("stack", "names"), [(1, ("t",)), (2, ("t-1", "t")), (4, ("t-3", "t-2", "t-1", "t"))]
)
def test_channels_are_called_by_the_age_of_their_frame(stack: int, names: tuple[str, ...]) -> None:
    assert tiny(stack=stack).streams()["rl"].channels == names


def test_positives_and_actions_stay_in_the_episode(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path), horizon=3)
    count = len(modality.dataset("all"))
    (views,) = batch_of(modality, "all", [*range(count)], PAIR)
    newest = pixels(modality, views.x)[:, -1].view(2, count)
    assert torch.equal(newest[1] - newest[0], torch.full((count,), 3))
    assert torch.equal(newest[0] // 40, newest[1] // 40)
    assert views.condition is not None
    led = views.condition.view(2, count, 3, 3)  # [V, B, h, A]
    assert not led[0].any()
    first = newest[0] % 40
    taken = torch.stack([(first + i) % 3 for i in range(3)], 1)
    assert torch.equal(led[1], torch.nn.functional.one_hot(taken, 3).float())


def test_episodes_too_short_are_named(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path, (9, 2, 4, 9)), horizon=3)
    (views,) = batch_of(modality, "all", [9], CLEAN)
    assert pixels(modality, views.x).tolist() == [
        [40, 40, 40]
    ]  # a short one can be seen, not looked ahead in
    with pytest.raises(Unreadable, match="episode 1 has 2 frames, its views span 4"):
        batch_of(modality, "all", [9], PAIR)
    with pytest.raises(
        Unreadable, match=r"episode 2 has 4 frames, its views span 7: lower modality\.horizon"
    ):
        batch_of(modality, "all", [11], ViewPlan(num_global=3))


def test_bursts_that_fit_no_episode_or_no_rank_are_named(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path), horizon=3, burst=3, pace=2, gap=0)
    with pytest.raises(
        Unreadable, match=r"episode 1 has 5 frames, a burst of 3 spans 8: lower modality\.burst"
    ):
        batch_of(modality, "all", [10, 0, 0], PAIR)
    data: Any = modality.dataset("all")
    with pytest.raises(ValueError, match=r"modality\.burst=3: a rank with 4 .*; set modality\.burst=1, or a"):
        modality.collate([data[i] for i in range(4)], {"rl": PAIR}, RowRandom((0, 0), 4, 4, 12))


def test_a_short_episode_is_skipped_and_listed(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path, (9, 9, 9, 2, 9)), horizon=2)
    steps = StepBatches(modality, {"rl": PAIR}, 20, 0, 0, 1, final=True)
    batch, skipped = steps[0]
    assert {reason for _, reason in skipped} == {
        "episode 3 has 2 frames, its views span 3: lower modality.horizon"
    }
    assert batch[0].x.shape[0] == 40


def test_splits_share_no_episode_and_leave_none_out() -> None:
    modality = tiny()
    groups = {s: {modality.dataset(s)[i].group for i in range(len(modality.dataset(s)))}
              for s in ("train", "val", "test")}  # fmt: skip
    assert groups["val"] == {0}
    assert groups["test"] == {1}
    assert groups["train"] == {*range(2, 10)}


@pytest.mark.parametrize("gap", [1, 4, 7])
@pytest.mark.parametrize("span", [0, 3])
def test_frames_closer_than_the_gap_are_never_negatives(gap: int, span: int) -> None:
    ids = near([(0, t) for t in range(60)] + [(1, t) for t in range(60)], gap, span)
    alike = (ids[:, None] == ids).any(2)
    t = torch.arange(60).repeat(2)
    apart = (t[:, None] - t).abs()
    same = torch.arange(120)[:, None] // 60 == torch.arange(120) // 60
    reach = gap + span
    assert alike[same & (apart < reach)].all()
    assert not alike[same & (apart >= 2 * reach)].any()
    assert not alike[~same].any()


def test_no_frames_of_an_episode_are_negatives_where_gap_is_below_0() -> None:
    ids = near([(0, 0), (0, 50), (1, 0)], -1, 3)
    assert (ids[:, None] == ids).any(2).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def test_a_burst_is_a_stretch_of_one_episode(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path), horizon=2, burst=3, pace=1, gap=0)
    (views,) = batch_of(modality, "all", [1, 20, 20, 8, 14, 15], PAIR)  # 8: too near the end, starts earlier
    newest = pixels(modality, views.x)[:, -1].view(2, 6)
    assert newest[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(newest[1], newest[0] + 2)
    assert views.sample_id is not None
    assert views.sample_id.tolist() == [1, 2, 3, 4, 5, 6]
    assert views.group_id is None  # all are negatives of each other
    (clean,) = batch_of(modality, "all", [1, 20], CLEAN)
    assert pixels(modality, clean.x)[:, -1].tolist() == [1, 86]


def test_groups_reach_the_contrastive_kernel() -> None:
    from multissl.objectives.pairing import relations_of

    modality = tiny(horizon=1, gap=2)
    (views,) = batch_of(modality, "train", [0, 1, 9, 12], PAIR)
    apart = relations_of(Batch([views])).apart
    assert not apart[0, 1]  # a step away
    assert apart[0, 2]  # nine steps away
    assert apart[0, 3]  # another episode


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_views_depend_on_the_seed_alone(workers: int) -> None:
    plan = ViewPlan(num_clean=1, num_global=3, num_local=2, mask_ratio=(0.5, 0.5), target=True, coords=True)
    modality = tiny(mask_group=4)
    steps = StepBatches(modality, {"rl": plan}, 4, 7, 0, 1, final=False)
    alone = [steps.views(steps[s][0], s) for s in (1, 2)]
    loaded = batches_of(steps, 1, 3, Loading(workers=workers), 1, torch.device("cpu"))
    for right, fetched in zip(alone, loaded, strict=True):
        for a, b in zip(right, fetched.batch, strict=True):
            for name in ("x", "condition", "target", "coords", "sample_id", "group_id"):
                one, other = getattr(a, name), getattr(b, name)
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other), name
            assert (a.mask is None) == (b.mask is None)
            if a.mask is not None and b.mask is not None:
                assert torch.equal(a.mask.hidden, b.mask.hidden)


@pytest.mark.parametrize("options", [{}, {"burst": 4, "gap": 0}])
def test_two_ranks_see_the_views_of_one(options: dict[str, Any]) -> None:
    modality = tiny(mask_group=2, **options)
    plan = {"rl": ViewPlan(num_global=2, num_local=1, mask_ratio=(0.5, 0.5))}
    whole, *parts = [
        StepBatches(modality, plan, 8, 3, rank, world, final=True)[2][0]
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    for v, (one, two) in zip(whole, zip(*parts, strict=True), strict=True):
        together = torch.cat(
            [one.x.unflatten(0, (one.num_views, -1)), two.x.unflatten(0, (one.num_views, -1))], 1
        )
        assert torch.equal(together.flatten(0, 1), v.x)


def test_one_offset_moves_a_whole_stack_and_edges_are_repeated() -> None:
    frame = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(2, 3, 6, 6)
    found = cut(frame, torch.tensor([[-2, 1], [1, 0]]), 5, 2)
    assert torch.equal(found[0, 0], found[0, 2])
    assert found[0, 0, :3].tolist() == [[1, 2, 3, 4, 5]] * 3
    assert torch.equal(found[1, 0], frame[1, 0, 1:6, :5])


def test_two_views_of_one_stack_differ_and_keep_its_size() -> None:
    modality = tiny(horizon=0, frame=56, intensity=0.0)
    (views,) = batch_of(modality, "train", [5, 6, 7, 8], PAIR)
    assert views.x.shape == (8, 3, 48, 48)
    assert views.x.dtype == torch.float32
    assert not torch.equal(views.x[:4], views.x[4:])
    assert views.condition is not None
    assert not views.condition.any()  # nothing happened between them


def test_an_episodes_mean_can_be_taken_out() -> None:
    plain, taken = (tiny(background="fixed", subtract=s) for s in ("none", "episode"))
    still = []
    for modality in (plain, taken):
        (views,) = batch_of(modality, "train", [0, 11, 12, 23], CLEAN)
        x = views.x[:, -1] - views.x[:, -1].mean((1, 2), keepdim=True)
        still.append(float((x[0] * x[1]).mean() / (x[0].std() * x[1].std())))
    assert still[0] > 0.6  # what never changes is most of the picture
    assert still[1] < 0.3


def test_a_stack_in_memory_is_read_as_a_sample() -> None:
    modality = tiny()
    rng = RowRandom((0, 0), 0, 1, 1)
    sample = Sample(np.full((3, 60, 60), 7, np.uint8), 0)
    (views,) = modality.views(modality.collate([sample], {"rl": CLEAN}, rng), {"rl": CLEAN}, rng)
    assert views.x.shape == (1, 3, 48, 48)
    with pytest.raises(
        Unreadable, match=r"sample 4 is float64 \(3, 60, 60\): want a stack of 3 frames, uint8"
    ):
        modality.collate([Sample(np.zeros((3, 60, 60)), 4)], {"rl": CLEAN}, rng)


def test_states_belong_to_their_frames() -> None:
    modality = tiny()
    values, names = modality.states("val")
    data: Any = modality.dataset("val")
    assert names == ("ball_x", "ball_y", "player_y", "enemy_y")
    assert len(values) == len(data)
    moment: Moment = data[3].data
    assert moment.replay.states is not None
    assert torch.equal(values[3], torch.from_numpy(moment.replay.states[moment.replay.start[0] + 3]))
    assert {data[i].label for i in range(len(data))} <= {*range(16)}


def test_frames_of_which_nothing_is_known_have_states_of_no_values(tmp_path: Any) -> None:
    modality = from_file(counted(tmp_path))
    for split in ("train", "val"):
        values, names = modality.states(split)
        assert values.shape == (len(modality.dataset(split)), 0)
        assert names == ()


@pytest.mark.parametrize("horizon", [0, 1, 2, 3])
def test_the_stream_promises_as_many_numbers_of_actions_as_views_have(tmp_path: Any, horizon: int) -> None:
    """An action of three numbers for each step from one view to the next; one of nothing where there is no step."""
    modality = from_file(counted(tmp_path), horizon=horizon)
    (views,) = batch_of(modality, "train", [0, 1], PAIR)
    width = modality.streams()["rl"].condition_dim
    assert width == 3 * max(horizon, 1)
    assert views.condition is not None
    assert views.condition.shape == (4, width)


def test_new_data_is_read_as_the_training_data_was(tmp_path: Any) -> None:
    trained = from_file(counted(tmp_path))
    other = from_file(counted(tmp_path))
    other.restore({**trained.state(), "actions": 6})
    assert other.streams()["rl"].condition_dim == 18
    assert batch_of(other, "train", [0, 1], PAIR)[0].condition.shape == (4, 18)
    narrow = trained.cfg.build()
    narrow.restore({**trained.state(), "actions": 2})
    with pytest.raises(ValueError, match="has actions of 3 numbers, the model was trained on 2"):
        narrow.dataset("train")


def test_figures_and_pictures_are_pictures() -> None:
    modality = tiny(mask_group=4)
    plan = ViewPlan(num_clean=1, num_global=2, num_local=1, mask_ratio=(0.5, 0.5))
    batch = batch_of(modality, "train", [0, 1, 2, 3], plan)
    (figure,) = modality.figures(batch)
    assert figure.image.dtype == np.uint8
    assert figure.image.ndim == 3
    assert "3 steps later" in figure.caption
    assert "actions taken" in figure.caption
    blue = (figure.image == np.array([0, 114, 178])).all(2)
    assert blue.any()  # an action is lit
    pictures = modality.pictures(batch[0])
    assert pictures is not None
    assert pictures.shape == (4, 48, 48, 3)
    assert modality.figures(Batch()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": 0}, "modality.stack=0: want 1 or more"),
        ({"episodes": 2}, "modality.episodes=2: want 3 or more"),
        ({"gap": -2}, "modality.gap=-2: want -1 or more"),
        ({"burst": 0}, "modality.burst=0: want 1 or more"),
        ({"burst": 8, "gap": -1}, "modality.gap=-1 forbids them: set modality.gap=0"),
        ({"size": 50}, "modality.size=50: want a multiple of patch=12, such as 48"),
        ({"frame": 40}, "modality.frame=40: want 0, or at least size=48 and local_size=36"),
        ({"shift_chance": 1.5}, "modality.shift_chance=1.5: want 0 to 1"),
    ],
)
def test_limits_of_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RL.Config(**options)


def test_mean_of_an_episode_is_its_own(tmp_path: Any) -> None:
    replay: Replay = from_file(counted(tmp_path)).replay()
    assert replay.mean(0)[0, 0] == pytest.approx(4)
    assert replay.mean(1)[0, 0] == pytest.approx(42)


def test_a_thousand_frames_are_measured_of_however_many(tmp_path: Any) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2000, 12, 12)).astype(np.uint8)
    path = tmp_path / "long.npz"
    np.savez(
        path, observations=frames, actions=np.zeros(2000, np.int64), episode_ends=np.arange(100, 2001, 100)
    )
    fitted = from_file(str(path)).fitted()
    assert fitted["mean"] == pytest.approx(0.5, abs=0.01)
    assert fitted["std"] == pytest.approx(12**-0.5, abs=0.01)
