"""data2vec: targets from the whole view, guards, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.losses.data2vec import average_layers, scaled_errors
from multissl.modalities.masks import draw_masks
from multissl.objectives.data2vec import Data2Vec
from multissl.random import RowRandom

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16)
START = Progress(step=0, total=10)


def built(**options: object) -> tuple[Encoders, Data2Vec]:
    net = Encoders(
        {
            "pictures": TransformerEncoder(
                TransformerEncoder.Config(dim=16, depth=3, heads=2, init_std=0), SPEC
            )
        }
    )
    cfg = Data2Vec.Config(**{"top_k": 2, **options})
    return net, Data2Vec(cfg, net, {"pictures": SPEC})


def views(objective: Data2Vec, rows: int = 4) -> Views:
    plan = objective.plans()["pictures"]
    masks = tuple(draw_masks(plan, "block", (4, 4), rows, RowRandom((0, 0), 0, rows, rows)))
    return Views(x=torch.randn(rows, 3, 16, 16), stream="pictures", role="global", masks=masks)


def test_the_student_sees_no_hidden_pixel_and_the_teacher_sees_all() -> None:
    net, objective = built()
    given = views(objective)
    loss = objective(net, Batch([given]), START).total
    hidden = given.masks[0].hidden.view(4, 1, 4, 1, 4, 1).expand(4, 3, 4, 4, 4, 4).reshape(4, 3, 16, 16)
    (before,) = net.encode([given], "replace")
    given.x = torch.where(hidden, -given.x, given.x)
    assert torch.equal(net.encode([given], "replace")[0].tokens, before.tokens)
    assert not torch.equal(objective(net, Batch([given]), START).total, loss)  # only the targets moved


def test_layers_are_normalized_before_their_mean() -> None:
    layers = [torch.randn(2, 5, 8) * 100, torch.randn(2, 5, 8) * 0.01]
    kinds: tuple[tuple[Any, int], ...] = (("instance", 1), ("layer", 2))
    for kind, axis in kinds:
        found = average_layers(layers, kind)
        each = [
            (x - x.mean(axis, True)) / (x.var(axis, correction=0, keepdim=True) + 1e-5).sqrt() for x in layers
        ]
        torch.testing.assert_close(found, (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(average_layers(layers, "none"), (layers[0] + layers[1]) / 2)
    assert not average_layers([torch.randn(2, 1, 8)], "instance").any()


def test_layers_are_normalized_over_what_is_no_padding() -> None:
    layer, valid = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = average_layers([layer], "instance", valid=valid)
    torch.testing.assert_close(found[0], average_layers([layer[:1]], "instance")[0])
    torch.testing.assert_close(found[1, :3], average_layers([layer[1:, :3]], "instance")[0])


def test_the_loss_sums_channels_as_the_official_one() -> None:
    net, objective = built()
    torch.manual_seed(0)
    given = views(objective)
    mean = built(sum_channels=False)[1]
    mean.load_state_dict(objective.state_dict())
    ratio = objective(net, Batch([given]), START).total / mean(net, Batch([given]), START).total
    assert ratio.item() == pytest.approx(16)
    errors = scaled_errors(torch.zeros(1, 16).bfloat16(), torch.ones(1, 16))
    torch.testing.assert_close(errors, torch.full((1, 16), 0.25))


def test_the_student_is_shipped_and_the_teacher_follows_linearly() -> None:
    net, objective = built()
    assert objective.exported(net) is net
    assert objective.teacher.momentum.at(5, 10) == pytest.approx((0.999 + 0.9999) / 2)
    objective(net, Batch([views(objective)]), START).total.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_the_guards_name_what_no_longer_varies() -> None:
    _, objective = built(guard_steps=100)
    dead = [{"stats/target_std": 0.05, "stats/prediction_std": 0.5}]
    late, early = Progress(step=100, total=1000), Progress(step=99, total=1000)
    assert objective.alarm(dead, early) is None
    assert "target_std=0.05 is below 0.1" in (objective.alarm(dead, late) or "")
    assert objective.alarm([{"stats/target_std": 0.5, "stats/prediction_std": 0.5}], late) is None
    assert "prediction_std" in (objective.alarm([{"stats/prediction_std": 0.001}], late) or "")


def test_constant_features_are_seen_in_the_figures() -> None:
    net, objective = built(layer_norm="none")
    with torch.no_grad():
        for p in [*net.parameters(), *objective.teacher.parameters()]:
            p.zero_()
    stats = objective(net, Batch([views(objective)]), START).stats
    assert stats["target_std"] == 0
    assert stats["std"] == 0


def test_bad_options_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"objective\.top_k=9: encoders\.pictures has 3 blocks"):
        built(top_k=9)
    with pytest.raises(ValueError, match=r"objective\.mask_ratio=0"):
        Data2Vec.Config(mask_ratio=0.0)
    with pytest.raises(ValueError, match=r"objective\.beta=-1"):
        Data2Vec.Config(beta=-1.0)
    net, objective = built()
    with pytest.raises(ValueError, match="wants a global view with a mask"):
        objective(net, Batch([views(objective).with_mask(None)]), START)
