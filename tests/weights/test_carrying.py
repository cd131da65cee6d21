"""What a learner takes over from one of other sizes gives the features that the old one would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.positions import Position
from multissl.weights.carrying import carrying


def encoder(side: int, patch: int = 4, seed: int = 0, **options: Any) -> TransformerEncoder:
    torch.manual_seed(seed)
    grid = side // patch
    spec = StreamSpec(kind="grid", shape=(3, side, side), num_tokens=grid**2, patch=(patch, patch))
    made = TransformerEncoder(TransformerEncoder.Config(dim=16, depth=1, heads=2, **options), spec).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def carried(old: nn.Module, new: nn.Module) -> nn.Module:
    new.load_state_dict(carrying(old, new).carried(old.state_dict(), new.state_dict()))
    return new


def tokens(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model([Views(x=x, stream="image", role="clean")])[0].tokens


@pytest.mark.parametrize("position", [Position(offset=0.1), Position(offset=0.0, antialias=True)], ids=str)
@pytest.mark.parametrize("sides", [(8, 20), (20, 8)], ids=["grows", "shrinks"])
def test_positions_are_those_that_the_old_encoder_would_make_for_the_new_size(
    position: Position, sides: tuple[int, int]
) -> None:
    old, new = encoder(sides[0], position=position), encoder(sides[1], seed=1, position=position)
    x = torch.randn(2, 3, sides[1], sides[1])
    assert not torch.allclose(tokens(old, x), tokens(new, x), atol=0.1)
    assert torch.equal(tokens(carried(old, new), x), tokens(old, x))


def test_patches_of_another_size_see_a_resized_picture_alike() -> None:
    old, new = encoder(8, patch=2), encoder(16, patch=4, seed=1)
    x = torch.randn(2, 3, 8, 8)
    larger = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    smooth = torch.ones_like(x) * torch.randn(2, 3, 1, 1)  # of one color, which any resizing keeps
    assert torch.allclose(
        tokens(carried(old, new), nn.functional.interpolate(smooth, scale_factor=2)),
        tokens(old, smooth),
        atol=1e-4,
    )
    assert tokens(new, larger).shape == tokens(old, x).shape


def test_a_grid_turned_on_its_side_is_resampled_though_it_has_as_many_tokens() -> None:
    torch.manual_seed(0)
    specs = [
        StreamSpec(kind="grid", shape=(3, *size), num_tokens=8, patch=(4, 4)) for size in ((8, 16), (16, 8))
    ]
    cfg = TransformerEncoder.Config(dim=16, depth=1, heads=2)
    old, new = (TransformerEncoder(cfg, spec) for spec in specs)
    assert [n.rpartition(".")[2] for n in carrying(old, new).resampled] == ["pos_embed"]


def test_nothing_is_said_to_be_resampled_where_no_size_changes() -> None:
    plan = carrying(encoder(8), encoder(8, seed=1))
    assert not plan.resampled
    assert not plan.fresh
    assert not plan.dropped


def test_a_width_that_no_rule_resamples_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cls_token is \(1, 1, 16\), it would be \(1, 1, 32\)"):
        carrying(
            encoder(8),
            TransformerEncoder(TransformerEncoder.Config(dim=32, heads=2, depth=1), encoder(8).spec),
        )
