"""Published recipes carry the published values, as written in `published/*.json` and never read from a recipe.

An entry gives an option of the recipe, its value, and where that was read: a file of the official code at a commit with
a line or words on that line, or a section of the paper. Where a recipe differs on purpose the entry has `ours` and
`why`, and the recipe's docstring says so after "Differs from the paper".
"""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from multissl import catalogue, registry
from multissl.config import to_dict

FOLDER = Path(__file__).parent / "published"
SOURCES: dict[str, dict[str, str]] = json.loads((FOLDER / "sources.json").read_text())
TABLES: dict[str, list[dict[str, Any]]] = {
    name: table
    for file in sorted(FOLDER.glob("*.json"))
    if file.name != "sources.json"
    for name, table in json.loads(file.read_text()).items()
}
DOCSTRINGS = {
    f"{part}/{function}": docstring
    for part, modules in registry.RECIPES.items()
    for module in modules
    for function, docstring in catalogue.functions(module)
}
PUBLISHED = [name for name, text in DOCSTRINGS.items() if "arXiv" in text.partition("\n")[0]]
DIFFERS = "Differs from the paper"

MATTERS = (
    r"batch_size|steps|clip",
    r"optim\.(kind|lr|lr_scaling|lr_shape|lr_drops|warmup|warmup_lr|final_lr|stretch|weight_decay|final_weight_decay)",
    r"optim\.(betas|momentum|trust|norms|exclude_vectors|decay_vectors|decay_tokens|vector_lr|layer_decay)",
    r"modality\.(size|patch|global_scale|local_scale|flip|jitter|brightness|contrast|saturation|hue|grayscale|solarize)",
    r"modality\.(blur|local_size|mask|mask_patch|mask_smallest|frames|stride|tubelet|rate|mels|mixup|stretch)",
    r"encoders\.\w+\.(kind|depth|dim|heads|ffn|layerscale|drop_path|drop_path_shape|zero_init_residual|position\.kind)",
    r"objective\.(.*temperature.*|mask\w*|\w+_weight|num_local|num_views|\w*ratio\w*|target_\w+|context_\w+)",
    r"objective\.(queue|scale|reduction|sinkhorn_rounds|freeze_\w+|metric|norm_target|variance|invariance|covariance)",
    r"objective\.(alpha|beta|redundancy|matches|prototypes|sharpening|prior|top_k|layer_norm|final_norm|centering)",
    r"objective\.teacher\.(ema|final_ema|ema_shape|stretch)",
    r"objective\.(projector|predictor|head|ibot_head|decoder)\.(hidden|out|layers|prototypes|bottleneck|gain)",
    r"objective\.(predictor|decoder)\.(dim|depth|heads)",
)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the options of a recipe by their dotted path."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for name, below in value.items():
        found |= flat(below, f"{path}.{name}" if path else name)
    return found


def options(name: str) -> dict[str, Any]:
    """Return the options of a recipe as its file would have them."""
    return flat(json.loads(json.dumps(to_dict(catalogue.find(name)()))))


def idle(path: str, made: dict[str, Any]) -> bool:
    """Tell whether an option does nothing in a recipe, so that no paper has a value for it."""
    objective, encoder = made["objective.kind"], path.rpartition(".")[0]
    leaf = path.rpartition(".")[2]
    if path.startswith("modality."):
        masked = objective in {"mae", "ijepa", "data2vec", "msn"} or bool(made.get("objective.ibot_weight"))
        if leaf.startswith("mask"):
            blocks = made["modality.mask"] == "block" and objective != "ijepa"
            return not masked or (leaf == "mask_smallest" and not blocks)
        if leaf.startswith("local_"):
            return not made.get("objective.num_local")
        if leaf in {"brightness", "contrast", "saturation", "hue"}:
            return not made["modality.jitter"]
        return leaf in {"patch", "stride"} and any(
            v == "resnet" for k, v in made.items() if k.startswith("encoders.")
        )
    if path.startswith("optim."):
        transformer = "transformer" in [v for k, v in made.items() if k.startswith("encoders.")]
        return {
            "lr_drops": made["optim.lr_shape"] != "steps",
            "decay_tokens": not transformer,
            "layer_decay": made["optim.layer_decay"] == 1,
            "stretch": made["optim.stretch"] == 1,
        }.get(leaf, False)
    if leaf == "drop_path_shape":
        return not made[f"{encoder}.drop_path"]
    if path.startswith("objective.teacher."):
        alone = made.get("objective.target") == "student"
        return alone or (leaf == "stretch" and made[path] == 1)
    if leaf in {"sinkhorn_rounds", "learn_temperature"}:
        return not made[path] or made.get("objective.centering") == "ema"
    if path.startswith("objective.ibot_head."):
        return bool(made["objective.tied_heads"]) or not made["objective.ibot_weight"]
    if re.fullmatch(r"objective\.mask\w*", path):
        return objective == "dino" and not made["objective.ibot_weight"]
    if path.startswith("objective.decoder."):
        return made.get("objective.masking") == "replace"
    return False


def required(made: dict[str, Any]) -> set[str]:
    """Return the options of a published recipe that its table must have."""
    matters = re.compile("|".join(MATTERS))
    return {path for path in made if matters.fullmatch(path) and not idle(path, made)}


def same(got: Any, wanted: Any) -> bool:
    """Compare values; floats may differ by rounding alone."""
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(same(a, b) for a, b in zip(got, wanted, strict=True))
    if isinstance(got, bool) or isinstance(wanted, bool) or not isinstance(got, int | float):
        return type(got) is type(wanted) and got == wanted
    return isinstance(wanted, int | float) and math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-12)


def unsourced(entry: dict[str, Any]) -> bool:
    """Tell whether an entry does not say where its value was read."""
    source = SOURCES.get(entry.get("source", ""), {})
    if "paper" in source:
        return not source.get("title") or not entry.get("section")
    known = (
        source.get("repo") and source.get("file") and re.fullmatch("[0-9a-f]{40}", source.get("commit", ""))
    )
    return not known or not (entry.get("line") or entry.get("at"))


def errors(made: dict[str, Any], table: list[dict[str, Any]], docstring: str, *, whole: bool) -> list[str]:
    """Return what is wrong between a recipe, its table and its docstring."""
    wrong: list[str] = []
    for entry in table:
        path, wanted = entry["option"], entry.get("ours", entry["value"])
        if path not in made:
            wrong.append(f"{path}: no such option")
        elif not same(made[path], wanted):
            wrong.append(f"{path}: {made[path]}, published {wanted}")
        if unsourced(entry):
            wrong.append(f"{path}: no source")
        if ("ours" in entry) and not (entry.get("why") and DIFFERS in " ".join(docstring.split())):
            wrong.append(f"{path}: differs, and the docstring does not say so")
    listed = [entry["option"] for entry in table]
    wrong += [f"{path}: twice" for path in {p for p in listed if listed.count(p) > 1}]
    if whole:
        wrong += [f"{path}: not in the table" for path in sorted(required(made) - {*listed})]
    return wrong


def other(value: Any) -> Any:
    """Return another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 1.01 + 0.001
        case str():
            return value + "x"
        case list():
            return [*value[:-1], other(value[-1])] if value else [0.5]  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return 0.123


def test_every_published_recipe_has_a_table() -> None:
    assert len(PUBLISHED) >= 24
    assert not {*PUBLISHED} - {*TABLES}
    assert not {*TABLES} - {*DOCSTRINGS}


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_carries_the_published_values(name: str) -> None:
    assert errors(options(name), TABLES[name], DOCSTRINGS[name], whole=name in PUBLISHED) == []


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_value_anywhere_turns_a_table_red(name: str) -> None:
    made, docstring, whole = options(name), DOCSTRINGS[name], name in PUBLISHED
    for i, entry in enumerate(TABLES[name]):
        path = entry["option"]
        assert errors(made | {path: other(made[path])}, TABLES[name], docstring, whole=whole), path
        table = copy.deepcopy(TABLES[name])
        key = "ours" if "ours" in entry else "value"
        table[i][key] = other(entry[key])
        assert errors(made, table, docstring, whole=whole), path
        del table[i]["source"]
        assert f"{path}: no source" in errors(made, table, docstring, whole=whole)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_table_without_a_value_that_matters_is_noticed(name: str) -> None:
    made = options(name)
    assert len(required(made)) >= 25
    for path in required(made):
        table = [entry for entry in TABLES[name] if entry["option"] != path]
        assert errors(made, table, DOCSTRINGS[name], whole=True) == [f"{path}: not in the table"]


def test_a_silent_difference_and_an_option_of_the_past_are_noticed() -> None:
    made, table = (
        {"a": 1},
        [{"option": "a", "value": 2, "ours": 1, "why": "x", "source": "mae/main", "line": 1}],
    )
    assert not errors(made, table, f"{DIFFERS}: a is 1.", whole=False)
    assert errors(made, table, "", whole=False) == ["a: differs, and the docstring does not say so"]
    assert errors({"b": 1}, table, f"{DIFFERS}: a is 1.", whole=False) == ["a: no such option"]
