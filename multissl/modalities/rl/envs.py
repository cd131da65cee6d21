"""Episodes of any gymnasium environment, made on the spot under a random policy.

What is kept of an observation is its picture; where it holds none, what the environment draws; where it draws none, or
where numbers are asked for, its numbers. Rewards and ends are kept with it. Every episode depends on (seed, its number)
alone. Actions are uniform and kept for some steps.
Shapes: E episodes, T steps of an episode, S frames of H*W pixels, n numbers of an observation, m of a state.
State: none.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from multissl import registry
from multissl.modalities.rl.actions import draw_actions, encode_actions, num_choices
from multissl.modalities.rl.game import AIMS
from multissl.modalities.rl.pixels import RENDER, VECTOR, Sight, layout_of, newest, shrink, sight_of
from multissl.modalities.rl.replay import Replay
from multissl.modalities.rl.vectors import Numbers, check_rows
from multissl.waiting import followed

log = logging.getLogger("multissl")
RAM: dict[str, dict[str, int]] = {
    "pong": {"ball_x": 49, "ball_y": 54, "player_y": 51, "enemy_y": 50},
    "breakout": {"ball_x": 99, "ball_y": 101, "player_x": 72},
}
"""Bytes of the emulator's memory by game; those of Pong agree with pixel centroids (correlation 0.9995 and more)."""


@dataclass(kw_only=True, slots=True)
class World:
    """An environment, and what is kept of it."""

    env: Any
    look: Callable[[Any], np.ndarray]
    """What is kept of an observation: a picture, or numbers."""
    state: Callable[[Any], np.ndarray]
    """The state behind an observation, or the row that it is made of."""
    names: tuple[str, ...]
    """Of the values of a state."""
    numbers: Numbers
    columns: tuple[str, ...] = ()
    """Names of the numbers, where these are kept."""
    aims: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class Steps:
    """What is noted of every step."""

    frames: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)


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
    """Episodes of a gymnasium environment under the random policy, at most `steps` observations each.

    `name` may end in arguments, as FrozenLake-v1?map_name=8x8. Pictures become [size, size] (or [size, size, 3]),
    averaged. An Atari game is stepped 4 frames at a time with sticky actions, as its v5 says, and its state is its
    memory: what is known of it, or every byte that changes. Else the state is all numbers that are observed.
    """
    world = _opened(name, size, channels, layout, entry)
    noted, actions, start = Steps(), [], [0]
    with contextlib.closing(world.env) as env:
        for episode in followed(range(episodes), f"episodes of {name}", episodes):
            rng = np.random.default_rng(np.random.SeedSequence((seed, episode)))
            seen, _ = env.reset(seed=int(rng.integers(2**31)))
            drawn = draw_actions(env.action_space, rng, steps)
            _play(world, seen, drawn, noted)
            start.append(len(noted.frames))
            actions.append(encode_actions(env.action_space, drawn[: start[-1] - start[-2]]))
        choices = num_choices(env.action_space)
    frames, starts = np.stack(noted.frames), np.array(start, np.int64)
    if world.columns:
        check_rows(frames, world.columns, starts)
    states, names = _states(world, np.stack(noted.states))
    return Replay(
        frames=frames,
        columns=world.columns,
        actions=np.concatenate(actions),
        start=starts,
        num_actions=choices,
        states=states,
        names=names,
        aims=world.aims,
        rewards=np.array(noted.rewards, np.float32),
        terminated=np.array(noted.terminated),
        truncated=np.array(noted.truncated),
    )


def _play(world: World, seen: Any, actions: list[Any], noted: Steps) -> None:
    """Take actions from an observation on until the episode ends."""
    for action in actions:
        noted.frames.append(world.look(seen))
        noted.states.append(world.state(seen))
        seen, reward, terminated, truncated, _ = world.env.step(action)
        noted.rewards.append(float(reward))
        noted.terminated.append(bool(terminated))
        noted.truncated.append(bool(truncated))
        if terminated or truncated:
            return


def _states(world: World, noted: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the states of what was noted [S, n] and their names; None where there are none."""
    states, names = noted, world.names
    if not names:
        states, names = world.numbers.states(noted), world.numbers.names
    elif not world.aims:  # a memory of which nothing is known: the bytes that change
        change = noted.min(0) < noted.max(0)
        states, names = noted[:, change], tuple(np.array(names)[change].tolist())
    return (states, names) if names else (None, ())


def _opened(name: str, size: int, channels: int, layout: str, entry: str) -> World:
    """Return the environment of a name, and what is kept of it."""
    env, sight = _made(name, channels, layout, entry)
    draws = sight is None and layout != VECTOR and env.render_mode == "rgb_array"
    say_what_is_read(name, env, sight, draws)
    numbers = Numbers(
        env.observation_space,
        without=sight.path if sight else None,
        entry=entry if sight is None and not draws else "",
    )
    look, columns = _look(name, env, sight, numbers, size, channels, draws)
    if not _is_atari(env):
        return World(env=env, look=look, state=numbers.row, names=(), numbers=numbers, columns=columns)
    known = RAM.get(str(getattr(env.unwrapped, "_game", "")).replace("_", "").lower(), {})
    memory = known or {f"ram{byte}": byte for byte in range(len(env.unwrapped.ale.getRAM()))}
    return World(
        env=env,
        look=look,
        state=lambda _: _memory(env, memory),
        names=tuple(memory),
        numbers=numbers,
        columns=columns,
        aims=AIMS if known else (),
    )


def say_what_is_read(name: str, env: Any, sight: Sight | None, draws: bool) -> None:
    """Say where something else could be read of an environment than is read."""
    count = len(Numbers(env.observation_space).columns)
    if draws and count:
        log.warning(
            "gym:%s: pictures that it draws; --modality.layout %s reads its %d numbers", name, VECTOR, count
        )
    elif not draws and sight is None and count:
        log.warning("gym:%s: the %d numbers that it observes", name, count)


# many: what decides is spread over the environment and the options
def _look(
    name: str, env: Any, sight: Sight | None, numbers: Numbers, size: int, channels: int, draws: bool
) -> tuple[Callable[[Any], np.ndarray], tuple[str, ...]]:
    """Return what is kept of an observation, and the names of its numbers where these are kept."""
    if sight:
        seen = sight
        return lambda observation: shrink(seen.frames(seen.entry(observation)[None])[0], size, channels), ()
    if draws:
        return lambda _: shrink(_drawn(env, name), size, channels), ()
    if numbers.unread or not numbers.columns:
        env.close()
        what = numbers.unread[0] if numbers.unread else f"its observations ({env.observation_space})"
        raise ValueError(
            f"{name} draws no pictures, and {what} cannot be read as numbers: name an entry that can, such as "
            f"--modality.entry {next(iter(numbers.leaves), ('position',))[0]}, or wrap it in gymnasium's"
            " FlattenObservation"
        )
    return numbers.row, numbers.columns


def _made(name: str, channels: int, layout: str, entry: str) -> tuple[Any, Sight | None]:
    """Return the environment, and where its observations hold a picture; None where it draws them or has numbers."""
    name, _, query = name.partition("?")
    options = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    if name.startswith("ALE/"):
        registry.require("gymnasium").register_envs(registry.require("ale_py"))
        seen = "ram" if layout == VECTOR else "rgb" if channels == 3 else "grayscale"
        options = {"obs_type": seen, **options}
    env = _make(name, options)
    if layout == VECTOR:
        return env, None
    if layout != RENDER and (sight := _sight(env, layout, entry)):
        return env, sight
    modes = env.metadata.get("render_modes") or []
    if "rgb_array" in modes:
        env.close()
        if not os.environ.get("DISPLAY"):  # pygame would complain of a screen that it lacks and does not need
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        return _make(name, {**options, "render_mode": "rgb_array"}), None
    if layout == RENDER:
        env.close()
        had = f"it has {', '.join(map(str, modes)) or 'no render mode'}"
        raise ValueError(
            f"{name} cannot render pictures, {had}: take one with render_mode=rgb_array, or read its numbers,"
            f" --modality.layout {VECTOR}"
        )
    return env, None


def _sight(env: Any, layout: str, entry: str) -> Sight | None:
    """Return where the observations hold a picture; None where an entry that is named holds none."""
    try:
        return sight_of(env.observation_space, layout, entry, _single(env))
    except ValueError:
        if entry and not layout and Numbers(env.observation_space, entry=entry).columns:
            return None  # the entry holds numbers
        raise


def _value(text: str) -> Any:
    """Return an argument as Python writes it; what is no value is text, and true and false are spelled either way."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    return text


def _make(name: str, options: dict[str, Any]) -> Any:
    gym = registry.require("gymnasium")
    try:
        return gym.make(name, **options)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{name}: {error}; install it with: pip install 'multissl[rl]'") from error
    except gym.error.Error as error:
        raise ValueError(f"gymnasium does not know {name!r} ({error}); gym:CartPole-v1 is one") from error
    except TypeError as error:  # such as a constructor that takes no render_mode
        given = ", ".join(f"{k}={v}" for k, v in options.items()) or "no options"
        raise ValueError(
            f"{name} cannot be made with {given} ({error}): take another environment, or other arguments, as in"
            " gym:NAME?KEY=VALUE"
        ) from error


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


def _is_atari(env: Any) -> bool:
    return hasattr(env.unwrapped, "ale")


def _memory(env: Any, known: dict[str, int]) -> np.ndarray:
    """float32 [n]; NaN while no ball is in play: its column is 0 before the first serve, its height after a point."""
    ram = env.unwrapped.ale.getRAM()
    values = ram[list(known.values())].astype(np.float32)
    out = any(ram[byte] == 0 for name, byte in known.items() if name.startswith("ball"))
    return np.full_like(values, np.nan) if out else values
