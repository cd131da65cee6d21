"""Observations and actions of every kind of space: the newest frame arrives, actions are legal and are written down."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.contract.data import Sample, Unreadable
from multissl.contract.plans import CLEAN
from multissl.modalities.rl.actions import draw_actions, encode_actions
from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.envs import rollout
from multissl.modalities.rl.recorded import from_arrays, read_replay
from multissl.random import RowRandom

gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
spaces = gym.spaces
NUMBER = itertools.count()
SIDE = 40


def painted(layout: str, stack: int = 1, colors: int = 1, fused: bool = False) -> np.ndarray:
    """A picture of 40 x 40, dark but for a square off the diagonal in its newest frame, 0 to 1; alpha is 1 all over."""
    canonical = np.zeros((stack, SIDE, SIDE, colors))
    canonical[-1, 4:12, 24:32] = 200 / 255
    canonical[..., 3:] = 1
    axes = ["shwc".index(letter) for letter in layout]
    lost = tuple(axis for axis in range(4) if axis not in axes)
    picture = canonical.transpose(*axes, *lost).reshape([canonical.shape[a] for a in axes])
    if not fused:
        return picture
    at = layout.index("sc")
    return picture.reshape(*picture.shape[:at], stack * colors, *picture.shape[at + 2 :])


def arrives(frames: np.ndarray) -> bool:
    """Whether frames of 20 x 20 show the square of `painted` and nothing else."""
    expected = np.zeros((20, 20))
    expected[2:6, 12:16] = 200
    frames = frames if frames.ndim == 3 else frames[..., 0]
    return bool((np.abs(frames.astype(int) - expected) <= 1).all())


def environment(
    observed: Any, observations: Any, actions: Any = None, modes: tuple[str, ...] = (), wrap: Any = None
) -> str:
    """The name of an environment that always observes the same, and refuses an action outside its space."""

    class Env(gym.Env):
        metadata = {"render_modes": modes, "render_fps": 30}  # noqa: RUF012
        observation_space = observations
        action_space = spaces.Discrete(3) if actions is None else actions

        def __init__(self, render_mode: str | None = None) -> None:
            assert render_mode is None or render_mode in modes
            self.render_mode = render_mode

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return copy.deepcopy(observed), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.action_space.contains(action), f"{action!r} is none of {self.action_space}"
            return copy.deepcopy(observed), 0.0, False, False, {}

        def render(self) -> Any:
            return (255 * painted("hwc", colors=3)).round().astype(np.uint8)

    name = f"Space{next(NUMBER)}-v0"
    # the checker warns of what is refused here
    gym.register(
        name, disable_env_checker=True, entry_point=(lambda **options: wrap(Env(**options))) if wrap else Env
    )
    return name


def box(picture: np.ndarray, dtype: Any = np.uint8, high: float = 255, low: float = 0) -> tuple[Any, Any]:
    """The picture between two bounds, as a type, and its space."""
    values = picture * (high - low) + low
    values = (values.round() if np.dtype(dtype).kind in "iu" else values).astype(dtype)
    return values, spaces.Box(low, high, picture.shape, dtype)


LAYOUTS = [
    painted("hw"),
    *(painted("hwc", colors=c) for c in (1, 3, 4)),
    *(painted("chw", colors=c) for c in (1, 3)),
    *(painted("shw", stack=s) for s in (2, 5, 7, 8)),
    *(painted("hws", stack=s) for s in (2, 5, 8)),
    *(painted("shwc", stack=s, colors=c) for s in (2, 3, 4, 6) for c in (1, 3, 4)),
    *(painted("schw", stack=s, colors=c) for s in (2, 3, 4, 6) for c in (1, 3)),
    *(painted("hwsc", stack=s, colors=3, fused=True) for s in (2, 3, 4)),
    *(painted("schw", stack=s, colors=3, fused=True) for s in (2, 3, 4)),
]


def shape_of(value: Any) -> str | None:
    return "x".join(map(str, value.shape)) if isinstance(value, np.ndarray) else None


def frames_of(name: str, colors: int = 1, **options: Any) -> np.ndarray:
    return rollout(name, 3, 3, 0, 20, colors, **options).frames


@pytest.mark.parametrize("picture", LAYOUTS, ids=shape_of)
@pytest.mark.parametrize("colors", [1, 3])
def test_the_newest_frame_arrives_whatever_the_layout(picture: np.ndarray, colors: int) -> None:
    found = frames_of(environment(*box(picture)), colors)
    assert found.shape == ((9, 20, 20) if colors == 1 else (9, 20, 20, 3))
    assert arrives(found)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.float32, 0, 1), (np.float64, 0, 255), (np.float16, 0, 1), (np.int64, 0, 255), (np.uint8, 0, 200)],
)
def test_brightness_is_read_from_the_bounds_of_the_space(dtype: Any, low: float, high: float) -> None:
    assert arrives(frames_of(environment(*box(painted("chw", colors=3), dtype, high, low))))


def test_other_bounds_are_read_where_the_layout_is_given() -> None:
    observed, space = box(painted("hwc", colors=3), np.float32, 1, -1)
    name = environment(observed, space)
    assert frames_of(name).shape == (9, SIDE * SIDE * 3)  # numbers, as nothing says what is bright
    assert arrives(frames_of(name, layout="hwc"))


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ((4, 40, 40), "chw or shw"),
        ((3, 3, 3), "chw or hcw or hwc or shw or hsw or hws"),
        ((16, 16, 16), "shw or hsw or hws"),
        ((40, 3, 40), "hcw or shw or hsw or hws"),
        ((40, 40, 3, 3), "shcw or shwc or hscw or hswc or hwsc or hwcs"),
    ],
)
def test_what_may_be_several_things_is_refused_with_ways_out_that_work(
    shape: tuple[int, ...], layouts: str
) -> None:
    name = environment(*box(np.zeros(shape)))
    with pytest.raises(
        ValueError, match=rf"may lie in several ways .*--modality\.layout {layouts}$"
    ) as refusal:
        RL.Config(data=f"gym:{name}").build().dataset("train")
    assert "\n" not in str(refusal.value)
    for layout in layouts.split(" or "):
        assert frames_of(name, layout=layout).shape == (9, 20, 20)


def test_a_layout_is_what_it_says() -> None:
    assert arrives(frames_of(environment(*box(painted("shw", stack=4))), layout="shw"))
    assert arrives(frames_of(environment(*box(painted("chw", colors=4))), layout="chw"))
    assert arrives(frames_of(environment(*box(painted("hws", stack=4))), layout="hws"))
    assert arrives(frames_of(environment(*box(painted("hws", stack=6))), layout="hws"))
    assert arrives(frames_of(environment(*box(painted("shw", stack=3))), layout="shw"))
    assert arrives(frames_of(environment(*box(painted("hwsc", stack=2, colors=3))), layout="hwsc"))
    assert arrives(frames_of(environment(*box(painted("wh"))), layout="wh"))
    drawn = environment(*box(np.zeros((4, SIDE, SIDE))), modes=("rgb_array",))
    assert arrives(frames_of(drawn, layout="render"))


@pytest.mark.parametrize("layout", ["hc", "hww", "chx", "draw"])
def test_a_layout_that_names_no_picture_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match=rf"modality\.layout='{layout}': want h and w"):
        RL.Config(layout=layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [("hw", r"have shape \(5, 40, 40\), another number of axes"), ("chw", "5 colors, want 1, 3 or 4"),
     ("schw", "an axis of 5 cannot hold colors in threes")],
)  # fmt: skip
def test_a_layout_that_does_not_fit_is_refused(layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frames_of(environment(*box(painted("shw", stack=5))), layout=layout)


def test_four_gray_frames_are_not_taken_for_rgba() -> None:
    name = environment(*box(painted("hws", stack=4)))
    with pytest.raises(ValueError, match=r"are no RGBA, .*--modality\.layout hws for a stack of four"):
        frames_of(name)


@pytest.mark.parametrize("stack", [2, 3, 4, 6])
@pytest.mark.parametrize("colors", [0, 1, 3])
def test_gymnasiums_frame_stack_is_known(stack: int, colors: int) -> None:
    picture = painted("hwc", colors=colors) if colors else painted("hw")
    wrappers = pytest.importorskip("gymnasium.wrappers")
    name = environment(*box(picture), wrap=lambda env: wrappers.FrameStackObservation(env, stack))
    assert arrives(frames_of(name))


@pytest.mark.parametrize("place", ["pixels", "image", "camera"])
def test_the_one_picture_among_the_entries_is_found(place: str) -> None:
    observed, space = box(painted("chw", colors=3))
    vector = spaces.Box(-1, 1, (5,), np.float32)
    entries = spaces.Dict({"speed": vector, place: space, "goal": spaces.Discrete(4)})
    seen = {"speed": np.zeros(5, np.float32), place: observed, "goal": 1}
    assert arrives(frames_of(environment(seen, entries)))
    nested = spaces.Dict({"robot": entries, "task": spaces.Tuple([vector])})
    assert arrives(frames_of(environment({"robot": seen, "task": (np.zeros(5, np.float32),)}, nested)))


def test_one_of_several_pictures_is_named() -> None:
    observed, space = box(painted("hw"))
    name = environment(
        {"left": np.zeros_like(observed), "right": observed}, spaces.Dict(left=space, right=space)
    )
    with pytest.raises(
        ValueError, match=r"hold the pictures left, right: say which with --modality\.entry left"
    ):
        frames_of(name)
    assert arrives(frames_of(name, entry="right"))
    with pytest.raises(ValueError, match=r"modality\.entry='rihgt' .*did you mean right"):
        frames_of(name, entry="rihgt")


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (4,)), spaces.Box(-np.inf, np.inf, (8, 8)), spaces.Discrete(5),
     spaces.Dict(speed=spaces.Box(-1, 1, (4,)))],
)  # fmt: skip
def test_what_holds_no_picture_is_drawn(space: Any) -> None:
    assert arrives(frames_of(environment(space.sample(), space, modes=("rgb_array",))))


def test_a_picture_is_read_where_nothing_can_be_drawn() -> None:
    assert arrives(frames_of(environment(*box(painted("hwc", colors=3)), modes=())))


def test_pixels_beyond_their_space_are_refused() -> None:
    _, space = box(painted("hw"), np.float32, 1)
    with pytest.raises(
        ValueError, match="pixels reach from 0 to 200, their space says 0 to 1: mend its bounds"
    ):
        frames_of(environment(200 * painted("hw").round().astype(np.float32), space))
    with pytest.raises(ValueError, match=r"has shape \(40, 40, 1\), its space says \(40, 40\)"):
        frames_of(environment(painted("hwc").astype(np.float32), space))


# -------------------------------------------------------------------------------------------- actions


ACTIONS = {
    "choice": (spaces.Discrete(3), 3),
    "choice from 1": (spaces.Discrete(3, start=1), 3),
    "choice from -2": (spaces.Discrete(4, start=-2), 4),
    "one choice": (spaces.Discrete(1), 1),
    "bits": (spaces.MultiBinary(4), 4),
    "grid of bits": (spaces.MultiBinary((2, 3)), 6),
    "choices": (spaces.MultiDiscrete([2, 3]), 5),
    "grid of choices": (spaces.MultiDiscrete([[2, 3], [4, 2]]), 11),
    "choices from 1": (spaces.MultiDiscrete([2, 3], start=[1, -1]), 5),
    "box": (spaces.Box(-1, 1, (2,), np.float32), 2),
    "box of doubles": (spaces.Box(-1, 1, (2,), np.float64), 2),
    "box of whole numbers": (spaces.Box(-3, 3, (2,), np.int32), 2),
    "grid": (spaces.Box(0, 5, (2, 3), np.float32), 6),
    "number": (spaces.Box(0, 5, (), np.float32), 1),
    "box without bounds": (spaces.Box(-np.inf, np.inf, (2,), np.float32), 2),
    "box with a bound": (spaces.Box(0, np.inf, (2,), np.float32), 2),
    "tuple": (spaces.Tuple([spaces.Discrete(3, start=2), spaces.Box(0, 1, (2,), np.float32)]), 5),
    "dict": (spaces.Dict(move=spaces.Discrete(2), keys=spaces.MultiBinary(3)), 5),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_random_actions_are_legal_and_written_down(kind: str) -> None:
    space, width = ACTIONS[kind]
    found = rollout(environment(*box(painted("hw")), actions=space), 3, 30, 0, 20, 1)
    assert found.width == width
    assert len(found.actions) == len(found.frames) == 90
    codes = found.between(0, 0, 30)
    assert codes.shape == (30, width)
    assert codes.dtype == np.float32
    assert np.isfinite(codes).all()
    assert RL.Config(data=f"gym:{environment(*box(painted('hw')), actions=space)}", steps=5, size=12, local_size=12,
                     episodes=3).build().fit().streams()["rl"].condition_dim == 3 * width  # fmt: skip


@pytest.mark.parametrize("kind", ACTIONS)
def test_different_actions_are_written_differently(kind: str) -> None:
    space, _ = ACTIONS[kind]
    drawn = draw_actions(space, np.random.default_rng(0), 200)
    codes = encode_actions(space, drawn)
    by_action: dict[str, set[bytes]] = {}
    for t in range(200):
        action = drawn[t]
        assert space.contains(action)
        by_action.setdefault(repr(action), set()).add(codes[t].tobytes())
    assert all(len(written) == 1 for written in by_action.values())
    assert len({next(iter(written)) for written in by_action.values()}) == len(by_action)
    assert len(by_action) > 1 or kind == "one choice"


def test_choices_are_counted_from_0_wherever_they_start() -> None:
    drawn = draw_actions(spaces.Discrete(3, start=-1), np.random.default_rng(0), 100)
    assert {*drawn} == {-1, 0, 1}
    assert np.array_equal(encode_actions(spaces.Discrete(3, start=-1), drawn), np.array(drawn) + 1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Tuple([spaces.Discrete(2), spaces.Graph(spaces.Box(0, 1), None)]),
    ],
)
def test_actions_that_cannot_be_drawn_are_refused(space: Any) -> None:
    with pytest.raises(ValueError, match=r"actions are .*, which no row of numbers can say: want a Discrete"):
        rollout(environment(*box(painted("hw")), actions=space), 3, 3, 0, 20, 1)


# ------------------------------------------------------------------------------------------- replays


def recorded(frames: np.ndarray, **arrays: Any) -> dict[str, Any]:
    ends = np.arange(1, 4) * len(frames) // 3
    return {"frames": frames, "actions": np.arange(len(frames)) % 2, "episode_ends": ends, **arrays}


@pytest.mark.parametrize("picture", [p for p in LAYOUTS if 4 not in p.shape[-1:]], ids=shape_of)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_recorded_frames_arrive_whatever_their_layout(picture: np.ndarray, dtype: Any) -> None:
    values, _ = box(picture, dtype, 255 if dtype == np.uint8 else 1)
    found = from_arrays(recorded(np.stack([values] * 6))).frames
    assert found.dtype == np.uint8
    assert found.shape[1:] in ((SIDE, SIDE), (SIDE, SIDE, 3))
    assert arrives(found[:, ::2, ::2])


def test_recorded_stacks_that_may_be_colors_want_a_layout(tmp_path: Path) -> None:
    values, _ = box(painted("hws", stack=4))
    np.savez(tmp_path / "four.npz", **recorded(np.stack([values] * 6)))
    path = str(tmp_path / "four.npz")
    with pytest.raises(ValueError, match=r"not stacks .*--modality\.layout hwc or hws$"):
        read_replay(path)
    assert arrives(read_replay(path, "hws").frames[:, ::2, ::2])
    with pytest.raises(ValueError, match=r"modality\.layout=render: only an environment"):
        RL.Config(data=path, layout="render").build().dataset("train")


def test_the_array_of_the_pictures_can_be_named() -> None:
    values, _ = box(painted("chw", colors=3))
    arrays = recorded(np.zeros((6, 2)), camera=np.stack([values] * 6))
    assert arrives(from_arrays(arrays, entry="camera").frames[:, ::2, ::2])
    with pytest.raises(ValueError, match=r"modality\.entry='camrea' .*did you mean camera"):
        from_arrays(arrays, entry="camrea")


def test_a_stack_in_memory_may_have_its_colors_first() -> None:
    modality = RL.Config(episodes=3, steps=4, size=20, local_size=20, patch=10, stack=3).build().fit()
    rng = RowRandom((0, 0), 0, 1, 1)

    def newest_of(stack: np.ndarray) -> np.ndarray:
        raw = modality.collate([Sample(stack, 0)], {"rl": CLEAN}, rng)
        return raw["rl"]["clean"][0, -1:].numpy()

    values = np.stack([box(painted("chw", colors=3))[0]] * 3)
    assert arrives(newest_of(values))
    assert arrives(newest_of(values.transpose(0, 2, 3, 1)))
    with pytest.raises(Unreadable, match=r"sample 0 is .*: want 3 single frames of 1 or 3 colors"):
        newest_of(np.zeros((3, 2, SIDE, SIDE), np.uint8))
