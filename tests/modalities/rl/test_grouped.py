"""Recorded episodes as robomimic, Minari and D4RL write them: small files of each, whole, odd and damaged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.recorded import read_replay

gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
h5py = pytest.importorskip("h5py", reason="the extra `rl` is not installed")
spaces = gym.spaces


def robomimic(
    path: Path, lengths: tuple[int, ...] = (3, 4, 2), cameras: tuple[str, ...] = ("hand_image",)
) -> str:
    """Demonstrations whose pixels say their number and time, written in the order of their names."""
    with h5py.File(path, "w") as file:
        file.create_group("mask")["train"] = [b"demo_0"]
        for demo in sorted(range(len(lengths)), key=str):
            steps, group = lengths[demo], file.create_group(f"data/demo_{demo}")
            group["actions"] = np.full((steps, 2), demo, np.float64)
            group["rewards"], group["dones"] = np.arange(steps), np.arange(steps) == steps - 1
            group["states"] = np.zeros((steps, 9))
            group["obs/eef_pos"] = np.full((steps, 3), demo + 0.5)
            group["obs/gripper"] = np.arange(steps)
            for camera in cameras:
                pixels = (40 * demo + np.arange(steps)).astype(np.uint8)
                group[f"obs/{camera}"] = np.broadcast_to(pixels[:, None, None, None], (steps, 12, 12, 3))
    return str(path)


def test_robomimics_demonstrations_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "image.hdf5", (2,) * 12)
    replay = read_replay(path)
    assert replay.frames.shape == (24, 12, 12, 3)
    assert replay.frames[::2, 0, 0, 0].tolist() == [(40 * demo) % 256 for demo in range(12)]
    assert replay.start.tolist() == [*range(0, 25, 2)]
    assert replay.actions[::2, 0].tolist() == [*range(12)]
    assert replay.names == ("eef_pos0", "eef_pos1", "eef_pos2", "gripper")
    assert replay.states is not None
    assert replay.states[3].tolist() == [1.5, 1.5, 1.5, 1]
    assert replay.rewards is not None
    assert replay.rewards[:2].tolist() == [0, 1]
    assert replay.terminated is not None
    assert replay.terminated.tolist() == [False, True] * 12


def test_numbers_of_robomimic_are_read_without_a_camera_or_where_they_are_asked_for(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "low.hdf5", cameras=())
    replay = read_replay(path)
    assert replay.columns == ("eef_pos0", "eef_pos1", "eef_pos2", "gripper")
    assert replay.frames.dtype == np.float32
    assert read_replay(path, entry="gripper").columns == ("gripper",)
    with h5py.File(path, "a") as file:
        for demo in range(3):
            del file[f"data/demo_{demo}/obs"]
    assert read_replay(path).columns == tuple(f"state{i}" for i in range(9))


def test_one_of_several_cameras_is_named(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "two.hdf5", cameras=("hand", "front"))
    with pytest.raises(
        ValueError, match=r"hold the pictures front, hand: say which with --modality\.entry front"
    ):
        read_replay(path)
    assert read_replay(path, entry="hand").frames.ndim == 4
    with pytest.raises(ValueError, match=r"modality\.entry='hnad' is no entry .*did you mean hand"):
        read_replay(path, entry="hnad")


def test_frames_are_kept_small_as_they_are_read(tmp_path: Path) -> None:
    path, seen = robomimic(tmp_path / "a.hdf5"), []

    def keep(frames: np.ndarray) -> np.ndarray:
        seen.append(len(frames))
        return frames[:, :2, :2]

    assert read_replay(path, keep=keep).frames.shape == (9, 2, 2, 3)
    assert seen == [3, 4, 2]
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["observations"] = np.zeros((3000, 8, 8), np.uint8)
        file["actions"], file["terminals"] = np.zeros(3000, np.int64), np.arange(3000) % 100 == 99
    seen.clear()
    assert read_replay(str(tmp_path / "flat.h5"), keep=keep).frames.shape == (3000, 2, 2)
    assert seen == [1024, 1024, 952]


def d4rl(path: Path, **change: Any) -> str:
    arrays: dict[str, Any] = {
        "observations": np.arange(24, dtype=np.float32).reshape(12, 2), "actions": np.ones((12, 3), np.float32),
        "rewards": np.arange(12.0), "terminals": np.arange(12) == 3, "timeouts": np.arange(12) == 7,
        "infos/qpos": np.zeros((12, 5)), "metadata/algorithm": b"SAC",
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, array in {**arrays, **change}.items():
            if array is not None:
                file[name] = array
    return str(path)


def test_d4rls_numbers_are_read(tmp_path: Path) -> None:
    replay = read_replay(d4rl(tmp_path / "a.hdf5"))
    assert replay.start.tolist() == [0, 4, 8, 12]
    assert replay.columns == replay.names == ("state0", "state1")
    assert replay.truncated is not None
    assert np.flatnonzero(replay.truncated).tolist() == [7]
    assert read_replay(d4rl(tmp_path / "b.hdf5"), entry="infos/qpos").columns == tuple(
        f"state{i}" for i in range(5)
    )
    modality = RL(RL.Config(data=d4rl(tmp_path / "c.hdf5"), stack=1)).fit()
    assert modality.streams()["rl"].shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": np.full((12, 2), np.nan)},
            "state0 is nan at step 0 of episode 0: want finite numbers",
        ),
        ({"observations": None}, "holds no frames: want an array called frames or observations"),
        ({"actions": None}, "holds no actions"),
        ({"rewards": np.zeros(5)}, "12 frames and 5 rewards"),
        ({"timeouts": None, "terminals": None}, "does not say where episodes end"),
        ({"observations": [b"a"] * 12}, r"frames are .*: want an array of numbers or bytes"),
        ({"actions": np.full(12, 10**9)}, "less than 65536, or floats"),
    ],
)
def test_broken_arrays_of_d4rl_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        read_replay(d4rl(tmp_path / "a.hdf5", **change))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda group: group.__delitem__("obs") or group.__delitem__("states"), "demo_1 holds no observations"),
        (lambda group: group["obs"].__delitem__("eef_pos") or group.__setitem__("obs/eef_pos", np.zeros((9, 3))),
         "differ in length: eef_pos 9, gripper 4"),
        (lambda group: group.__delitem__("rewards") or group.__setitem__("rewards", np.zeros(9)),
         "demo_1 has 4 observations and 9 rewards: want as many, or one less"),
        (lambda group: group.__delitem__("actions") or group.__setitem__("actions", np.zeros((4, 7))),
         r"demo_1 has actions of shape \(7,\), the first episode \(2,\)"),
    ],
)  # fmt: skip
def test_broken_episodes_are_named(broken: Any, message: str, tmp_path: Path) -> None:
    path = robomimic(tmp_path / "a.hdf5", cameras=())
    with h5py.File(path, "a") as file:
        broken(file["data/demo_1"])
    with pytest.raises(ValueError, match=message):
        read_replay(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_files_that_are_cut_off_are_named(kept: float, tmp_path: Path) -> None:
    data = Path(robomimic(tmp_path / "a.hdf5", (40,) * 3)).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"modality\.data=.*cannot be read as hdf5 .*: is the file whole\?"):
        RL(RL.Config(data=str(tmp_path / "cut.hdf5"))).dataset("train")


# -------------------------------------------------------------------------------------------- Minari


def minari_set(
    name: str, observations: Any, actions: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Write a set of 4 episodes of 3 actions in Minari's own way; return its folder."""
    minari = pytest.importorskip("minari", reason="the extra `rl` is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    observations.seed(0)
    actions.seed(0)

    def seen() -> Any:
        steps = [observations.sample() for _ in range(4)]
        if not isinstance(observations, spaces.Dict):
            return steps
        return {key: [step[key] for step in steps] for key in observations}

    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=seen(),
            actions=[actions.sample() for _ in range(3)],
            rewards=[1.0, 2.0, 3.0],
            terminations=[False, False, episode % 2 == 0],
            truncations=[False, False, episode % 2 == 1],
        )
        for episode in range(4)
    ]
    with warnings.catch_warnings(action="ignore"):  # of an author and a link that are missing
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=observations, action_space=actions, data_format="hdf5"
        )
    return folder / name


def test_a_minari_set_is_read_by_its_name_its_folder_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    folder = minari_set("test/numbers-v0", space, spaces.Discrete(3, start=-1), tmp_path, monkeypatch)
    for data in ("minari:test/numbers-v0", f"minari:{folder}", str(folder / "data" / "main_data.hdf5")):
        replay = read_replay(data)
        assert replay.columns == ("state0", "state1", "state2")
        assert replay.start.tolist() == [0, 4, 8, 12, 16]
        assert replay.num_actions == 3
        assert replay.actions.min() >= 0
        assert replay.rewards is not None
        assert replay.rewards[:4].tolist() == [1, 2, 3, 0]
        assert replay.truncated is not None
        assert np.flatnonzero(replay.truncated).tolist() == [6, 14]
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(ValueError, match="actions go from -1 to 1"):  # no space says where choices start
        read_replay(str(folder / "data" / "main_data.hdf5"))


def test_a_minari_set_of_pictures_beside_numbers_is_read_by_its_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = spaces.Dict(
        cam=spaces.Box(0, 255, (24, 24, 3), np.uint8), goal=spaces.Discrete(4), speed=spaces.Box(-1, 1)
    )
    folder = minari_set("cam-v0", space, spaces.Box(-np.inf, np.inf, (2,)), tmp_path, monkeypatch)
    replay = read_replay("minari:cam-v0")
    assert replay.frames.shape == (16, 24, 24, 3)
    assert replay.names == ("goal", "speed")
    assert replay.actions.shape == (16, 2)
    whole = (folder / "data" / "main_data.hdf5").read_bytes()
    (folder / "data" / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read as a Minari dataset .*: is the file whole\?"):
        read_replay("minari:cam-v0")
