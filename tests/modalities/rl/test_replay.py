"""Replays from files, the built-in game, gymnasium, and every way in which they can be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.modalities.rl.actions import policy
from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.envs import rollout
from multissl.modalities.rl.game import game
from multissl.modalities.rl.pixels import shrink
from multissl.modalities.rl.recorded import from_arrays, read_replay
from multissl.modalities.rl.replay import split_episodes

FRAMES = np.arange(12, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
ACTIONS = np.arange(12) % 3
ENDS = np.array([5, 9, 12])


def test_a_replay_is_read_from_npz(tmp_path: Path) -> None:
    arrays = {"obs": FRAMES, "action": ACTIONS, "episode_ends": ENDS, "states": np.ones((12, 2))}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays, state_names=np.array(["x", "y"]))
    assert read_replay(str(tmp_path / "b.npz")).names == ("x", "y")
    found = read_replay(str(tmp_path / "a.npz"))
    assert found.start.tolist() == [0, 5, 9, 12]
    assert found.num_actions == 3
    assert found.names == ("state0", "state1")
    assert found.stack(1, 0, 3)[:, 0, 0].tolist() == [5, 5, 5]
    assert found.between(1, 1, 2).argmax(1).tolist() == [0, 1]


def test_a_replay_is_read_from_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `rl` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["observations"], file["actions"], file["terminals"] = FRAMES, ACTIONS, np.arange(12) % 4 == 3
        file["states"], file["state_names"] = np.ones((12, 2)), ["x", "y"]
    found = read_replay(str(tmp_path / "a.h5"))
    assert found.start.tolist() == [0, 4, 8, 12]
    assert found.names == ("x", "y")


def test_episodes_end_where_terminated_or_truncated_or_where_ids_change() -> None:
    over, cut = np.zeros(12, bool), np.zeros(12, bool)
    over[4], cut[8] = True, True
    both = {"frames": FRAMES, "actions": ACTIONS, "terminated": over, "truncated": cut}
    assert from_arrays(both).start.tolist() == [0, 5, 9, 12]
    ids = {"frames": FRAMES, "actions": ACTIONS, "episode_ids": np.repeat([7, 2, 7], 4)}
    assert from_arrays(ids).start.tolist() == [0, 4, 8, 12]


def test_continuous_actions_and_colors_are_kept() -> None:
    given = {"frames": np.zeros((4, 3, 8, 8), np.uint8), "actions": np.ones((4, 2)), "episode_ends": [4]}
    found = from_arrays(given)
    assert found.frames.shape == (4, 8, 8, 3)
    assert (found.width, found.num_actions) == (2, 0)
    assert found.between(0, 0, 3).tolist() == [[1, 1]] * 3


GOOD: dict[str, Any] = {"frames": FRAMES, "actions": ACTIONS, "episode_ends": ENDS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": None}, "holds no frames: want an array called frames or observations"),
        ({"actions": None}, "holds no actions"),
        ({"episode_ends": None}, "does not say where episodes end: want one of terminated, truncated"),
        ({"frames": FRAMES.astype(float)}, r"frames are float64 of shape \(12, 8, 8\): want uint8"),
        ({"frames": np.zeros((12, 8, 8, 4), np.uint8)}, "want single frames of 1 or 3 colors, not stacks"),
        ({"actions": ACTIONS[:7]}, "12 frames and 7 actions: want as many"),
        ({"actions": ACTIONS - 1}, "actions go from -1 to 1: want choices counted from 0"),
        ({"actions": np.full((12, 2), np.nan)}, "12 actions are not finite"),
        ({"states": np.zeros((12, 2)), "state_names": np.array(["x"])}, "1 state_names for 2 states"),
        ({"episode_ends": np.array([5, 40])}, "episode_ends reach from 0 to 40, there are 12 frames"),
    ],
)
def test_broken_arrays_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        from_arrays({k: v for k, v in {**GOOD, **change}.items() if v is not None})
    assert "\n" not in str(found.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", **GOOD)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    np.savez(tmp_path / "objects.npz", frames=np.array([{}], object))
    (tmp_path / "text.npz").write_text("frames, actions")
    np.savez(tmp_path / "two.npz", frames=FRAMES, actions=ACTIONS, episode_ends=ENDS[1:])
    for name, message in {
        "cut.npz": "cannot be read as npz",
        "objects.npz": "holds Python objects, which are not read",
        "absent.npz": "no such file; give .npz, .h5, gym:NAME",
        "text.npz": "or is no npz: save plain arrays with np.savez",
        "two.npz": "2 episodes cannot be split by episode into train, val and test: give 3 or more",
    }.items():
        with pytest.raises(ValueError, match=message) as found:
            RL(RL.Config(data=str(tmp_path / name))).dataset("train")
        assert str(found.value).startswith("modality.data=")
        assert "\n" not in str(found.value)


def test_a_broken_hdf5_file_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `rl` is not installed")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["observations"], file["actions"], file["terminals"] = FRAMES, ACTIONS, np.arange(12) % 4 == 3
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"cannot be read as h5 .*: is the file whole") as found:
        RL(RL.Config(data=str(tmp_path / "cut.h5"))).dataset("train")
    assert "\n" not in str(found.value)


def test_an_absent_minari_dataset_is_named() -> None:
    pytest.importorskip("minari", reason="the extra `rl` is not installed")
    with pytest.raises(
        ValueError, match="no such Minari dataset on this machine: minari download no/such-v0"
    ):
        read_replay("minari:no/such-v0")


@pytest.mark.parametrize("count", [3, 7, 10, 41])
def test_every_episode_is_in_one_split(count: int) -> None:
    parts = [set(split_episodes(count, s).tolist()) for s in ("train", "val", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == count
    assert set.union(*parts) == {*range(count)}


def test_the_game_depends_on_seed_and_episode_alone() -> None:
    few, many, other = game(2, 30, 5), game(4, 30, 5), game(2, 30, 6)
    assert np.array_equal(few.frames, many.frames[:60])
    assert np.array_equal(few.actions, many.actions[:60])
    assert not np.array_equal(few.frames, other.frames)


def test_the_game_shows_its_state_and_obeys_its_actions() -> None:
    found = game(3, 60, 0, "plain")
    states = found.states
    assert states is not None
    for frame, (x, y, player, _) in zip(found.frames, states, strict=True):
        rows, columns = np.nonzero(frame == 200)
        if len(rows) == 9 or 8 < x < 40:
            assert abs(columns.mean() - x) <= 1
            assert abs(rows.mean() - y) <= 1
        assert abs(np.flatnonzero(frame[:, -2] == 150).mean() - player) <= 1
    moved = np.diff(states[:60, 2])
    assert set(moved[found.actions[:59] == 0]) == {0.0}
    assert (moved[found.actions[:59] == 2] >= 0).all()
    assert (moved[found.actions[:59] == 1] <= 0).all()


def test_a_fixed_background_stays_for_an_episode_and_differs_between_them() -> None:
    fixed, noise = (game(2, 20, 0, b).frames[:, 10:40, 6:10] for b in ("fixed", "noise"))
    same = [(f[0] == f[1]).mean() for f in (fixed, noise)]
    assert same[0] > 0.9
    assert same[1] < 0.2
    assert (fixed[0] == fixed[20]).mean() < 0.2


def test_actions_are_kept_for_some_steps_and_all_occur() -> None:
    drawn = policy(np.random.default_rng(0), 4, 4000)
    assert set(drawn) == {0, 1, 2, 3}
    assert (
        0.75 < (drawn[1:] == drawn[:-1]).mean() < 0.87
    )  # 3 in 4 kept, and a quarter of the others drawn again


def test_pictures_are_averaged_down() -> None:
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, :10] = 200
    assert shrink(picture, 2, 1).tolist() == [[200, 0], [200, 0]]
    assert shrink(picture[..., 0], 2, 3).shape == (2, 2, 3)


def test_classic_control_is_rolled_out_alike_for_a_seed() -> None:
    pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
    pytest.importorskip("pygame", reason="the extra `rl` is not installed")
    modality = RL(RL.Config(data="gym:CartPole-v1", episodes=3, steps=8, size=24, local_size=12)).fit()
    found, names = modality.states("train")
    assert found.shape[1] == len(names) == 4
    rollout.cache_clear()
    again = RL(RL.Config(data="gym:CartPole-v1", episodes=3, steps=8, size=24, local_size=12)).fit()
    assert np.array_equal(modality.replay().frames, again.replay().frames)
    assert modality.replay().frames.std() > 0


def test_atari_tells_where_the_ball_is() -> None:
    pytest.importorskip("ale_py", reason="the extra `rl` is not installed")
    modality = RL(RL.Config(data="gym:ALE/Pong-v5", episodes=3, steps=40, size=84, local_size=60)).fit()
    values, names = modality.states("train")
    assert names == ("ball_x", "ball_y", "player_y", "enemy_y")
    assert bool(values[:10].isnan().all())  # nothing is in play yet
    assert bool(values[30:].isfinite().any())
    assert modality.streams()["rl"].condition_dim == 18


def test_an_environment_that_cannot_render_is_refused() -> None:
    gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")

    class Blind(gym.Env):
        metadata = {"render_modes": ["ansi"]}  # noqa: RUF012
        action_space = gym.spaces.Discrete(2)
        observation_space = gym.spaces.Box(0, 1, (2,))

        def __init__(self, render_mode: str | None = None) -> None:
            self.render_mode = render_mode

    gym.register("Blind-v0", Blind)
    with pytest.raises(ValueError, match="Blind-v0 cannot render pictures, it has ansi: take one with"):
        RL(RL.Config(data="gym:Blind-v0", layout="render")).dataset("train")
    with pytest.raises(ValueError, match="gymnasium does not know 'NoSuch-v0'"):
        RL(RL.Config(data="gym:NoSuch-v0")).dataset("train")
