"""Evaluators that are left out by a flag, or because the data lacks what they read: said, and the run goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl import catalogue, cli, options
from multissl.contract.evaluator import Evaluator
from multissl.evaluators.few_labels import FewLabels
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.evaluators.recording_probe import RecordingProbe
from multissl.evaluators.state_probe import StateProbe
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.rl.adapter import RL
from multissl.modalities.rl.recorded import from_arrays
from tests.evaluators.clusters import START, Clusters, frozen

NAMES = [*catalogue.entries()]
NUMBER = itertools.count()
SMALL = ["--modality.episodes", "4", "--modality.steps", "12", "--steps", "3", "--batch_size", "8"]


def kept(*args: str) -> list[str]:
    """The evaluators of a recipe under some options."""
    return [*options.open_recipe(args[0], [*args[1:]])[0].evals]


@pytest.mark.parametrize(
    "spelling", [["--evals", "none"], ["--evals=none"], ["evals=none"], ["--evals", "None"]]
)
def test_all_evaluators_are_left_out_in_every_spelling(spelling: list[str]) -> None:
    assert kept("image", *spelling) == []
    assert kept("image", *spelling, "--evals.knn", "none", "--steps", "5") == []


@pytest.mark.parametrize("spelling", [["--evals.knn", "none"], ["--evals.knn=none"], ["evals.knn=none"]])
def test_one_evaluator_is_left_out_and_others_keep_their_options(spelling: list[str]) -> None:
    assert kept("image", *spelling) == ["linear", "collapse"]
    recipe = options.open_recipe(
        "image", [*spelling, "--evals.linear.every", "10", "evals.collapse.samples=7"]
    )[0]
    evals: Any = recipe.evals
    assert [*evals] == ["linear", "collapse"]
    assert (evals["linear"].every, evals["collapse"].samples) == (10, 7)
    assert kept("image", *spelling, "--evals.linear", "none") == ["collapse"]


def test_a_name_may_be_spelt_with_hyphens() -> None:
    assert "zero_shot" in kept("image_text")
    assert "zero_shot" not in kept("image_text", "--evals.zero-shot", "none")


@pytest.mark.parametrize("name", NAMES)
def test_evaluators_of_every_recipe_can_be_left_out(name: str) -> None:
    recipe = catalogue.find(name)()
    assert options.apply(recipe, options.read(["--evals", "none"])).evals == {}
    each = [word for evaluator in recipe.evals for word in (f"--evals.{evaluator}", "none")]
    assert options.apply(recipe, options.read(each)).evals == {}


def test_an_evaluator_is_added_by_its_name() -> None:
    recipe, _ = options.open_recipe("image", ["--evals.few", "few_labels", "--evals.few.every", "7"])
    assert isinstance(recipe.evals["few"], FewLabels.Config)
    assert recipe.evals["few"].every == 7
    assert [*recipe.evals][:-1] == kept("image")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--evals.kn", "none"], "--evals.kn: the recipe has no evaluator 'kn'; did you mean knn?"),
        (["--evals.linear_probe=none"], "--evals.linear_probe: the recipe has no evaluator 'linear_probe'; did you "),
        (["evals.zzz=none"], "--evals.zzz: the recipe has no evaluator 'zzz'; known: collapse, knn, linear"),
        (["--evals", "no"], "--evals no: want none, which leaves them all out"),
        (["--evals.knn", "5"], "--evals.knn 5: want none, which leaves it out; an option of one is set by its own"),
        (["--evals"], "--evals wants a value"),
        (["--evals.knn", "none", "--evals.knn.every", "3"], "--evals.knn.every is an option of what --evals.knn none"),
        (["evals.knn.every=3", "evals=none"], "--evals.knn.every is an option of what --evals none leaves out"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flag_is_answered_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "image", *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_run_without_evaluators_ends_with_an_honest_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert cli.main(["train", "rl", *SMALL, "--out", out, "--evals", "none"]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == "no evaluator gave a verdict"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["verdict"], summary["learned"]) == ("no evaluator gave a verdict", False)
    assert '"eval"' not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert cli.main(["eval", out]) == 0
    assert capfd.readouterr().out == "no evaluator gave a figure\n"


# ------------------------------------------------------------------- data that lack what evaluators read


def environment(observations: Any, modes: tuple[str, ...] = ()) -> str:
    """The name of an environment that observes noise in a space."""
    gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")

    class Noise(gym.Env):
        metadata = {"render_modes": modes, "render_fps": 30}  # noqa: RUF012
        observation_space = observations
        action_space = gym.spaces.Discrete(2)

        def __init__(self, render_mode: str | None = None) -> None:
            self.render_mode = render_mode

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

        def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.observation_space.sample(), 0.0, False, False, {}

        def render(self) -> np.ndarray:
            return np.random.default_rng(0).integers(255, size=(40, 40, 3), dtype=np.uint8)

    name = f"Noise{next(NUMBER)}-v0"
    gym.register(name, Noise)
    return name


def trained(
    data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], *options: str
) -> tuple[str, set[str]]:
    """What a short run of rl/default says, and the figures of its last evaluation."""
    out = tmp_path / "run"
    assert cli.main(["train", "rl/default", "--data", data, *SMALL, *options, "--out", str(out)]) == 0
    said = capfd.readouterr()
    evals = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines() if '"eval"' in x]
    return said.out + said.err, {figure for figure in evals[-1] if "/" in figure}


def test_the_default_runs_on_an_environment_with_states_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="the extra `rl` is not installed")
    said, figures = trained("gym:CartPole-v1", tmp_path, capfd)
    assert {"state/r2", *(f"state/r2/state{i}" for i in range(4))} <= figures
    assert "nothing to measure" not in said


def test_the_default_runs_on_an_environment_without_states(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gym = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
    name = environment(gym.spaces.Box(0, 255, (3, 40, 40), np.uint8))
    said, figures = trained(f"gym:{name}", tmp_path, capfd)
    assert (
        said.count("nothing to measure here for state, knn: --evals.state none --evals.knn none leaves") == 1
    )
    assert figures
    assert all(figure.startswith("collapse/") for figure in figures)
    flags = ["--evals.state", "none", "--evals.knn", "none"]
    again, same = trained(f"gym:{name}", tmp_path / "again", capfd, *flags)
    assert "nothing to measure" not in again
    assert same == figures


def test_the_default_runs_on_a_game_before_its_ball_is_in_play(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ale_py", reason="the extra `rl` is not installed")
    said, figures = trained("gym:ALE/Pong-v5", tmp_path, capfd, "--modality.steps", "8")
    assert "nothing to measure here for state, knn" in said
    assert "collapse/std" in figures


NOBODY = torch.full((2,), -1)


def test_the_ball_is_what_a_game_with_one_is_judged_by() -> None:
    game = RL(RL.Config(episodes=10, steps=12))
    assert game.aims() == ("ball_x", "ball_y")
    probe = StateProbe(StateProbe.Config())
    named: Any = probe._named(game, torch.tensor([[0.1, 0.3, 0.5, 0.7]] * 2), "r2", NOBODY)
    assert named["r2"] == pytest.approx(20)
    assert [*named] == ["r2", "r2/ball_x", "r2/ball_y", "r2/player_y", "r2/enemy_y"]


def test_all_values_count_where_the_data_has_no_aim(tmp_path: Path) -> None:
    arrays = {
        "frames": np.zeros((30, 12, 12), np.uint8), "actions": np.zeros(30, int), "episode_ends": [10, 20, 30],
        "states": np.random.default_rng(0).random((30, 2)),
    }  # fmt: skip
    assert from_arrays(arrays).aims == ()
    np.savez(tmp_path / "a.npz", **arrays)
    replay = RL(RL.Config(data=str(tmp_path / "a.npz"), size=12, local_size=12))
    named = StateProbe(StateProbe.Config())._named(replay, torch.tensor([[0.1, 0.3]] * 2), "r2", NOBODY)
    assert named["r2"] == pytest.approx(20)


class HalfLabeled(Clusters):
    """Points of which those of one split have no labels."""

    bare = "train"

    def dataset(self, split: str) -> Any:
        labels = self.cfg.labels and split != self.bare
        return Clusters(self.cfg.replace(labels=labels)).dataset(split)


@pytest.mark.parametrize("config", [KNN.Config, LinearProbe.Config, FewLabels.Config])
@pytest.mark.parametrize("bare", ["train", "val"])
def test_labels_of_one_split_alone_measure_nothing(
    config: type[Evaluator.Config], bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *values: said.append(text % values)
    )
    modality = HalfLabeled(HalfLabeled.Config())
    modality.bare = bare
    evaluator = config().build()
    assert evaluator.run(frozen(), modality, START) == {}
    assert evaluator.baselines(modality) == {}
    assert [text.partition(": ")[2] for text in said] == [
        f"the {bare} split has no labels, nothing to measure"
    ]


def test_recordings_without_two_readable_parts_measure_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *values: said.append(text % values)
    )
    soundfile.write(tmp_path / "one.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    probe: Any = RecordingProbe(RecordingProbe.Config(split="all"))
    modality = Audio(Audio.Config(data=str(tmp_path)))
    assert probe.run(frozen(), modality, START) == {}
    assert said == [
        "recording_probe: 1 recordings of the all split have two readable parts, nothing to measure"
    ]
