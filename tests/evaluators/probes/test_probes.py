"""Attentive and MLP probes find what a mean or a linear map loses, choose on training alone, and refuse odd options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from multissl.contract.data import Samples, Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking
from multissl.evaluators.linear_probe import LinearProbe
from multissl.evaluators.probes.attentive_probe import AttentiveProbe
from multissl.evaluators.probes.mlp_probe import MLPProbe
from tests.evaluators.clusters import START, Clusters, frozen
from tests.helpers.stubs import Listed

CPU = torch.device("cpu")


class Corners(Clusters):
    """Points in the four quadrants; the class says whether both coordinates have one sign."""

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        draw = torch.Generator().manual_seed(len(split))
        samples = []
        for i in range(len(base)):
            x = torch.randn(2, generator=draw)
            samples.append(replace(base[i], data=x + 0.3 * x.sign(), label=int(x[0] * x[1] > 0)))
        return Listed(samples)


def test_a_small_network_tells_what_no_linear_map_does() -> None:
    modality = Corners.Config().build()
    linear = LinearProbe.Config().build().run(frozen(), modality, START)
    options: dict[str, Any] = {"lr": (0.03,), "hidden": 32, "layers": (1,), "steps": 150}
    figures = MLPProbe.Config(**options).build().run(frozen(), modality, START)
    assert linear["top1"] < 70
    assert figures["top1"] > 85
    assert figures["lr"] == 0.03


def marked(views: Views) -> torch.Tensor:
    """Tokens [R, 4, 6]: three of noise that tells nothing, and one, in a place of its own, that is marked and tells."""
    draw = torch.Generator().manual_seed(len(views.x))
    tokens = 1.5 * torch.randn(len(views.x), 4, 6, generator=draw)
    tokens[..., 5] = 0
    place = torch.randint(0, 4, (len(views.x),), generator=draw)
    point = torch.nn.functional.pad(2 * (views.x - 5), (0, 4))
    point[:, 5] = 5
    tokens[torch.arange(len(views.x)), place] = point
    return tokens


def looking() -> FrozenEncoders:
    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        return [Features(pooled=marked(v).mean(1), tokens=marked(v)) for v in views]

    return FrozenEncoders(encode, CPU)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "capi", "heads": 1, "lr": (0.1,)},
        {"head": "aim", "heads": 1, "lr": (0.1,)},
        {"head": "vjepa", "heads": 1, "lr": (0.03,)},
        {"head": "vjepa2", "heads": 1, "lr": (0.03,), "depth": 2},
    ],
)
def test_a_query_finds_the_token_that_tells(options: dict[str, Any]) -> None:
    modality = Clusters.Config().build()
    probe = AttentiveProbe.Config(**options, steps=150, batch=64).build()
    figures = probe.run(looking(), modality, START)
    assert figures["top1"] > 80
    assert LinearProbe.Config().build().run(looking(), modality, START)["top1"] < 60
    first, last = {"step": 0, **figures, **probe.baselines(modality)}, {"step": 9, **figures}
    assert probe.verdict([first, last]) is not None
    assert first["majority"] == pytest.approx(25)


class Padded(Clusters):
    """Clean views whose last two tokens are padding."""

    def views(self, raw: Any, plans: Any, rng: Any) -> Any:
        batch = super().views(raw, plans, rng)
        for v in batch:
            v.valid = torch.tensor([[True, True, True, False]]).expand(len(v.x), -1)
        return batch


def test_padding_is_not_looked_at() -> None:
    def encode(rest: float) -> FrozenEncoders:
        def function(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
            made = [torch.nn.functional.pad((v.x - 5)[:, None], (0, 0, 0, 3)) for v in views]
            for tokens in made:
                tokens[:, 3:] = rest
            return [Features(pooled=t[:, 0], tokens=t) for t in made]

        return FrozenEncoders(function, CPU)

    probe = AttentiveProbe.Config(lr=(0.3,), steps=100)
    figures = [probe.build().run(encode(rest), Padded.Config().build(), START) for rest in (0.0, 1e4)]
    assert figures[0] == figures[1]
    assert figures[0]["top1"] > 60


def test_few_or_equal_labels_are_nothing_to_learn_from(said: list[str]) -> None:
    modality = Clusters.Config(classes=1).build()
    assert MLPProbe.Config().build().run(frozen(), modality, START) == {}
    assert said == ["mlp_probe: 120 labeled training samples (want 10 or more) of 1 classes and 60 of the split, "
                    "nothing to measure"]  # fmt: skip


def test_a_choice_is_said_where_there_is_one() -> None:
    assert MLPProbe.Config().build().selected_on == "a tenth of training"
    assert AttentiveProbe.Config(lr=(0.1,), weight_decay=(0.0,)).build().selected_on == "none"
    assert MLPProbe.Config(lr=(0.1,)).build().selected_on == "a tenth of training"  # of the numbers of layers


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (AttentiveProbe, {"lr": ()}, "lr=()"),
        (AttentiveProbe, {"weight_decay": (-1.0,)}, "weight_decay=(-1.0,)"),
        (AttentiveProbe, {"depth": 0}, "depth=0"),
        (AttentiveProbe, {"batch": 1}, "batch=1"),
        (MLPProbe, {"dropout": 1.0}, "dropout=1.0"),
        (MLPProbe, {"layers": (0,)}, "layers=(0,)"),
    ],
)
def test_options_beyond_their_limits_are_refused(cls: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="want") as refused:
        cls.Config(**options)
    assert said in str(refused.value)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=4 does not divide the width of the tokens, 6"):
        AttentiveProbe.Config(heads=4).build().run(looking(), Clusters.Config().build(), START)


def test_later_runs_give_the_same_figures_again() -> None:
    modality = Clusters.Config(noise=0.5).build()
    runs = [
        MLPProbe.Config(steps=10, hidden=4).build().run(frozen(), modality, Progress(step=s, total=9))
        for s in (0, 9)
    ]
    assert runs[0] == runs[1]


def test_a_sample_without_a_label_is_left_out() -> None:
    class Half(Clusters):
        def dataset(self, split: str) -> Samples:
            base = super().dataset(split)
            return Listed(
                [replace(s, label=-1) if s.index % 2 else s for s in (base[i] for i in range(len(base)))]
            )

    top1: Any = MLPProbe.Config(steps=5, hidden=4).build().run(frozen(), Half.Config().build(), START)["top1"]
    assert top1.n == 30
