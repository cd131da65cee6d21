"""Tables: files, schema, splits, labels, bad input."""

# long file: the behaviours of one adapter share their tables and helpers

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl.configs.tabular import default
from multissl.contract.data import Batch, Unreadable
from multissl.contract.plans import CLEAN, Plans, ViewPlan
from multissl.encoders.mlp import MLPEncoder
from multissl.modalities.tabular import adapter as tabular
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.tabular.tables import holding, read_table
from multissl.random import RowRandom
from multissl.run import train as run
from multissl.run.model import load

COLORS = ("red", "green", "blue")


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def lines(count: int = 60) -> list[str]:
    body = [
        f"{20 + i % 30},{COLORS[i % 3]},{'' if i % 5 == 2 else i * 0.5},{'yes' if i % 2 else 'no'}"
        for i in range(count)
    ]
    return ["age,color,income,target", *body]


def small(tmp_path: Path, given: list[str] | None = None, **options: Any) -> Tabular:
    return Tabular(Tabular.Config(data=write(tmp_path / "rows.csv", given or lines()), **options)).fit()


def drawn(modality: Tabular, plan: ViewPlan, count: int = 8, first: int = 0, total: int = 0) -> Batch:
    """Views of `count` training rows, as rank rows first..first+count of a batch of `total`."""
    data, total = modality.dataset("train"), total or count
    plans: Plans = {"tabular": plan}
    rng = RowRandom((0, 3, 1), first, count, total)
    raw = modality.collate([data[i] for i in range(first, first + count)], plans, rng)
    return modality.views(raw, plans, rng)


def test_the_schema_is_fitted_on_the_training_rows_alone(tmp_path: Path) -> None:
    given = lines()
    given[1] = "1000000,violet,7,no"  # row 0 is for validation
    modality = small(tmp_path, given)
    assert [c.name for c in modality.schema.columns] == ["age", "color", "income", "income is missing"]
    assert modality.schema.cardinalities == (0, 4, 0, 2)
    assert modality.schema.columns[1].levels == ["(unknown)", "blue", "green", "red"]
    assert modality.schema.columns[0].knots[-1] == 49.0
    assert modality.rows().cells[0, 1] == 0  # violet was never seen
    assert modality.rows().cells[0, 0] < 3  # a far value stays at the edge
    assert modality.labels.classes == ["no", "yes"]


def test_missing_numbers_are_flagged_and_stand_in_the_middle(tmp_path: Path) -> None:
    cells = small(tmp_path).rows().cells
    missing = torch.tensor([i % 5 == 2 for i in range(60)])
    assert torch.equal(cells[:, 3] == 1, missing)
    assert not cells[missing, 2].any()


def test_numbers_become_normal_scores_and_come_back(tmp_path: Path) -> None:
    modality = small(tmp_path)
    age, column = modality.rows().cells[:, 0], modality.schema.columns[0]
    train = age[modality.rows().splits["train"]]
    assert abs(train.mean()) < 0.05
    assert 0.85 < train.std() < 1.1
    for row in (5, 13, 28):
        assert float(column.decode(float(age[row]))) == pytest.approx(20 + row % 30, abs=0.6)
    plain = small(tmp_path, scaling="standard")
    assert plain.rows().cells[plain.rows().splits["train"], 0].mean().abs() < 1e-6
    assert plain.schema.columns[0].decode(float(plain.rows().cells[5, 0])) == "25"


def test_columns_that_say_nothing_are_left_out_with_the_reason(tmp_path: Path) -> None:
    given = ["a,same,gone,name,target", *(f"{i},5,?,person {i},{i % 2}" for i in range(40))]
    modality = small(tmp_path, given)
    assert [c.name for c in modality.schema.columns] == ["a"]
    assert modality.schema.left_out == {
        "same": "constant", "gone": "all cells are missing", "name": "a different text in every row",
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"modality\.data=.*no column says anything: same \(constant\), gone \(all"
    ):
        small(tmp_path, [",".join(line.split(",")[1:3]) for line in given])


def test_rare_levels_are_unknown_so_that_unknown_is_trained(tmp_path: Path) -> None:
    given = ["a,b", *(f"{i},{'x' if i % 2 else 'y'}" for i in range(40))]
    given[6] = "5,once"
    modality = small(tmp_path, given, label="")
    assert modality.schema.columns[1].levels == ["(unknown)", "x", "y"]
    assert modality.rows().cells[5, 1] == 0


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "feather", "frame"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    expected = small(tmp_path)
    columns = {
        "age": [20 + i % 30 for i in range(60)],
        "color": [COLORS[i % 3] for i in range(60)],
        "income": [None if i % 5 == 2 else i * 0.5 for i in range(60)],
        "target": ["yes" if i % 2 else "no" for i in range(60)],
    }
    path = tmp_path / f"rows.{kind}"
    if kind == "tsv":
        path.write_text((tmp_path / "rows.csv").read_text().replace(",", "\t"))
    elif kind in ("parquet", "feather"):
        arrow = pytest.importorskip("pyarrow")
        module: Any = pytest.importorskip(f"pyarrow.{kind}")
        getattr(module, f"write_{'table' if kind == 'parquet' else 'feather'}")(arrow.table(columns), path)
    data = str(path)
    if kind == "frame":
        pandas = pytest.importorskip("pandas", reason="the extra `tabular` is not installed")
        data = holding(pandas.DataFrame(columns))
    modality = Tabular(Tabular.Config(data=data)).fit()
    assert modality.schema == expected.schema
    assert torch.equal(modality.rows().cells, expected.rows().cells)
    assert modality.rows().classes.tolist() == expected.rows().classes.tolist()


def test_a_frame_of_another_process_is_refused() -> None:
    with pytest.raises(ValueError, match=r"modality\.data='memory:DataFrame#77': a table in the memory"):
        read_table("memory:DataFrame#77")


def test_splits_a_test_file_and_groups(tmp_path: Path) -> None:
    train, test = tmp_path / "my-train.csv", tmp_path / "my-test.csv"
    write(train, lines(50))
    write(test, ["color,age,target,income", "red,30,yes,1", "blue,31,no,2"])
    modality = Tabular(Tabular.Config(data=str(train))).fit()
    assert {s: len(rows) for s, rows in modality.rows().splits.items()} == {"train": 45, "val": 5, "test": 2}
    assert [modality.dataset("test")[i].label for i in range(2)] == [1, 0]
    write(test, ["color,target,income", "red,yes,1"])
    with pytest.raises(
        ValueError, match=r"modality\.data=.*for test: column 'age' is missing; it has color, target, income"
    ):
        Tabular(Tabular.Config(data=str(train))).fit()
    given = ["a,who,target", *(f"{i},p{i // 4},{i % 2}" for i in range(80))]
    modality = small(tmp_path, given, group="who")
    owners = [{modality.rows().groups[r] for r in rows} for rows in modality.rows().splits.values()]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    (views,) = drawn(modality, CLEAN)
    assert views.group_id is not None
    assert views.group_id.tolist() == [modality.rows().groups[r] for r in modality.rows().splits["train"][:8]]


def test_a_quantity_as_label_is_five_parts_and_its_numbers(tmp_path: Path) -> None:
    given = ["a,b,price", *(f"{i},{i % 3},{i * 1.5}" for i in range(100))]
    modality = small(tmp_path, given, label="price")
    counts = np.bincount(modality.rows().classes[modality.rows().splits["train"]])
    assert len(counts) == 5
    assert counts.min() >= 14
    targets = modality.targets("val")
    assert targets is not None
    assert targets.tolist() == [i * 1.5 for i in range(0, 100, 10)]
    assert small(tmp_path, lines()).targets("val") is None


# --- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a,b,a", "1,2,3"], r"modality\.data=.*two columns are called 'a': rename one"),
        (["a,,c", "1,2,3"], r"modality\.data=.*column 2 has no name"),
        (["a,b,c"], r"modality\.data=.*holds no rows below its header"),
    ],
)
def test_a_bad_header_is_one_clear_line(given: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small(tmp_path, given)
    assert "\n" not in str(caught.value)


def test_wrong_names_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"modality\.data='nowhere\.csv': no such file"):
        Tabular(Tabular.Config(data="nowhere.csv")).fit()
    (tmp_path / "x.doc").write_text("")
    with pytest.raises(ValueError, match=r"a \.doc file is no table"):
        Tabular(Tabular.Config(data=str(tmp_path / "x.doc"))).fit()
    with pytest.raises(ValueError, match=r"modality\.ignore names column 'agee'; did you mean age"):
        small(tmp_path, ignore=("agee",))
    with pytest.raises(ValueError, match=r"modality\.corruption\.1=1\.5: want a share"):
        Tabular.Config(corruption=(0.0, 1.5))
    with pytest.raises(ValueError, match=r"modality\.rare=0: want 1 or more"):
        Tabular.Config(rare=0)
    with pytest.raises(ValueError, match=r"modality\.corruption is empty"):
        Tabular.Config(corruption=())


def test_a_label_that_is_not_there_is_an_error_if_named_and_told_if_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"modality\.label names column 'colur'; did you mean color"):
        small(tmp_path, label="colur")
    said = said_by(monkeypatch, "warning")
    # an income in the last column would be the label
    unlabeled = [line.rsplit(",", 1)[0].replace("income", "weight") for line in lines()]
    modality = small(tmp_path, unlabeled)
    assert "no column is called 'target', so all are read" in said[0]
    assert (modality.rows().classes == -1).all()
    small(tmp_path, unlabeled, label="")
    assert sum("no column is called" in text for text in said) == 1


def test_bad_rows_are_skipped_and_say_why(tmp_path: Path) -> None:
    given = lines(200)
    given[3] = "20,red"
    given[4] = "x" * 1_100_000 + ",red,1,yes"
    given[5] = "inf,red,1,yes"
    given[6] = "none at all,red,1,yes"
    path = tmp_path / "rows.csv"
    path.write_bytes("\n".join(given).encode().replace(b"28,blue,4.0", b"28,bl\xffe,4.0"))
    modality = Tabular(Tabular.Config(data=str(path))).fit()
    data = modality.dataset("train")
    found = {}
    for i in range(len(data)):
        try:
            modality.collate([data[i]], {"tabular": CLEAN}, RowRandom((0,), 0, 1, 1))
        except Unreadable as bad:
            found[int(modality.rows().splits["train"][bad.index])] = bad.reason
    assert found == {
        2: "line 4 of rows.csv has 2 cells, the header names 4",
        3: "line 5 of rows.csv: field larger than field limit (1000000)",
        4: "row 4: age='inf' is no finite number",
        5: "row 5: age='none at all' is no finite number",
        8: "line 10 of rows.csv is no UTF-8 text",
    }
    assert modality.bank().isfinite().all()
    assert len(modality.bank()) == len(modality.rows().splits["train"]) - 5


def test_the_schema_is_enforced_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = small(tmp_path)
    state = json.loads(json.dumps(trained.state()))
    new = Tabular(Tabular.Config(data=write(tmp_path / "new.csv", lines(30)[:1] + lines(30)[20:])))
    new.restore(state)
    assert new.schema == trained.schema
    assert torch.equal(new.rows().cells, trained.rows().cells[19:30])  # the same rows, the same numbers
    assert new.streams() == trained.streams()

    strange = [line.replace("green", "mauve") for line in lines(30)]
    other = Tabular(Tabular.Config(data=write(tmp_path / "new.csv", strange)))
    said: list[str] = []
    monkeypatch.setattr(tabular.log, "warning", lambda text, *args: said.append(text % args))
    other.restore(state)
    assert not said, "the table is read when it is asked for"
    other.dataset("val")
    assert said == ["modality.data: column 'color' has 10 cells of a level that training rarely or never saw"]
    assert (other.rows().cells[1::3, 1] == 0).all()

    fewer = ["agee,income,target", *(f"{i},{i},yes" for i in range(30))]
    other = Tabular(Tabular.Config(data=write(tmp_path / "new.csv", fewer)))
    other.restore(state)
    with pytest.raises(ValueError, match=r"column 'age' of the training data is missing; did you mean agee"):
        other.dataset("val")
    words = ["age,color,income,target", *(f"old{i % 2},red,{i},yes" for i in range(30))]
    other = Tabular(Tabular.Config(data=write(tmp_path / "new.csv", words)))
    other.restore(state)
    with pytest.raises(
        ValueError, match=r"column 'age' held numbers in the training data, here it holds 'old0'"
    ):
        other.dataset("val")


def test_rows_of_ones_own_are_read_by_the_schema(tmp_path: Path) -> None:
    from multissl.contract.data import Sample
    from multissl.inference import clean_views

    modality = small(tmp_path)
    row = {"age": 25, "color": "blue", "income": 2.5}
    (found,) = clean_views(modality, [Sample(row, 0)], "tabular").x
    torch.testing.assert_close(found, modality.rows().cells[5])
    other = {"income": 2.5, "color": "green", "age": 31}
    more = [Sample(r, i) for i, r in enumerate([row, other, {**row, "more": 1}, {**row, "age": 26}])]
    together = clean_views(modality, more, "tabular").x
    alone = torch.cat([clean_views(modality, [s], "tabular").x for s in more])
    torch.testing.assert_close(together, alone, atol=0, rtol=0)
    levels = [
        Sample({"age": 25, "color": c, "income": 2.5}, i) for i, c in enumerate([5.0, "blue", None, True])
    ]
    found = clean_views(modality, levels, "tabular").x
    torch.testing.assert_close(found, torch.cat([clean_views(modality, [s], "tabular").x for s in levels]))
    for wrong in ({**row, "age": "old"}, {"age": 25}):
        with pytest.raises(Unreadable) as caught:
            clean_views(modality, [*more, Sample(wrong, 7)], "tabular")
        assert caught.value.index == 7
    for wrong, message in (
        ({"age": 25}, "'color' of the training data is missing"),
        (["25"], "want a mapping"),
    ):
        with pytest.raises(Unreadable, match=message):
            clean_views(modality, [Sample(wrong, 0)], "tabular")


def said_by(monkeypatch: pytest.MonkeyPatch, level: str) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(tabular.log, level, lambda text, *args: said.append(text % args))
    return said


def test_a_column_without_any_cell_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = said_by(monkeypatch, "warning")
    small(tmp_path, ["a,gone,target", *(f"{i},NaN,{i % 2}" for i in range(40))])
    assert said == ["modality.data: column 'gone' is left out: all cells are missing"]


def test_cells_that_go_missing_after_training_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small(tmp_path).state()
    gone = ["age,color,income,target", *(f"{i},,,yes" if i % 2 else f",red,{i},yes" for i in range(30))]
    new = Tabular(Tabular.Config(data=write(tmp_path / "new.csv", gone)))
    said = said_by(monkeypatch, "warning")
    new.restore(state)
    new.dataset("val")
    assert said == [
        "modality.data: column 'age' has 15 missing cells, and training missed none: they become the middle",
        "modality.data: column 'color' has 15 missing cells, and training missed none: unknown",
    ]  # the missing incomes have a flag
    assert not new.rows().cells[::2, 0].any()
    assert not new.rows().cells[1::2, 1].any()
    assert torch.equal(new.rows().cells[:, 3] == 1, torch.arange(30) % 2 == 1)


def test_nan_is_missing_in_cells_and_unknown_in_labels() -> None:
    a = np.arange(60.0)
    price = a * 2
    a[5::10], price[7::10] = np.nan, np.nan
    modality = Tabular(Tabular.Config(data=holding({"a": a, "price": price}), label="price")).fit()
    assert [c.name for c in modality.schema.columns] == ["a", "a is missing"]
    assert modality.rows().cells.isfinite().all()
    assert modality.rows().cells[5::10, 1].all()
    assert modality.rows().classes[7::10].tolist() == [-1] * 6
    targets = modality.targets("train")
    assert targets is not None
    assert int(targets.isnan().sum()) == 6


def test_the_demo_can_be_read_twice() -> None:
    first, second = Tabular(Tabular.Config()).fit(), Tabular(Tabular.Config()).fit()
    assert (second.rows().classes >= 0).all()
    assert torch.equal(first.rows().cells, second.rows().cells)


def test_a_byte_that_is_not_utf8_is_told_from_a_written_replacement_character(tmp_path: Path) -> None:
    drinks = ("tea", "caf\ufffd")
    body = [f"{i},{drinks[i % 2]},{i % 2}" for i in range(40)]
    assert not small(tmp_path, ["a,drink,target", *body]).rows().broken
    (tmp_path / "rows.csv").write_bytes(b"a,dr\xffnk,target\n1,2,3\n")
    with pytest.raises(ValueError, match="the header is not UTF-8: save the file as UTF-8"):
        Tabular(Tabular.Config(data=str(tmp_path / "rows.csv"))).fit()


def test_a_frame_trains_from_python(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="the extra `tabular` is not installed")
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    columns = {
        "a": a,
        "b": a + 0.1 * rng.normal(size=200),
        "c": np.where(a > 0, "up", "down"),
        "target": a > 1,
    }
    recipe = default().replace(
        modality=Tabular.Config(data=holding(pandas.DataFrame(columns))),
        encoders={"tabular": MLPEncoder.Config(dims=(16,))},
        steps=3, batch_size=16, log_every=1,
    )  # fmt: skip
    result = run.train(recipe, tmp_path / "run")
    assert result.metrics["knn/top1"] > 50
    row = {"a": 0.3, "b": 0.2, "c": "up"}
    assert load(tmp_path / "run").encode([row, row]).shape == (2, 16)


def test_a_run_is_read_where_its_table_is_not(tmp_path: Path) -> None:
    recipe = default()
    recipe.modality = Tabular.Config(data=write(tmp_path / "rows.csv", lines(200)), mask_group=4)
    recipe = recipe.replace(steps=2, batch_size=16, evals={}, loggers={})
    recipe.data = recipe.data.replace(workers=0)
    recipe.encoders = {"tabular": MLPEncoder.Config()}
    run.train(recipe, tmp_path / "run")
    rows = [{"age": 25, "color": "blue", "income": 2.5}, {"age": 40, "color": "red", "income": 0.5}]
    expected = load(tmp_path / "run").encode(rows)
    (tmp_path / "rows.csv").unlink()
    model = load(tmp_path / "run")
    assert torch.equal(torch.as_tensor(model.encode(rows)), torch.as_tensor(expected))
    with pytest.raises(ValueError, match=r"modality\.data=.*rows\.csv'"):
        model.modality.dataset("val")
