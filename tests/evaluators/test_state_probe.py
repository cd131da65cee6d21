"""The state probe: R2 of known regressions, whole groups held out, baselines at equal width, data without states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from multissl.contract.data import Samples, Views
from multissl.contract.encoder import build_encoders
from multissl.contract.estimate import Estimate
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking
from multissl.encoders.nature import NatureEncoder
from multissl.evaluators.state_probe import StateProbe, constant, principal, r2_of
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular.adapter import Tabular
from tests.evaluators.every import Subject, seeing
from tests.helpers.stubs import Listed

END, CPU = Progress(step=1, total=1), torch.device("cpu")
STRENGTHS = (1e-6, 1e-2, 1.0)


def data(rows: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=g, dtype=torch.float64)
    y = torch.stack(
        [x @ torch.arange(1.0, 6.0, dtype=torch.float64) + 3, torch.randn(rows, generator=g).double()], 1
    )
    return x, y


def test_a_linear_state_is_found_and_noise_is_not() -> None:
    (x, y), (queries, truth) = data(), data(seed=1)
    found = r2_of(x, y, torch.arange(400) // 10, queries, truth, STRENGTHS)
    assert found[0] > 0.999
    assert abs(found[1]) < 0.1


def test_r2_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model", reason="the extra `tabular` is not installed")
    (x, y), (queries, truth) = data(), data(seed=1)
    found = r2_of(x, y, torch.zeros(400), queries, truth, (0.5,))
    mean, std = x.mean(0), x.std(0, correction=0)
    ridge = sklearn.Ridge(alpha=0.5 * 400).fit(((x - mean) / std).numpy(), y.numpy())
    guess = torch.from_numpy(ridge.predict(((queries - mean) / std).numpy()))
    right = 1 - (guess - truth).square().sum(0) / (truth - truth.mean(0)).square().sum(0)
    torch.testing.assert_close(found, right)


def test_neighbors_in_time_do_not_choose_the_strength() -> None:
    """Features that tell each episode apart fit frames of known episodes and fail on new ones: strong is right."""
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(10)
    own = torch.eye(40, dtype=torch.float64)[groups]
    level = torch.randn(40, 1, generator=g, dtype=torch.float64)[groups]
    x = torch.cat([own, torch.randn(400, 1, generator=g).double()], 1)
    queries = torch.randn(100, 41, generator=g, dtype=torch.float64)
    truth = torch.randn(100, 1, generator=g, dtype=torch.float64)
    chosen = r2_of(x, level, groups, queries, truth, (1e-6, 100.0))
    strong = r2_of(x, level, groups, queries, truth, (100.0,))
    torch.testing.assert_close(chosen, strong)


def test_components_are_those_of_most_variance() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g, dtype=torch.float64) * torch.tensor([9.0, 5, 3, 1, 0.1, 0.1])
    reduced, same = principal(x, x, 3)
    torch.testing.assert_close(reduced, same)
    values = torch.linalg.svdvals(x - x.mean(0))[:3]
    torch.testing.assert_close(reduced.norm(dim=0), values)


def find_ball(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
    """Return where the ball is: where the brightest columns and rows are in a plain picture."""
    found = []
    for v in views:
        bright = (v.x[:, -1] - v.x[:, -1].mean((1, 2), keepdim=True)).clamp(min=0)[:, :, 4:-4] ** 2
        share = bright / bright.sum((1, 2), keepdim=True).clamp(min=1e-6)
        x, y = (share.sum(d) @ torch.arange(float(share.shape[3 - d])) for d in (1, 2))
        found.append(Features(pooled=torch.stack([x, y], 1), tokens=share.flatten(1)[..., None]))
    return found


def test_an_encoder_that_sees_the_ball_is_told_from_one_that_does_not() -> None:
    modality = RL.Config(episodes=20, steps=40, background="plain").build().fit()
    probe: Any = StateProbe.Config(values=("ball_x", "ball_y")).build()
    blind = build_encoders({"rl": NatureEncoder.Config(dim=2)}, modality.streams())
    first = probe.run(FrozenEncoders.of(blind), modality, END) | probe.baselines(modality)
    last = probe.run(FrozenEncoders(find_ball, CPU), modality, END)
    assert last["r2"] > 95
    assert last["r2"] == pytest.approx((last["r2/ball_x"] + last["r2/ball_y"]) / 2)
    assert first["pca"] < 50 < first["wide"]
    assert isinstance(last["r2"], Estimate)
    assert last["r2"].groups is not None  # episodes
    verdict = probe.verdict([first, last])
    assert verdict is not None
    assert verdict.learned
    assert "the principal components'" in verdict.text
    verdict = probe.verdict([first, {**last, "r2": first["pca"]}])
    assert verdict is not None
    assert not verdict.learned
    assert "on the principal components'" in verdict.text


def test_data_without_states_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = Tabular.Config().build().fit()
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *given: said.append(text % given)
    )
    probe: Any = StateProbe.Config().build()
    assert probe.run(FrozenEncoders(find_ball, CPU), modality, END) == {}
    assert probe.baselines(modality) == {}
    own = [text for text in said if text.startswith("state_probe: ")]  # others warn by the same log
    assert own == ["state_probe: the data tells no state behind its samples, nothing to measure"]


def test_an_unknown_value_is_named() -> None:
    modality = RL.Config(episodes=10, steps=12).build().fit()
    encoders = build_encoders({"rl": NatureEncoder.Config(dim=2)}, modality.streams())
    with pytest.raises(ValueError, match="the states are ball_x, ball_y, player_y, enemy_y"):
        StateProbe.Config(values=("ball_z",)).build().run(FrozenEncoders.of(encoders), modality, END)


def test_limits_of_options() -> None:
    with pytest.raises(ValueError, match="want one or more strengths"):
        StateProbe.Config(l2=())
    with pytest.raises(ValueError, match="train=-1, queries=5000: want 0"):
        StateProbe.Config(train=-1)


def test_values_that_are_constant_have_no_r2_and_leave_the_others_as_they_are() -> None:
    (x, y), (queries, truth) = data(), data(seed=1)
    groups = torch.arange(400) // 10
    alone = r2_of(x, y[:, :1], groups, queries, truth[:, :1], STRENGTHS)
    same = torch.full((400, 1), 3.0, dtype=torch.float64)
    assert constant(torch.cat([same, 0 * same, truth], 1)).tolist() == [True, True, False, False]
    for states, scored in ((same, truth[:, 1:]), (y[:, 1:], same), (same, same)):
        both = r2_of(
            x,
            torch.cat([y[:, :1], states], 1),
            groups,
            queries,
            torch.cat([truth[:, :1], scored], 1),
            STRENGTHS,
        )
        assert both[1].isnan()
    torch.testing.assert_close(
        r2_of(x, torch.cat([y[:, :1], same], 1), groups, queries, truth, STRENGTHS)[:1], alone
    )


@pytest.mark.parametrize("groups", [torch.zeros(400), -torch.ones(400)])
def test_of_one_group_the_last_tenth_chooses(groups: torch.Tensor) -> None:
    """The last tenth of the samples, and it alone, is another regression: weak where it agrees, strong where not."""
    (x, y), (queries, truth) = data(), data(seed=1)
    for at, strength in ((slice(360, 400), 100.0), (slice(0, 40), 1e-6)):
        states = y[:, :1].clone()
        states[at] = 3 - (states[at] - 3)
        chosen = r2_of(x, states, groups, queries, truth[:, :1], (1e-6, 100.0))
        torch.testing.assert_close(chosen, r2_of(x, states, groups, queries, truth[:, :1], (strength,)))


@pytest.mark.parametrize(("rows", "strength"), [(10, 100.0), (19, 100.0), (20, 1e-6)])
def test_one_sample_left_out_of_one_group_cannot_choose(rows: int, strength: float) -> None:
    """Of a single sample nothing varies: the strongest is taken. A tenth of twenty are two, which choose."""
    (x, y), (queries, truth) = data(rows), data(seed=1)
    groups = torch.zeros(rows)
    chosen = r2_of(x, y[:, :1], groups, queries, truth[:, :1], (1e-6, 100.0))
    torch.testing.assert_close(chosen, r2_of(x, y[:, :1], groups, queries, truth[:, :1], (strength,)))


@pytest.mark.parametrize(
    ("offset", "spread", "read"), [(1e6, 0.1, False), (1e3, 0.1, True), (0.0, 1e-5, True)]
)
def test_a_feature_whose_spread_is_the_rounding_of_its_mean_tells_nothing(
    offset: float, spread: float, read: bool
) -> None:
    """Singles have seven digits: a spread below a millionth of the mean may be rounding, whatever it follows."""
    (x, y), (queries, truth) = data(), data(seed=1)
    x, queries = (offset + spread * states[:, 1:] for states in (y, truth))
    (found,) = r2_of(x, y[:, 1:], torch.arange(400) // 10, queries, truth[:, 1:], (1e-6,))
    assert found > 0.999 if read else abs(found) < 0.05


def test_constant_values_and_a_single_group_are_named(said: list[str]) -> None:
    modality: Any = Subject.Config().build()
    modality.change_states = lambda states: torch.cat([states[:, :1], 0 * states[:, 1:] + 2], 1)
    figures = StateProbe.Config().build().run(seeing(), modality, END)
    assert figures.keys() == {"r2", "r2/height"}
    assert figures["r2"] == figures["r2/height"]
    assert said == ["state_probe: constant in the val split and left out: speed"]
    said.clear()
    probe: Any = StateProbe.Config(values=("speed",)).build()
    assert probe.run(seeing(), modality, END) == {}
    assert probe.baselines(modality) == {}
    assert said[-1] == "state_probe: every value of the state is constant, nothing to measure"
    said.clear()
    modality = Ungrouped.Config().build()
    StateProbe.Config().build().run(seeing(), modality, END)
    assert said == [
        "state_probe: the training samples are of one group, or of none: the last tenth, in order, chooses the strength"
    ]


class Ungrouped(Subject):
    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        return Listed([replace(data[i], group=-1) for i in range(len(data))])


@pytest.mark.parametrize("width", [3, 30])
def test_many_features_are_solved_between_samples_as_few_are_between_features(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, queries = (torch.randn(20, width, dtype=torch.float64, generator=generator) for _ in range(2))
    y, truth = (torch.randn(20, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    std = x.std(0, correction=0)
    scaled, asked = (x - x.mean(0)) / std, (queries - x.mean(0)) / std
    gram = scaled.T @ scaled / 20 + 0.3 * torch.eye(width, dtype=torch.float64)
    weight = torch.linalg.solve(gram, scaled.T @ (y - y.mean(0)) / 20)
    error = (asked @ weight + y.mean(0) - truth).square().mean(0)
    expected = 1 - error / (truth - truth.mean(0)).square().mean(0)
    found = r2_of(x, y, torch.arange(20), queries, truth, (0.3,))
    torch.testing.assert_close(found, expected)
    reduced, _ = principal(x, queries, 2)
    assert reduced.var(0, correction=0)[0] >= reduced.var(0, correction=0)[1]
