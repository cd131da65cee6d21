import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multissl.config import to_dict
from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders import module
from multissl.encoders.module import ModuleEncoder, holding
from multissl.evaluators.collapse import Collapse
from multissl.layers.heads import MLPHead
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe, read_recipe
from multissl.run import train as run
from multissl.run.model import load
from tests.encoders import nets

PICTURES = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=4, patch=(4, 4))
COLUMNS = StreamSpec(kind="columns", shape=(7,), num_tokens=7)


def test_a_map_becomes_tokens_and_its_width_is_measured_without_a_trace() -> None:
    encoder = ModuleEncoder(ModuleEncoder.Config(factory="tests.encoders.nets:make"), PICTURES)
    assert encoder.dim == 6
    assert encoder.net.layers[1].num_batches_tracked == 0
    assert all(m.training for m in encoder.modules())
    x = torch.randn(2, 3, 8, 8)
    (features,) = encoder([Views(x=x, stream="image", role="global")])
    assert features.tokens.shape == (2, 16, 6)
    torch.testing.assert_close(features.pooled, encoder.net(x).mean((2, 3)))


def test_rows_and_tokens_are_taken_as_they_are() -> None:
    encoder = ModuleEncoder(holding(nets.Rows(7)), COLUMNS)
    x = torch.randn(2, 7)
    (features,) = encoder([Views(x=x, stream="table", role="clean")])
    assert encoder.dim == 5
    torch.testing.assert_close(features.pooled, encoder.net(x))
    torch.testing.assert_close(features.tokens[:, 0], features.pooled)
    words = StreamSpec(kind="sequence", shape=(4,), num_tokens=4, vocab=9)
    encoder = holding(lambda spec: nn.Embedding(spec.vocab, 3)).build(words)
    (features,) = encoder([Views(x=torch.arange(4)[None], stream="text", role="clean")])
    assert features.tokens.shape == (1, 4, 3)
    assert encoder.dim == 3


def test_what_is_held_is_copied_and_keeps_one_name() -> None:
    net = nets.Rows(7)
    cfg = holding(net)
    assert cfg == holding(net)
    assert cfg != holding(nets.Rows(7))
    assert cfg.factory.startswith("memory:tests.encoders.nets.Rows#")
    one, two = ModuleEncoder(cfg, COLUMNS), ModuleEncoder(cfg, COLUMNS)
    assert torch.equal(one.net.weight, net.weight)
    assert one.net.weight is not net.weight
    assert two.net.weight is not one.net.weight


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("", "want package.module:function"),
        ("tests.encoders.nets:nothing", "no attribute 'nothing'"),
        ("no_such_package:make", "No module named"),
        ("tests.encoders.nets:no_module", "gives a int: want a torch.nn.Module"),
    ],
)
def test_a_wrong_factory_is_named(factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleEncoder(ModuleEncoder.Config(factory=factory), PICTURES)


def test_wrong_outputs_are_named() -> None:
    view = Views(x=torch.randn(2, 7), stream="table", role="clean")
    with pytest.raises(ValueError, match="width 5, not 4"):
        holding(nets.Rows(7), dim=4).build(COLUMNS)([view])
    with pytest.raises(ValueError, match="gives a tuple"):
        holding(nets.Pairs()).build(COLUMNS)
    with pytest.raises(ValueError, match="dim=-1"):
        holding(nets.Rows(7), dim=-1)


def test_a_run_with_a_network_in_memory_resumes_here_and_is_refused_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality = Tabular.Config()
    ((stream, spec),) = modality.build().fit().streams().items()
    recipe = Recipe(
        modality=modality,
        encoders={stream: holding(nets.Rows(spec.shape[0]))},
        objective=VICReg.Config(projector=MLPHead.Config(hidden=8, out=8)),
        evals={"collapse": Collapse.Config()},
        batch_size=8, steps=2, loggers={},
    )  # fmt: skip
    run.train(recipe, tmp_path)
    text: Any = json.loads((tmp_path / "recipe.json").read_text())
    assert text["encoders"][stream]["factory"].startswith("memory:tests.encoders.nets.Rows#")
    assert to_dict(read_recipe(tmp_path / "recipe.json")) == to_dict(recipe)
    run.train(recipe.replace(steps=3), tmp_path)
    assert load(tmp_path).encoders[stream].dim == 5
    monkeypatch.setattr(module, "MEMORY", {})  # another process
    for attempt in (
        lambda: load(tmp_path),
        lambda: run.train(read_recipe(tmp_path / "recipe.json").replace(steps=4), tmp_path),
    ):
        with pytest.raises(ValueError, match="a network in the memory of a Python program"):
            attempt()
