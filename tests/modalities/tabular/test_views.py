"""Views of table rows: corruptions, subsets, masks, effective rates, the figure and the baseline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.plans import CLEAN, ViewPlan
from multissl.evaluators.knn import knn_accuracy
from multissl.inference import labeled_split
from multissl.modalities.tabular import views as tabular_views
from multissl.modalities.tabular.adapter import Tabular
from multissl.random import RowRandom
from tests.modalities.tabular.test_adapter import drawn, said_by, small, write


@pytest.mark.parametrize("by", ["marginal", "permute", "donor", "subset", "hide"])
def test_views_are_the_same_on_any_number_of_ranks(by: Any) -> None:
    modality = Tabular(Tabular.Config(corrupt_by=by, corruption=(0.2, 0.6), subset_noise=0.2)).fit()
    for plan in (
        ViewPlan(num_clean=1, num_global=2, num_local=2, mask_ratio=(0.1, 0.5), mask_share=0.5),
        ViewPlan(num_global=1, mask_ratio=(0.3, 0.3), corrupt=True, target=True),
    ):
        whole = drawn(modality, plan, 8)
        parts = [drawn(modality, plan, 4, first, 8) for first in (0, 4)]
        for i, views in enumerate(whole):
            for name in ("x", "target", "valid"):
                full = getattr(views, name)
                if full is None:
                    continue
                halves = [getattr(p[i], name).unflatten(0, (views.num_views, -1)) for p in parts]
                assert torch.equal(full.unflatten(0, (views.num_views, -1)), torch.cat(halves, 1))
            if views.mask is not None:
                halves = [p[i].masks[0].hidden.unflatten(0, (views.num_views, -1)) for p in parts]
                assert torch.equal(
                    views.mask.hidden.unflatten(0, (views.num_views, -1)), torch.cat(halves, 1)
                )
        again = drawn(modality, plan, 8)
        assert all(torch.equal(a.x, b.x) for a, b in zip(whole, again, strict=True))


def one(modality: Tabular, by: str, share: float = 0.5, count: int = 64) -> tuple[Tensor, Tensor]:
    """Rows of a table of all-different cells, and what `swap` makes of them."""
    rows = modality.bank()[:count]
    rng = RowRandom((1, 2), 0, count, count)
    return rows, tabular_views.swap(rows, modality.bank(), share, by, rng, 8)


@pytest.fixture
def distinct(tmp_path: Path) -> Tabular:
    rng = np.random.default_rng(0)
    body = [",".join(f"{v:.6f}" for v in rng.normal(size=10)) for _ in range(200)]
    return small(tmp_path, [",".join(f"c{i}" for i in range(10)), *body], label="", scaling="standard")


def test_corruptions_are_what_their_names_say(distinct: Tabular) -> None:
    bank = distinct.bank()
    for by in ("marginal", "permute", "donor"):
        rows, made = one(distinct, by)
        changed = rows != made
        columns = [set(c.tolist()) for c in bank.T]
        assert all(v in columns[c] for r, c in changed.nonzero().tolist() for v in [made[r, c].item()])
        if by == "permute":
            assert ((changed.sum(1) <= 5) & (changed.sum(1) >= 1)).all()
            for group in range(8):  # a cell comes from the rows of its group
                of = rows[8 * group : 8 * group + 8]
                assert all(
                    (made[r, c] == of[:, c]).any() for r in range(8 * group, 8 * group + 8) for c in range(10)
                )
        else:
            assert changed.sum(1).float().mean() > 4.9
        donors = [
            {int((bank[:, c] == made[r, c]).nonzero()[0]) for c in changed[r].nonzero().flatten().tolist()}
            for r in range(64)
        ]
        if by == "donor":
            assert all(len(d) <= 1 for d in donors)
        if by == "marginal":
            assert np.mean([len(d) for d in donors]) > 4.5


def test_permuting_needs_a_group(distinct: Tabular) -> None:
    distinct.cfg = distinct.cfg.replace(corrupt_by="permute", mask_group=1)
    with pytest.raises(ValueError, match=r"modality\.corrupt_by=permute shuffles inside groups"):
        drawn(distinct, ViewPlan(num_global=2), 8)


def test_subsets_overlap_cover_all_columns_and_leave_the_rest_out(distinct: Tabular) -> None:
    distinct.cfg = distinct.cfg.replace(corrupt_by="subset", corruption=(0.6,))
    (views,) = drawn(distinct, ViewPlan(num_global=4, target=True), 8)
    assert views.valid is not None
    assert views.target is not None
    kept = views.valid.unflatten(0, (4, 8))
    assert (kept.sum(2) == 4).all()
    assert (kept == kept[:, :1]).all()
    assert kept[:, 0].any(0).all()
    assert (kept[0, 0] & kept[1, 0]).any()
    assert torch.equal(views.x[views.valid], views.target[views.valid])
    assert not views.x[~views.valid].any()


def test_hidden_cells_are_left_out_in_numbers_from_none_to_the_share(distinct: Tabular) -> None:
    distinct.cfg = distinct.cfg.replace(corrupt_by="hide", corruption=(0.6, 0.2))
    (views,) = drawn(distinct, ViewPlan(num_global=2, target=True), 128)
    assert views.valid is not None
    assert views.target is not None
    assert torch.equal(views.x, views.target * views.valid)
    gone = (~views.valid).sum(1).unflatten(0, (2, 128))
    assert set(gone[0].tolist()) == set(range(7))  # 0 to 6 of 10 columns
    assert set(gone[1].tolist()) == {0, 1, 2}
    assert (~views.valid[:128]).any(0).all()  # any column
    with pytest.raises(ValueError, match=r"modality\.corruption=1 leaves a view without columns"):
        distinct.cfg.replace(corruption=(1.0,))


def test_corrupted_views_tell_what_really_changed(distinct: Tabular, tmp_path: Path) -> None:
    (views,) = drawn(distinct, ViewPlan(num_global=1, mask_ratio=(0.3, 0.3), corrupt=True, target=True), 8)
    assert views.mask is not None
    assert views.target is not None
    assert torch.equal(views.mask.hidden, views.x != views.target)
    assert len(views.mask.index) == 8 * 3
    table = write(tmp_path / "two.csv", ["a,b,c", *(f"{i % 2},{i % 3 % 2},{i}" for i in range(90))])
    few = Tabular(Tabular.Config(data=table, label="")).fit()
    (views,) = drawn(few, ViewPlan(num_global=4, mask_ratio=(0.7, 0.7), corrupt=True, target=True), 32)
    assert views.mask is not None
    assert torch.equal(views.mask.hidden, views.x != views.target)
    assert views.mask.hidden[:, 0].sum() < 0.6 * 128 * 0.7  # half of the drawn cells keep their value


def test_masks_take_the_range_and_the_share_of_the_plan() -> None:
    modality = Tabular(Tabular.Config()).fit()
    (views,) = drawn(modality, ViewPlan(num_global=2, mask_ratio=(0.1, 0.6), mask_share=0.5), 16)
    assert views.mask is not None
    counts = views.mask.hidden.sum(1)
    columns = views.x.shape[1]
    assert (counts > 0).sum() == 16
    assert counts[counts > 0].min() <= 0.25 * columns
    assert counts.max() >= 0.4 * columns


def test_the_effective_rate_is_that_of_the_views_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = said_by(monkeypatch, "info")
    modality = small(
        tmp_path, ["a,b,c,d", *(f"{i % 2},{int(i % 10 == 3)},{i},{i % 3}" for i in range(400))], label=""
    )
    assert said == [
        "modality.data: of the cells drawn anew, these change by column: a 50%, b 22%, c 100%, d 67%"
    ]
    expected = modality.effective_rates(0.5)
    assert expected["a"] == pytest.approx(0.25, abs=0.01)
    assert expected["b"] < 0.12
    rows = modality.bank().repeat(30, 1)
    made = tabular_views.swap(
        rows, modality.bank(), 0.5, "marginal", RowRandom((0,), 0, len(rows), len(rows)), 1
    )
    for place, name in enumerate(expected):
        assert (rows != made)[:, place].float().mean() == pytest.approx(expected[name], abs=0.02)


def test_the_figure_shows_cells_as_text(tmp_path: Path) -> None:
    modality = small(tmp_path)
    plan = ViewPlan(num_clean=1, num_global=1, mask_ratio=(0.5, 0.5), corrupt=True, target=True)
    (figure,) = modality.figures(drawn(modality, plan))
    assert figure.image.dtype == np.uint8
    assert figure.image.shape[2] == 3
    assert (figure.image == (250, 205, 190)).all(2).any()  # changed cells are red
    assert not (figure.image == (90, 90, 90)).all(2).any()  # and not called hidden as well
    (views,) = (v for v in drawn(modality, plan) if v.role == "global")
    share = (views.x != views.target).float().mean().item()
    assert f"{share:.0%} of the cells seen differ from their row's" in figure.caption
    (masked,) = modality.figures(drawn(modality, ViewPlan(num_global=1, mask_ratio=(0.5, 0.5))))
    assert (masked.image == (90, 90, 90)).all(2).any()
    assert not (masked.image == (250, 205, 190)).all(2).any()
    assert "differ from their row's" not in masked.caption
    assert modality.figures(Batch()) == []


def test_the_figure_marks_the_cells_that_differ_and_no_others(tmp_path: Path) -> None:
    modality = small(tmp_path)
    (views,) = drawn(modality, ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), corrupt=True, target=True))
    assert views.target is not None
    (figure,) = modality.figures(Batch([views]))
    for row in range(6):
        for place in range(len(modality.schema.columns)):
            corner = figure.image[(2 + 2 * row) * 22 + 1, 72 + 130 * place + 1]  # of the view's cell
            differs = bool(views.x[row, place] != views.target[row, place])
            assert corner.tolist() == ([250, 205, 190] if differs else [255, 255, 255])


def test_the_baseline_is_one_hot(tmp_path: Path) -> None:
    modality = small(tmp_path)
    (views,) = drawn(modality, CLEAN)
    found = modality.baselines()["raw"](views)
    assert found.shape == (8, 1 + 4 + 1 + 2)
    assert torch.equal(found[:, 1:5].argmax(1).float(), views.x[:, 1])


def test_raw_rows_of_the_demo_are_poor() -> None:
    modality = Tabular(Tabular.Config()).fit()
    bank, labels = labeled_split(modality.baselines()["raw"], modality, "train", 3000)
    queries, truth = labeled_split(modality.baselines()["raw"], modality, "val")
    assert 45 < knn_accuracy(bank, labels, queries, truth)[20] < 66
    assert len(set(labels.tolist())) == 8
    assert math.isfinite(float(modality.rows().cells.sum()))
