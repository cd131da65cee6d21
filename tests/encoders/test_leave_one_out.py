"""The perceptron that reads each column from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from multissl.configs import tabular
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.leave_one_out import LeaveOneOutEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.vime import VIME
from multissl.run import train as run
from multissl.run.folder import RunFolder

LEVELS = (0, 3, 0, 4, 0)


def spec(levels: tuple[int, ...] = LEVELS) -> StreamSpec:
    count = len(levels)
    return StreamSpec(
        kind="columns",
        shape=(count,),
        num_tokens=count,
        cardinalities=levels,
        target_dim=1,
        target_kind="cells",
    )


def made(**options: Any) -> LeaveOneOutEncoder:
    torch.manual_seed(0)
    return LeaveOneOutEncoder(LeaveOneOutEncoder.Config(dims=(16, 12), **options), spec())


def rows(count: int = 6) -> torch.Tensor:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 3] = torch.arange(count) % 3, torch.arange(count) % 4
    return x


def tokens(encoder: LeaveOneOutEncoder, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    return encoder([Views(x=x, stream="t", role="clean", valid=valid)])[0].tokens


@pytest.mark.parametrize("column", range(5))
def test_a_token_sees_every_cell_but_its_own(column: int) -> None:
    encoder, x = made(), rows()
    other = x.clone()
    other[:, column] = (x[:, column] + 1) % LEVELS[column] if LEVELS[column] else x[:, column] + 1
    before, after = tokens(encoder, x), tokens(encoder, other)
    assert torch.equal(before[:, column], after[:, column])
    rest = [c for c in range(5) if c != column]
    assert ((before - after)[:, rest].abs().amax(2) > 1e-4).all()


def test_a_cell_that_a_view_leaves_out_is_seen_by_no_token() -> None:
    encoder, x = made(), rows()
    valid = torch.ones(6, 5, dtype=torch.bool)
    valid[:, 2] = False
    other = x.clone()
    other[:, 2] += 1
    assert torch.equal(tokens(encoder, x, valid), tokens(encoder, other, valid))
    assert not torch.equal(tokens(encoder, x, valid), tokens(encoder, x))


def test_the_pooled_feature_is_the_mean_and_every_parameter_learns() -> None:
    encoder = made()
    encoders = Encoders({"t": encoder})
    (features,) = encoder([Views(x=rows(), stream="t", role="clean")])
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))
    assert features.pooled.shape == (6, encoder.dim)
    objective = VIME(VIME.Config(corrupt=0.0, mask_weight=0.0, reads="tokens"), encoders, {"t": spec()})
    views = Views(x=rows(), target=rows(), stream="t", role="global")
    objective(encoders, Batch([views]), Progress(step=0, total=1)).total.backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("levels", [(0, 0, 0), (2, 3)])
def test_columns_of_one_kind(levels: tuple[int, ...]) -> None:
    encoder = LeaveOneOutEncoder(LeaveOneOutEncoder.Config(dims=(8,)), spec(levels))
    assert tokens(encoder, torch.ones(4, len(levels))).shape == (4, len(levels), 8)


def test_it_learns_what_columns_say_about_each_other(tmp_path: Path) -> None:
    """b is the square of a, and d tells the sign of a: neither can be told without the other columns."""
    body = [
        f"{a},{a * a},{i % 3},{int(a > 0)},{i % 2}" for i in range(400) for a in [(i * 37 % 101 - 50) / 10]
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,d,target", *body]))
    modality = Tabular.Config(data=str(tmp_path / "rows.csv"), categorical=("d",), corruption=(0.0,))
    recipe = tabular.few_labels().replace(
        modality=modality,
        steps=150,
        batch_size=64,
        evals={},
        log_every=10,
        optim=AdamW.Config(lr=4e-3, warmup=10),
    )
    run.train(recipe, tmp_path / "run")
    losses = [
        x["stats/cells_of_constant"]
        for x in RunFolder(tmp_path / "run").read_metrics()
        if x["kind"] == "train"
    ]
    assert losses[0] > 0.8
    assert losses[-1] < 0.45  # of 4 columns c alone cannot be told


def test_what_it_cannot_read_is_refused() -> None:
    grid = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=4, patch=(4, 4))
    with pytest.raises(ValueError, match=r"reads two columns or more, this stream is a grid"):
        LeaveOneOutEncoder(LeaveOneOutEncoder.Config(), grid)
    with pytest.raises(ValueError, match=r"two columns or more, this stream is a columns of shape \(1,\)"):
        LeaveOneOutEncoder(LeaveOneOutEncoder.Config(), spec((0,)))
    for options, message in (({"dims": ()}, r"dims=\(\): want one or more widths"),):
        with pytest.raises(ValueError, match=message):
            LeaveOneOutEncoder.Config(**options)
