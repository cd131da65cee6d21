"""Masked, causal and written language: values by hand, padding, ranks, and that what is predicted is not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder
from multissl.losses.common import mean_of
from multissl.modalities.views import pack_masks
from multissl.objectives.infilling import Infilling
from multissl.objectives.language import MLM, NextToken

SPEC = StreamSpec(kind="sequence", shape=(10,), num_tokens=10, vocab=12, target_dim=12, target_kind="classes")
GRID = StreamSpec(kind="grid", shape=(1, 8, 8), patch=(4, 4), num_tokens=4, target_dim=16)
PROGRESS = Progress(step=0, total=1)


def both(objective: Any, spec: StreamSpec = SPEC, pooling: Any = "mean") -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = TransformerEncoder.Config(dim=16, depth=2, heads=2, pooling=pooling, init_std=0.0)
    encoders = build_encoders({"words": config}, {"words": spec})
    return encoders, objective.build(encoders, {"words": spec})


def masked(valid: torch.Tensor | None = None) -> Views:
    torch.manual_seed(1)
    x = torch.randint(0, 12, (6, 10))
    hidden = torch.zeros(6, 10, dtype=torch.bool)
    hidden[0, 2:5] = hidden[1, 0] = hidden[2, 9] = hidden[3, 4:6] = True
    views = Views(
        x=torch.where(hidden, 2, x), stream="words", role="global", masks=(pack_masks(hidden, 20),), target=x
    )
    views.valid = valid
    return views


def test_mlm_is_the_mean_over_hidden_tokens() -> None:
    encoders, objective = both(MLM.Config())
    views = masked()
    found = objective(encoders, Batch([views]), PROGRESS)
    tokens = encoders.encode([views])[0].tokens
    logits = objective.readout(objective.transform(tokens))
    assert views.mask is not None
    assert views.target is not None
    expected = F.cross_entropy(logits[views.mask.hidden], views.target[views.mask.hidden])
    torch.testing.assert_close(found.total, expected)
    counts = torch.bincount(views.target[views.mask.hidden], minlength=12) / 7
    torch.testing.assert_close(found.stats["constant"], -(counts * counts.clamp(min=1e-9).log()).sum())


def test_places_in_a_long_stretch_are_the_last_there_is() -> None:
    _, objective = both(MLM.Config(boundary_weight=1.0))
    hidden = torch.ones(1, 40, dtype=torch.bool)
    hidden[0, 0] = False
    around = objective.around(torch.randn(1, 40, 16), hidden)
    places = len(objective.place.weight)
    for token in range(1, 40):
        torch.testing.assert_close(around[token, 32:], objective.place.weight[min(token, places) - 1])


def test_boundary_reads_the_neighbors_and_nothing_between() -> None:
    encoders, objective = both(MLM.Config(boundary_weight=1.0))
    mask = masked().mask
    assert mask is not None
    hidden = mask.hidden
    tokens = torch.randn(6, 10, 16)
    around = objective.around(tokens, hidden).unflatten(0, (6, 10))
    torch.testing.assert_close(around[0, 3, :16], tokens[0, 1])
    torch.testing.assert_close(around[0, 3, 16:32], tokens[0, 5])
    torch.testing.assert_close(around[0, 3, 32:], objective.place.weight[1])
    assert not around[1, 0, :16].any()  # no token lies before the first
    assert not around[2, 9, 16:32].any()
    changed = tokens.clone()
    changed[hidden] = 0
    again = objective.around(changed, hidden).unflatten(0, (6, 10))
    assert torch.equal(again[hidden], around[hidden])
    found = objective(encoders, Batch([masked()]), PROGRESS)
    torch.testing.assert_close(found.total, found.terms["masked"] + found.terms["boundary"])


def test_next_token_sees_only_what_comes_before() -> None:
    encoders, objective = both(NextToken.Config())
    views = masked()
    views.masks = ()
    found = objective(encoders, Batch([views]), PROGRESS)
    assert torch.isfinite(found.total)
    before = encoders.encode([views], "causal")[0].tokens
    views.x[:, 6:] = (views.x[:, 6:] + 1) % 12
    after = encoders.encode([views], "causal")[0].tokens
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_padding_is_not_predicted() -> None:
    encoders, objective = both(NextToken.Config())
    valid = torch.arange(10) < torch.tensor([[10], [3], [1], [7], [5], [2]])
    views = masked(valid)
    found = objective(encoders, Batch([views]), PROGRESS).total
    logits = objective.readout(encoders.encode([views], "causal")[0].tokens[:, :-1])
    errors = F.cross_entropy(logits.flatten(0, 1), views.x[:, 1:].flatten(), reduction="none").unflatten(
        0, (6, 9)
    )
    torch.testing.assert_close(found, errors[valid[:, 1:]].mean())
    views.x[~valid] = 0
    torch.testing.assert_close(objective(encoders, Batch([views]), PROGRESS).total, found)


def test_nothing_to_predict_costs_nothing() -> None:
    assert mean_of(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == 0


def test_infilling_writes_from_the_text_and_what_is_written() -> None:
    spec = StreamSpec(
        kind="sequence", shape=(10,), num_tokens=8, vocab=12, target_dim=12, target_tokens=4, target_kind="classes"
    )  # fmt: skip
    encoders, objective = both(Infilling.Config(decoder=Decoder.Config(dim=16, depth=1, heads=2)), spec)
    torch.manual_seed(2)
    views = Views(
        x=torch.randint(0, 12, (3, 8)), stream="words", role="global", target=torch.randint(0, 12, (3, 4))
    )
    found = objective(encoders, Batch([views]), PROGRESS)
    found.total.backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert encoders["words"].tokenizer.embedding.weight.grad.abs().sum() > 0

    kept: list[torch.Tensor] = []
    objective.readout.register_forward_hook(lambda _m, _i, out: kept.append(out.detach()))
    objective(encoders, Batch([views]), PROGRESS)
    assert views.target is not None
    views.target[:, 2] = (views.target[:, 2] + 1) % 12
    objective(encoders, Batch([views]), PROGRESS)
    assert torch.equal(kept[0][:, :3], kept[1][:, :3])  # a symbol is not seen before it is written
    assert not torch.equal(kept[0][:, 3], kept[1][:, 3])


@pytest.mark.parametrize("objective", [MLM.Config(), NextToken.Config(), Infilling.Config()])
def test_a_picture_is_no_sequence(objective: Any) -> None:
    with pytest.raises(ValueError, match="symbols of a sequence, this stream is of kind grid"):
        both(objective, GRID)


def test_limits() -> None:
    with pytest.raises(ValueError, match=r"objective.mask_ratio=1.0"):
        MLM.Config(mask_ratio=1.0)
    with pytest.raises(ValueError, match="boundary_weight"):
        MLM.Config(boundary_weight=-1)
    with pytest.raises(ValueError, match=r"modality.infill"):
        both(Infilling.Config())


def test_errors_are_those_the_loss_is_the_mean_of() -> None:
    valid = torch.ones(6, 10, dtype=torch.bool)
    valid[0, 6:] = False
    for config in (MLM.Config(), NextToken.Config()):
        encoders, objective = both(config)
        views = masked(valid)
        errors = objective.part_errors(encoders, views)
        count = 7 if isinstance(config, MLM.Config) else int(valid[:, 1:].sum())
        torch.testing.assert_close(errors.sum() / count, objective(encoders, Batch([views]), PROGRESS).total)
        assert int((errors > 0).sum()) == count
