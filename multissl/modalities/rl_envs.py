"""Episodes made on the spot: a built-in game of two paddles in numpy, and any gymnasium environment with pictures.

The built-in game is synthetic and needs no extra: a ball flies between a paddle that follows it and one that the
actions move (stay, up, down), seen through noise that hides it from classical features. Its background can be drawn
anew every step (`noise`), once an episode (`fixed`: the trap in which what never changes is easier to agree on than
what moves, Sobal et al. 2022, arXiv 2211.10831), or left out (`plain`).
Every episode depends on (seed, its number) alone. Actions are uniform and kept for some steps.
Shapes: E episodes, T steps of an episode, S = E*T frames of H*W pixels, n values of a state.  State: none.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, Literal, cast

import numpy as np
import torch

from multissl import registry
from multissl.modalities.replay import Replay

Background = Literal["plain", "noise", "fixed"]
BACKGROUNDS: tuple[str, ...] = ("plain", "noise", "fixed")
KEEP = 0.75
"""Chance that an action is kept for another step."""
SIDE = 48
"""Court of the built-in game in pixels."""
PADDLE, BALL = 9, 3
"""Height of a paddle and side of the ball in pixels."""
GAME = ("ball_x", "ball_y", "player_y", "enemy_y")
RAM: dict[str, dict[str, int]] = {
    "pong": {"ball_x": 49, "ball_y": 54, "player_y": 51, "enemy_y": 50},
    "breakout": {"ball_x": 99, "ball_y": 101, "player_x": 72},
}
"""Bytes of the emulator's memory by game; those of Pong agree with pixel centroids (correlation 0.9995 and more)."""


def game(episodes: int, steps: int, seed: int, background: Background = "noise") -> Replay:
    """The built-in game: `episodes` of `steps` frames of 48 x 48 grey pixels, 3 actions."""
    frames = np.empty((episodes, steps, SIDE, SIDE), np.uint8)
    actions = np.empty((episodes, steps), np.int64)
    states = np.empty((episodes, steps, len(GAME)), np.float32)
    for episode in range(episodes):
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
    )


def policy(rng: np.random.Generator, choices: int, steps: int) -> np.ndarray:
    """Uniform actions, each kept for 1 / (1 - KEEP) steps on average: int64 [T]."""
    fresh, drawn = rng.random(steps) >= KEEP, rng.integers(choices, size=steps)
    fresh[:1] = True
    return drawn[np.maximum.accumulate(np.where(fresh, np.arange(steps), 0))]


def _play(rng: np.random.Generator, actions: np.ndarray) -> np.ndarray:
    """Centres of the ball and heights of the paddles in pixels, float32 [T, 4]."""
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
def rollout(name: str, episodes: int, steps: int, seed: int, size: int, colours: int) -> Replay:
    """Episodes of a gymnasium environment under the random policy, at most `steps` frames each.

    Frames are [size, size] (or [size, size, 3]) averaged from the environment's. An Atari game is stepped 4 frames at a
    time with sticky actions, as its v5 says, and its state is what is known of its memory; otherwise the state is the
    observation, where this is a row of numbers.
    """
    env = _make(name, colours)
    atari = hasattr(env.unwrapped, "ale")
    frames: list[np.ndarray] = []
    actions: list[Any] = []
    states: list[np.ndarray] = []
    ends: list[int] = []
    choices = int(getattr(env.action_space, "n", 0))
    known = RAM.get(str(getattr(env.unwrapped, "_game", "")).replace("_", "").lower(), {}) if atari else {}
    for episode in range(episodes):
        rng = np.random.default_rng(np.random.SeedSequence((seed, episode)))
        seen, _ = env.reset(seed=int(rng.integers(2**31)))
        taken: Any = policy(rng, choices, steps) if choices else _continuous(rng, env.action_space, steps)
        for action in taken:
            frames.append(shrink(_picture(env, seen, name), size, colours))
            states.append(_state(env, seen, known))
            actions.append(action)
            seen, _, terminated, truncated, _ = env.step(int(action) if choices else action)
            if terminated or truncated:
                break
        ends.append(len(frames))
    env.close()
    found = np.stack(states)
    return Replay(
        frames=np.stack(frames),
        actions=np.asarray(actions, np.int64 if choices else np.float32),
        start=np.array([0, *ends], np.int64),
        num_actions=choices,
        states=found if found.shape[1] else None,
        names=tuple(known) if found.shape[1] else (),
    )


def _make(name: str, colours: int) -> Any:
    gym = registry.require("gymnasium")
    options: dict[str, Any] = {"render_mode": "rgb_array"}
    if name.startswith("ALE/"):
        gym.register_envs(registry.require("ale_py"))
        options = {"obs_type": "rgb" if colours == 3 else "grayscale"}
    try:
        with warnings.catch_warnings():  # of a mode that is not offered: refused below, in one line
            warnings.filterwarnings("ignore", message=".*not in the possible render_modes")
            env = gym.make(name, **options)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{name}: {error}; install it with: pip install 'multissl[rl]'") from error
    except gym.error.Error as error:
        raise ValueError(f"gymnasium does not know {name!r} ({error}); gym:CartPole-v1 is one") from error
    except TypeError as error:  # an environment whose constructor takes no render_mode
        raise ValueError(
            f"{name} cannot render pictures ({error}): take one with render_mode=rgb_array"
        ) from error
    modes = env.metadata.get("render_modes") or []
    if not name.startswith("ALE/") and "rgb_array" not in modes:
        had = f"it offers {', '.join(map(str, modes)) or 'no render mode'}"
        raise ValueError(f"{name} cannot render pictures, {had}: take one with render_mode=rgb_array")
    return env


def _picture(env: Any, seen: Any, name: str) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]: the observation where it is a picture, else what the environment renders."""
    if isinstance(seen, np.ndarray) and seen.dtype == np.uint8 and seen.ndim in (2, 3):
        return seen
    drawn = env.render()
    if not isinstance(drawn, np.ndarray):
        raise ValueError(f"{name} renders a {type(drawn).__name__} and no picture: take another environment")
    return drawn


def shrink(picture: np.ndarray, size: int, colours: int) -> np.ndarray:
    """A picture [H, W(, 3)] averaged to [size, size] grey levels, or [size, size, 3] colours; uint8."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).float()
    x = x[None] if x.ndim == 2 else x.movedim(-1, 0)[:3]  # [c, H, W]
    if colours == 1 and len(x) == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    x = torch.nn.functional.interpolate(x[None], (size, size), mode="area")[0].round_().byte()
    return (x.expand(3, -1, -1).movedim(0, -1) if colours == 3 else x[0]).numpy()


def _state(env: Any, seen: Any, known: dict[str, int]) -> np.ndarray:
    """float32 [n]; NaN while no ball is in play: its column is 0 before the first serve, its height after a point."""
    if hasattr(env.unwrapped, "ale"):
        ram = env.unwrapped.ale.getRAM()
        found = ram[list(known.values())].astype(np.float32)
        out = any(ram[byte] == 0 for name, byte in known.items() if name.startswith("ball"))
        return np.full_like(found, np.nan) if out else found
    flat = isinstance(seen, np.ndarray) and seen.ndim == 1 and seen.dtype.kind == "f"
    return cast(np.ndarray, seen).astype(np.float32) if flat else np.zeros(0, np.float32)


def _continuous(rng: np.random.Generator, space: Any, steps: int) -> np.ndarray:
    """Actions uniform in a box, as a float array [T, A]; unbounded ones are refused."""
    if not hasattr(space, "low") or not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"actions are {space}: want a choice (Discrete) or a bounded box")
    held = policy(rng, steps, steps)  # which draw is in force at every step
    return rng.uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)[held]
