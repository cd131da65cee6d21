"""Episodes made on the spot: a built-in game of two paddles in numpy, and any gymnasium environment with pictures.

The built-in game is synthetic and needs no extra: a ball flies between a paddle that follows it and one that the
actions move (stay, up, down), seen through noise that hides it from classical features. Its background can be drawn
anew every step (`noise`), once per episode (`fixed`: the trap in which what never changes is easier to agree on than
what moves, Sobal et al. 2022, arXiv 2211.10831), or left out (`plain`).
Every episode depends on (seed, its number) alone. Actions are uniform and kept for some steps.
Shapes: E episodes, T steps of an episode, S = E*T frames of H*W pixels, n values of a state.  State: none.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, cast

import numpy as np
import torch

from multissl import registry
from multissl.modalities.rl.actions import action_at, draw_actions, encode_actions, num_choices, policy
from multissl.modalities.rl.pixels import RENDER, Sight, layout_of, newest, sight_of
from multissl.modalities.rl.replay import Replay
from multissl.waiting import followed

Background = Literal["plain", "noise", "fixed"]
BACKGROUNDS: tuple[str, ...] = ("plain", "noise", "fixed")
SIDE = 48
"""Court of the built-in game in pixels."""
PADDLE, BALL = 9, 3
"""Height of a paddle and side of the ball in pixels."""
GAME = ("ball_x", "ball_y", "player_y", "enemy_y")
AIMS = ("ball_x", "ball_y")
"""The values worth finding in a game with a ball: paddles are large, and the actions tell where one of them is."""
RAM: dict[str, dict[str, int]] = {
    "pong": {"ball_x": 49, "ball_y": 54, "player_y": 51, "enemy_y": 50},
    "breakout": {"ball_x": 99, "ball_y": 101, "player_x": 72},
}
"""Bytes of the emulator's memory by game; those of Pong agree with pixel centroids (correlation 0.9995 and more)."""


def game(episodes: int, steps: int, seed: int, background: Background = "noise") -> Replay:
    """The built-in game: `episodes` of `steps` frames of 48 x 48 gray pixels, 3 actions."""
    frames = np.empty((episodes, steps, SIDE, SIDE), np.uint8)
    actions = np.empty((episodes, steps), np.int64)
    states = np.empty((episodes, steps, len(GAME)), np.float32)
    for episode in followed(range(episodes), "episodes of the built-in game", episodes):
        rng = np.random.default_rng(np.random.SeedSequence((seed, episode)))
        actions[episode] = policy(rng, 3, steps)
        states[episode] = _play(rng, actions[episode])
        frames[episode] = _draw(rng, states[episode], background)
    return Replay(
        frames=frames.reshape(-1, SIDE, SIDE),
        actions=actions.reshape(-1),
        start=np.arange(episodes + 1, dtype=np.int64) * steps,
        num_actions=3,
        states=states.reshape(-1, len(GAME)),
        names=GAME,
        aims=AIMS,
    )


def _play(rng: np.random.Generator, actions: np.ndarray) -> np.ndarray:
    """Centers of the ball and heights of the paddles in pixels, float32 [T, 4]."""
    left, right, half = 4.0, SIDE - 5.0, PADDLE / 2
    x, y = SIDE / 2, float(rng.uniform(8, SIDE - 8))
    vx, vy = float(rng.choice([-1, 1]) * rng.uniform(1.2, 2.2)), float(rng.uniform(-1.6, 1.6))
    player = enemy = SIDE / 2
    found = np.empty((len(actions), len(GAME)), np.float32)
    for t, action in enumerate(actions.tolist()):
        found[t] = x, y, player, enemy
        player = min(max(player + (0.0, -2.0, 2.0)[action], half), SIDE - half)
        enemy += min(max(y - enemy, -1.0), 1.0)
        enemy = min(max(enemy, half), SIDE - half)
        x, y = x + vx, y + vy
        if not 1.0 <= y <= SIDE - 2.0:
            y, vy = min(max(y, 1.0), SIDE - 2.0), -vy
        paddle = player if vx > 0 else enemy
        if left < x < right:
            continue
        if abs(y - paddle) <= half + 1:  # returned, the steeper the further from the paddle's middle
            vx, vy = -vx, 0.5 * vy + 1.6 * (y - paddle) / half
            x = min(max(x, left), right)
        else:  # served again from the middle
            x, y = SIDE / 2, float(rng.uniform(8, SIDE - 8))
            vx, vy = -vx, float(rng.uniform(-1.6, 1.6))
    return found


def _draw(rng: np.random.Generator, states: np.ndarray, background: Background) -> np.ndarray:
    """Frames uint8 [T, 48, 48] of states [T, 4]."""
    count, at = len(states), np.arange(SIDE)
    image = np.full((count, SIDE, SIDE), 60, np.uint8)
    if background != "plain":  # squares of 4 x 4 pixels
        squares = (1 if background == "fixed" else count, SIDE // 4, SIDE // 4)
        image[:] = rng.integers(20, 112, squares, dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    ball = np.abs(at - states[:, :1])[:, None] <= BALL / 2  # [T, 1, 48]
    image[ball & (np.abs(at - states[:, 1:2])[:, :, None] <= BALL / 2)] = 200
    for column, place in ((SIDE - 3, 2), (1, 3)):
        hit = np.abs(at - states[:, place : place + 1]) <= PADDLE / 2  # [T, 48]
        image[:, :, column : column + 2][hit] = 150
    return image


@functools.lru_cache(maxsize=4)
def rollout(
    name: str,
    episodes: int,
    steps: int,
    seed: int,
    size: int,
    channels: int,
    layout: str = "",
    entry: str = "",
) -> Replay:
    """Episodes of a gymnasium environment under the random policy, at most `steps` frames each.

    Frames are [size, size] (or [size, size, 3]) averaged from the environment's: from the picture that it observes, or
    else from what it renders. An Atari game is stepped 4 frames at a time with sticky actions, as its v5 says, and its
    state is what is known of its memory; otherwise the state is the observation, where this is a row of numbers.
    """
    env, sight = _make(name, channels, layout, entry)
    atari = hasattr(env.unwrapped, "ale")
    frames: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    states: list[np.ndarray] = []
    ends: list[int] = []
    known = RAM.get(str(getattr(env.unwrapped, "_game", "")).replace("_", "").lower(), {}) if atari else {}
    for episode in followed(range(episodes), f"episodes of {name}", episodes):
        rng = np.random.default_rng(np.random.SeedSequence((seed, episode)))
        seen, _ = env.reset(seed=int(rng.integers(2**31)))
        drawn, first = draw_actions(env.action_space, rng, steps), len(frames)
        for t in range(steps):
            picture = sight.frames(sight.entry(seen)[None])[0] if sight else _drawn(env, name)
            frames.append(shrink(picture, size, channels))
            states.append(_state(env, seen, known))
            seen, _, terminated, truncated, _ = env.step(action_at(env.action_space, drawn, t))
            if terminated or truncated:
                break
        actions.append(encode_actions(env.action_space, drawn)[: len(frames) - first])
        ends.append(len(frames))
    env.close()
    found = np.stack(states)
    return Replay(
        frames=np.stack(frames),
        actions=np.concatenate(actions),
        start=np.array([0, *ends], np.int64),
        num_actions=num_choices(env.action_space),
        states=found if found.shape[1] else None,
        names=tuple(known) if found.shape[1] else (),
        aims=AIMS if known else (),
    )


def _make(name: str, channels: int, layout: str, entry: str) -> tuple[Any, Sight | None]:
    """The environment, and where its observations hold a picture; None where it renders them."""
    options: dict[str, Any] = {}
    if name.startswith("ALE/"):
        registry.require("gymnasium").register_envs(registry.require("ale_py"))
        options = {"obs_type": "rgb" if channels == 3 else "grayscale"}
    env = _opened(name, options)
    if layout != RENDER and (sight := sight_of(env.observation_space, layout, entry, _single(env))):
        return env, sight
    modes = env.metadata.get("render_modes") or []
    env.close()
    if "rgb_array" not in modes:
        had = f"it has {', '.join(map(str, modes)) or 'no render mode'}"
        raise ValueError(f"{name} cannot render pictures, {had}: take one with render_mode=rgb_array")
    return _opened(name, {**options, "render_mode": "rgb_array"}), None


def _opened(name: str, options: dict[str, Any]) -> Any:
    gym = registry.require("gymnasium")
    try:
        return gym.make(name, **options)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{name}: {error}; install it with: pip install 'multissl[rl]'") from error
    except gym.error.Error as error:
        raise ValueError(f"gymnasium does not know {name!r} ({error}); gym:CartPole-v1 is one") from error
    except TypeError as error:  # such as a constructor that takes no render_mode
        given = ", ".join(f"{k}={v}" for k, v in options.items()) or "no options"
        raise ValueError(f"{name} cannot be made with {given} ({error}): take another environment") from error


def _single(env: Any) -> Any:
    """The space of what gymnasium's frame stack stacks; None where the environment has none."""
    wrapper = registry.require("gymnasium").Wrapper
    stack = registry.require("gymnasium.wrappers").FrameStackObservation
    while isinstance(env, wrapper):
        if isinstance(env, stack):
            return env.env.observation_space
        env = env.env
    return None


def _drawn(env: Any, name: str) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]: what the environment renders."""
    drawn = env.render()
    if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8:
        kind = drawn.dtype if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise ValueError(f"{name} renders {kind} and no picture of bytes: take another environment")
    return newest(drawn[None], layout_of(drawn.shape, rgba=True))[0]


def shrink(picture: np.ndarray, size: int, channels: int) -> np.ndarray:
    """A picture [H, W(, 3)] averaged to [size, size] gray levels, or [size, size, 3] colors; uint8."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).float()
    x = x[None] if x.ndim == 2 else x.movedim(-1, 0)[:3]  # [c, H, W]
    if channels == 1 and len(x) == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    x = torch.nn.functional.interpolate(x[None], (size, size), mode="area")[0].round_().byte()
    return (x.expand(3, -1, -1).movedim(0, -1) if channels == 3 else x[0]).numpy()


def stack_alone(frames: np.ndarray, k: int, size: int, channels: int) -> Replay:
    """A stack in memory as an episode of its own: uint8 [k, H, W], [k, H, W, 3] or [k, 3, H, W]."""
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or len(frames) != k:
        want = f"want a stack of {k} frames, uint8 [k, H, W] or [k, H, W, 3]"
        raise ValueError(f"is {frames.dtype} {frames.shape}: {want}")
    layout = layout_of(frames.shape[1:], rgba=True)
    if "s" in layout:
        raise ValueError(f"is {frames.shape}: want {k} single frames of 1 or 3 colors")
    frames = np.stack([shrink(f, size, channels) for f in newest(frames, layout)])
    return Replay(frames=frames, actions=np.zeros(k, np.int64), start=np.array([0, k]))


def _state(env: Any, seen: Any, known: dict[str, int]) -> np.ndarray:
    """float32 [n]; NaN while no ball is in play: its column is 0 before the first serve, its height after a point."""
    if hasattr(env.unwrapped, "ale"):
        ram = env.unwrapped.ale.getRAM()
        found = ram[list(known.values())].astype(np.float32)
        out = any(ram[byte] == 0 for name, byte in known.items() if name.startswith("ball"))
        return np.full_like(found, np.nan) if out else found
    flat = isinstance(seen, np.ndarray) and seen.ndim == 1 and seen.dtype.kind == "f"
    return cast(np.ndarray, seen).astype(np.float32) if flat else np.zeros(0, np.float32)
