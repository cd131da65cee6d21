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
from multissl.losses.data2vec import average_layers, row_errors, scaled_errors
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


def test_under_several_masks_the_teacher_looks_once_and_every_mask_counts() -> None:
    net, objective = built(masks=3, beta=0.0, final_norm="layer", row_weight=0.5)
    for parameter in objective.teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    given = views(objective)
    assert len({tuple(m.hidden.flatten().tolist()) for m in given.masks}) == 3
    calls = []
    teacher = objective.teacher.encoders["pictures"]
    teacher.register_forward_hook(lambda *_: calls.append(1))
    losses = objective(net, Batch([given]), START)
    assert len(calls) == 1
    (whole,) = objective.teacher.encoders.encode([given.with_mask(None)], "none", 2)
    targets = average_layers(whole.inner, "instance", "layer")
    errors, rows = [], []
    for mask in given.masks:
        (features,) = net.encode([given.with_mask(mask)], "replace")
        for r in range(4):
            pred = objective.head(features.tokens[r, mask.hidden[r]])
            errors += [*(pred - targets[r, mask.hidden[r]]).square().sum(-1)]
            rows.append((features.pooled[r] - targets[r].mean(0)).square().sum())
    expected = [torch.stack(each).mean().detach() / 4 for each in (errors, rows)]  # by the root of the width
    for name, value in zip(("regress", "row"), expected, strict=True):
        torch.testing.assert_close(losses.terms[name], value)
    torch.testing.assert_close(losses.total.detach(), expected[0] + 0.5 * expected[1])


def test_the_error_of_a_row_is_that_of_its_real_tokens() -> None:
    target, pred = torch.randn(2, 5, 8), torch.randn(2, 8)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = row_errors(pred, target, valid)
    torch.testing.assert_close(found[0], row_errors(pred[:1], target[:1])[0])
    torch.testing.assert_close(found[1], row_errors(pred[1:], target[1:, :3])[0])


def test_as_many_masks_as_the_plan_asks_for() -> None:
    net, objective = built(masks=2)
    given = views(objective)
    given.masks = given.masks[:1]
    with pytest.raises(ValueError, match=r"for each of objective\.masks=2, got 1"):
        objective(net, Batch([given]), START)
    with pytest.raises(ValueError, match=r"objective\.masks=0: want 1 or more"):
        Data2Vec.Config(masks=0)
    with pytest.raises(ValueError, match=r"objective\.row_weight=-1: want 0 or more"):
        Data2Vec.Config(row_weight=-1)
