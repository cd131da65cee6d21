"""Observations that are numbers: rows and states by name, standardized views, refusals, runs that end in a verdict."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl import cli
from multissl.contract.data import Sample, Unreadable
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.encoders.nature import NatureEncoder
from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.envs import rollout
from multissl.modalities.rl.vectors import Numbers
from multissl.random import RowRandom

gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
spaces = gym.spaces
NUMBER = itertools.count()
NESTED = spaces.Dict(
    goal=spaces.Discrete(3, start=1),
    pose=spaces.Box(-1, 1, (2,), np.float64),
    rest=spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]),
)


def environment(observations: Any, actions: Any = None, last: int = 9, value: Any = None) -> str:
    """The name of an environment without pictures that observes at random, and ends after so many steps."""

    class Env(gym.Env):
        metadata = {"render_modes": []}  # noqa: RUF012
        observation_space = observations
        action_space = actions or spaces.Discrete(2, start=1)

        def __init__(self, render_mode: str | None = None, scale: float = 1.0, word: str = "") -> None:
            self.render_mode, self.scale, self.word = render_mode, scale, word

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            self.t = 0
            return self.look(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            assert self.action_space.contains(action)
            self.t += 1
            return self.look(), float(self.t), self.t == last, False, {}

        def look(self) -> Any:
            if value is not None and self.t == 2:
                return value
            seen = self.observation_space.sample()
            return seen * self.scale if isinstance(seen, np.ndarray) else seen

    name = f"Numbers{next(NUMBER)}-v0"
    gym.register(name, Env, disable_env_checker=True)
    return name


def tiny(name: str, **options: Any) -> RL:
    return RL(RL.Config(data=f"gym:{name}", episodes=6, steps=8, stack=2, **options)).fit()


def views_of(modality: RL, plan: ViewPlan, count: int = 4) -> Any:
    data, rng = modality.dataset("train"), RowRandom((0, 0), 0, count, count)
    raw = modality.collate([data[i] for i in range(count)], {"rl": plan}, rng)
    return modality.views(raw, {"rl": plan}, rng.fork("device"))


def test_nested_observations_are_a_row_and_a_state_by_name() -> None:
    numbers = Numbers(NESTED)
    seen = {"goal": 2, "pose": np.array([0.5, -1]), "rest": (np.array([1, 2]), np.array([0, 1]))}
    row = numbers.row(seen)
    assert dict(zip(numbers.columns, row.tolist(), strict=True)) == {
        "goal=1": 0, "goal=2": 1, "goal=3": 0, "pose0": 0.5, "pose1": -1,
        "rest.0_0=0": 0, "rest.0_0=1": 1, "rest.0_1=0": 0, "rest.0_1=1": 0, "rest.0_1=2": 1,
        "rest.1_0": 0, "rest.1_1": 1,
    }  # fmt: skip
    assert numbers.names == ("goal", "pose0", "pose1", "rest.0_0", "rest.0_1", "rest.1_0", "rest.1_1")
    assert numbers.states(row[None]).tolist() == [[2, 0.5, -1, 1, 2, 0, 1]]
    batched = {
        "goal": np.array([2]),
        "pose": seen["pose"][None],
        "rest": tuple(a[None] for a in seen["rest"]),
    }  # type: ignore[attr-defined]
    assert np.array_equal(numbers.rows(batched, 1), row[None])


def test_rewards_and_ends_are_kept() -> None:
    replay = tiny(environment(spaces.Box(-1, 1, (2,)), last=5)).replay()
    assert replay.rewards is not None
    assert replay.terminated is not None
    assert replay.truncated is not None
    assert replay.rewards[:6].tolist() == [1, 2, 3, 4, 5, 1]
    assert np.flatnonzero(replay.terminated).tolist() == [4, 9, 14, 19, 24, 29]
    assert not replay.truncated.any()


def test_unbounded_numbers_are_standardized_by_what_is_measured() -> None:
    modality = tiny(environment(spaces.Box(-np.inf, np.inf, (3,))) + "?scale=1000")
    x = views_of(modality, CLEAN, len(modality.dataset("train")))[0].x[:, -3:]
    assert x.mean(0).abs().max() < 1e-4
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-4
    assert views_of(modality, ViewPlan(num_global=2))[0].condition.shape == (8, 3 * 2)


def test_a_view_is_multiplied_by_one_factor_and_a_clean_one_by_none() -> None:
    modality = tiny(environment(spaces.Box(-1, 1, (2,))), horizon=0, intensity=0.3)
    clean, changed = views_of(modality, ViewPlan(num_clean=1, num_global=2))
    factor = changed.x / clean.x.repeat(2, 1)
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), atol=1e-4)
    assert (factor[:4, 0] != factor[4:, 0]).all()


def test_what_is_observed_is_looked_for_later() -> None:
    modality = tiny(environment(spaces.Box(-1, 1, (2,))), horizon=3)
    values, names = modality.states("train")
    replay = modality.replay()
    assert names == ("state0+3", "state1+3")
    assert replay.states is not None
    first = int(replay.start[2])
    assert torch.equal(values[:5], torch.from_numpy(replay.states[first + 3 : first + 8]))
    assert bool(values[5:8].isnan().all())


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    name = environment(spaces.Box(-np.inf, np.inf, (2,)), value=np.array([0, np.inf]))
    with pytest.raises(ValueError, match=r"state1 is inf at step 2 of episode 0: want finite numbers"):
        tiny(name)


def test_what_no_number_can_say_is_refused_with_a_way_out_that_works() -> None:
    space = spaces.Dict(list=spaces.Sequence(spaces.Discrete(3)), speed=spaces.Box(-1, 1, (2,)))
    name = environment(space)
    with pytest.raises(
        ValueError, match=r"list \(Sequence.* cannot be read as numbers.*--modality\.entry speed"
    ):
        tiny(name)
    assert tiny(name, entry="speed").fitted()["columns"] == ["speed0", "speed1"]


def test_arguments_follow_the_name() -> None:
    name = environment(spaces.Box(-1, 1, (2,)))
    assert tiny(f"{name}?scale=0&word=a b").fitted()["std"] == [1, 1]  # it never changes
    with pytest.raises(ValueError, match="cannot be made with sclae=0"):
        tiny(f"{name}?sclae=0")


def test_a_number_that_is_drawn_can_be_read_too() -> None:
    pytest.importorskip("pygame", reason="the extra `rl` is not installed")
    modality = tiny("CartPole-v1", layout="vector")
    assert modality.streams()["rl"].channels[-4:] == ("state0 t", "state1 t", "state2 t", "state3 t")
    assert "local" not in modality.provides("rl")


def test_other_data_is_read_as_the_training_data_was() -> None:
    modality = tiny(environment(spaces.Box(-1, 1, (2,))))
    for space, message in ((spaces.Box(-1, 1, (3,)), "are 3 numbers"), (None, "are pictures")):
        data = f"gym:{environment(space)}" if space else ""
        other = RL(RL.Config(data=data, episodes=6, steps=8, stack=2))
        other.restore(modality.state())
        with pytest.raises(ValueError, match=f"{message}, the model was trained on 2 numbers"):
            other.dataset("train")


def test_rows_in_memory_are_read_and_measured() -> None:
    modality = RL(RL.Config(stack=2)).fit([np.array([[0, 1], [2, 3]]), np.array([[4, 5], [6, 7]])])
    assert modality.fitted()["mean"] == [3, 4]
    rng = RowRandom((0, 0), 0, 1, 1)
    raw = modality.collate([Sample(np.array([[3.0, 4], [3, 4]]), 0)], {"rl": CLEAN}, rng)
    assert modality.views(raw, {"rl": CLEAN}, rng)[0].x.tolist() == [[0, 0, 0, 0]]
    with pytest.raises(Unreadable, match="want a stack of 2 observations of 2 numbers"):
        modality.collate([Sample(np.zeros((3, 2)), 0)], {"rl": CLEAN}, rng)


def test_pictures_in_memory_are_measured() -> None:
    bright = np.full((3, 48, 48), 255, np.uint8)
    assert RL(RL.Config()).fit([bright, 0 * bright]).fitted()["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("subtract", ["none", "episode"])
def test_a_stack_of_numbers_becomes_the_clean_view_by_tensors_alone(subtract: Any) -> None:
    modality = tiny(environment(spaces.Box(-1, 1, (2,))), subtract=subtract)
    preparation = modality.preparation("rl")
    stacks = torch.rand(3, 2, 2)
    raw = modality.collate(
        [Sample(s.numpy(), i) for i, s in enumerate(stacks)], {"rl": CLEAN}, RowRandom((0, 0), 0, 3, 3)
    )
    (views,) = modality.views(raw, {"rl": CLEAN}, RowRandom((0, 0), 0, 3, 3))
    torch.testing.assert_close(preparation(stacks, None, preparation.constants)[0], views.x)
    with pytest.raises(
        ValueError, match=r"want stacks of observations \[B, 2, 2\], the oldest first: state0, state1"
    ):
        preparation(stacks[:, :1], None, preparation.constants)


def test_the_nature_network_reads_numbers() -> None:
    modality = tiny(environment(NESTED))
    encoder = NatureEncoder.Config(dim=6, hidden=(5,)).build(modality.streams()["rl"])
    (features,) = encoder(list(views_of(modality, CLEAN)))
    assert features.pooled.shape == (4, 6)
    assert features.tokens.shape == (4, 1, 6)


KINDS = {
    "numbers without bounds, bits": (spaces.Box(-np.inf, np.inf, (3,)), spaces.MultiBinary(2)),
    "nested, a box without bounds": (NESTED, spaces.Box(-np.inf, np.inf, (2,))),
    "a choice, nested actions": (
        spaces.Discrete(5, start=-2),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.MultiDiscrete([2, 2])])),
    ),
}
FAST = "nested, a box without bounds"
SHORT = ["--modality.episodes", "12", "--modality.steps", "12", "--batch_size", "16", "--optim.warmup", "1"]


def verdict_of(name: str, out: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    command = ["train", "rl", "--data", f"gym:{name}", *SHORT, "--steps", "4", *options, "--out", str(out)]
    code, said = cli.main(command), capfd.readouterr()
    assert code in (0, 3), said.err
    return (said.out + said.err).strip().splitlines()[-1]


@pytest.mark.parametrize(
    "kind", [kind if kind == FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_run_on_numbers_ends_with_a_verdict(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "state probe R2" in verdict_of(environment(*KINDS[kind], last=12), tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["", "vector"])
@pytest.mark.parametrize(
    "name",
    ["CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0", "Pendulum-v1", "Taxi-v4", "FrozenLake-v1?map_name=8x8",
     "CliffWalking-v1", "Blackjack-v1", "ALE/Breakout-v5"],
)  # fmt: skip
def test_a_run_on_what_gymnasium_brings_ends_with_a_verdict(
    name: str, layout: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="the extra `rl` is not installed")
    pytest.importorskip("ale_py", reason="the extra `rl` is not installed")
    options = ["--modality.horizon", "1"] if "Blackjack" in name else []
    options += ["--modality.layout", layout] if layout else []
    said = verdict_of(name, tmp_path, capfd, *options)
    assert any(word in said for word in ("state probe R2", "k-NN", "collapsed", "not learned")), said


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["spr", "vicreg", "byol", "curl", "atc", "sgi"])
def test_every_recipe_for_views_runs_on_numbers(recipe: str, tmp_path: Path) -> None:
    name = environment(spaces.Box(-1, 1, (3,)), last=12)
    command = [
        "train",
        f"rl/{recipe}",
        "--data",
        f"gym:{name}",
        *SHORT,
        "--steps",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(command) in (0, 3)


def test_rollouts_of_numbers_depend_on_the_seed_alone() -> None:
    name = environment(spaces.Box(-1, 1, (2,)))
    made = [rollout.__wrapped__(name, count, 6, 3, 24, 1) for count in (3, 5)]
    assert np.array_equal(made[0].frames, made[1].frames[: len(made[0].frames)])
    assert np.array_equal(made[0].actions, made[1].actions[: len(made[0].actions)])
