"""The cut of the golden cases: what is kept, what the licences keep out, and that it can be made again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import golden
from tests.golden import CASES, FOLDER, cases, select_cases
from tests.golden.select_cases import BRANCHES, LARGEST, LICENCES, OTHERS, OWN, READ, SMALL, main

LIMIT = SMALL // 4
"""Floats of a variant that is kept with all its cases."""


def make_folder(
    folder: Path, variants: dict[str, str], cases: list[tuple[str, str, dict[str, Any], int]]
) -> Path:
    """Write a folder of one family: the source of each variant; a variant, id, options and floats for each case."""
    tensors, entries = {}, []
    for variant, name, hyper, floats in cases:
        entry = {"shape": [floats], "dtype": "float32"}
        roles = {"in": {"x": entry}, "out": {"loss_topk": entry, "loss": entry}}
        entries.append({"id": name, "variant": variant, "hyper": hyper, "tensors": roles})
        for role, names in roles.items():
            tensors |= {
                f"{name}/{role}/{n}": torch.full((floats,), float(len(tensors) + i))
                for i, n in enumerate(names)
            }
    folder.mkdir()
    save_file(tensors, folder / "family.safetensors")
    about = {v: {"source": [{"kind": "git", "name": s, "commit": "0"}]} for v, s in variants.items()}
    family = {"file": "family.safetensors", "variants": about, "cases": entries}
    (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "generated_with": {}, "families": {"family": family}})
    )
    return folder


def read_cut(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest of a cut and the bytes of all its files."""
    return json.loads((folder / "manifest.json").read_text()), {
        p.name: p.read_bytes() for p in folder.iterdir()
    }


def read_ids(folder: Path) -> list[str]:
    return [c["id"] for c in read_cut(folder)[0]["families"]["family"]["cases"]]


def test_a_large_variant_keeps_the_fewest_bytes_with_every_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_cases, "READ", {"family": "branching single small"})
    monkeypatch.setitem(BRANCHES, "branching", lambda h: (h["norm"], h["tokens"] > 4))
    options = [(True, 2), (False, 9), (True, 9), (False, 2)]
    big = [
        ("branching", f"b{i}", {"norm": norm, "tokens": tokens}, LIMIT + [30, 40, 10, 20][i])
        for i, (norm, tokens) in enumerate(options)
    ]
    single = [("single", f"one{i}", {}, LIMIT + [7, 3, 5][i]) for i in range(3)]
    small = [("small", f"small{i}", {}, 10 + i) for i in range(3)]
    whole = make_folder(
        tmp_path / "whole",
        dict.fromkeys(["branching", "single", "small"], "lightly"),
        [*big, *single, *small],
    )
    main(whole, tmp_path / "cut")
    assert read_ids(tmp_path / "cut") == ["b2", "b3", "one1", "small0", "small1", "small2"]


def test_licences_leave_out_variants_and_tensors_and_the_notice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_cases, "READ", {"family": "free closed koleo"})
    sources = {"free": "lightly", "closed": "facebookresearch/mae", "koleo": "facebookresearch/dinov3"}
    entries: list[tuple[str, str, dict[str, Any], int]] = [(v, f"{v}__s0", {}, 3) for v in sources]
    main(make_folder(tmp_path / "whole", sources, entries), tmp_path / "cut")
    manifest, files = read_cut(tmp_path / "cut")
    assert read_ids(tmp_path / "cut") == ["free__s0", "koleo__s0"]
    assert manifest["left_out"] == {"family": {"closed": ["facebookresearch/mae"]}}
    assert manifest["families"]["family"]["cases"][1]["left_out"] == ["out/loss_topk"]
    stored = load_file(tmp_path / "cut" / "family.safetensors")
    assert [k for k in stored if k.startswith("koleo")] == ["koleo__s0/in/x", "koleo__s0/out/loss"]
    text = files["NOTICE.md"].decode()
    assert "| lightly | 0 | MIT | family/free |" in text
    assert "- family/closed: facebookresearch/mae" in text


def test_the_same_folder_gives_the_same_bytes_in_files_of_a_limited_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_cases, "READ", {"family": "large"})
    whole = make_folder(tmp_path / "whole", {"large": "lightly"}, [("large", "one", {}, LARGEST // 9)])
    for name in ("first", "second"):
        main(whole, tmp_path / name)
    manifest, files = read_cut(tmp_path / "first")
    assert read_cut(tmp_path / "second")[1] == files
    assert manifest["families"]["family"]["files"] == ["family_1.safetensors", "family_2.safetensors"]
    assert all(len(data) <= LARGEST for data in files.values())
    parts = [load_file(tmp_path / "first" / f"family_{i}.safetensors") for i in (1, 2)]
    assert {**parts[0], **parts[1]}.keys() == load_file(whole / "family.safetensors").keys()


def test_what_lies_here_has_a_licence_and_a_limited_size() -> None:
    manifest, files = read_cut(CASES)
    for family, names in READ.items():
        kept, absent = (
            set(part)
            for part in (manifest["families"][family]["variants"], manifest["left_out"].get(family, {}))
        )
        assert kept | absent == set(names.split())
        assert not kept & absent
        for variant, about in manifest["families"][family]["variants"].items():
            for source in about["source"]:
                allowed = source["kind"] == OWN or source["name"] in LICENCES
                assert allowed or source["name"] in OTHERS[variant], f"{variant}: {source['name']}"
                assert source["name"] == "own" or source["name"] in files["NOTICE.md"].decode()
    assert max(map(len, files.values())) <= LARGEST


@pytest.mark.skipif(FOLDER == CASES, reason="needs the whole folder of golden cases: set MULTISSL_GOLDEN")
def test_what_lies_here_is_the_cut_of_the_whole_folder(tmp_path: Path) -> None:
    main(FOLDER, tmp_path / "cut")
    assert read_cut(tmp_path / "cut")[1] == read_cut(CASES)[1]


def test_only_a_tensor_that_a_case_names_as_left_out_goes_uncompared() -> None:
    (case,) = [p.values[0] for p in cases("distillation", "koleo") if p.id == "koleo__s0"]
    case = replace(case, manifest={**case.manifest, "left_out": ["out/loss_topk"]})
    wrong = case.tensors("out")["loss"] + 0.1
    case.check(wrong, "out", "loss_topk")
    with pytest.raises(AssertionError, match=r"koleo__s0/out/loss: off by 0\.1"):
        case.check(wrong, "out", "loss")
    with pytest.raises(KeyError, match="unknown"):
        case.check(wrong, "out", "unknown")


def test_a_variant_that_is_not_here_says_why_and_an_unknown_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(golden, "FOLDER", CASES)
    golden.manifest.cache_clear()
    try:
        (absent,) = cases("masked_modeling", "mae_loss")
        assert absent.values == (None,)
        assert "facebookresearch/mae is non-commercial" in absent.marks[0].kwargs["reason"]
        with pytest.raises(KeyError, match="mae_los"):
            cases("masked_modeling", "mae_los")
    finally:
        golden.manifest.cache_clear()
