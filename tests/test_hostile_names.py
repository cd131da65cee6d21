"""Streams called like parameters, modules and attributes are treated as streams of ordinary names.

Everything is done twice on the same rows of three pictures and three texts: once with streams of these names, once with
ordinary ones. What comes out is the same but for the names.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.same_numbers import MEASURED
from multissl import registry
from multissl.build import Parts, build
from multissl.config import to_dict
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.evaluators.knn import KNN
from multissl.inference import clean_views
from multissl.modalities.paired.adapter import Paired
from multissl.objectives.weighted import Weighted
from multissl.options import apply, read
from multissl.parallel.gradients import clip_gradients
from multissl.random import RowRandom
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.model import load
from multissl.run.report import report
from multissl.run.train import train
from multissl.verify.small import shrunk
from multissl.weights.loading import load_weights
from tests.helpers.paired_data import IMAGE, TEXT, WORDS, png

HOSTILE = ("normal", "gamma", "last_layer", "bias", "blocks.0", "projectors")
"""Pictures at even places, texts at odd ones."""
PLAIN = ("image", "text", "photo", "words", "scan", "line")
TERMS = {name: name.replace(".", "_") for name in HOSTILE}
CPU = torch.device("cpu")
NOWHERE = {"vime", "infilling"}
"""Objectives of cells and of running text: not of pictures and captions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows of six columns, under either names."""
    root = tmp_path_factory.mktemp("names")
    for row in range(30):
        (root / f"{row}.png").write_bytes(png(8 * row))
    for kind, names in (("hostile", HOSTILE), ("plain", PLAIN)):
        lines = [
            {name: f"{row}.png" if i % 2 == 0 else f"row {row} shows {WORDS[(row + i) % 10]}"
             for i, name in enumerate(names)} | {"label": WORDS[row % 3]}
            for row in range(30)
        ]  # fmt: skip
        (root / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def recipe(folder: Path, names: Sequence[str], objective: Objective.Config, **changes: Any) -> Recipe:
    """A recipe over some of the columns, in which parameters are treated unlike in every way there is."""
    hostile = names[0] in HOSTILE
    every = HOSTILE if hostile else PLAIN
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=0.1, pooling="mean")
    base = Recipe(
        modality=Paired.Config(
            members={s: IMAGE if every.index(s) % 2 == 0 else TEXT for s in names},
            data=(str(folder / ("hostile.jsonl" if hostile else "plain.jsonl")),),
        ),
        encoders=dict.fromkeys(names, encoder),
        objective=objective,
        optim=AdamW.Config(lr=1e-3, warmup=2, layer_decay=0.8, patch_lr=0.2, weight_decay=0.1),
        batch_size=8,
        steps=4,
        clip=0.5,
        clip_per="module",
        lr_by_stream={names[0]: 0.5},
        save=Save(every=2),
        data=Data(workers=0),
        log_every=1,
        loggers={},
    )
    return base.replace(**changes)


def term_for_each(names: Sequence[str], cfg: Objective.Config) -> Weighted.Config:
    """An objective of one stream, once for every stream; a term is called as its stream where it may be."""
    terms = {TERMS.get(name, name): name for name in names}
    return Weighted.Config(terms=dict.fromkeys(terms, cfg), streams={t: (s,) for t, s in terms.items()})


@pytest.fixture(autouse=True)
def draws_of_ordinary_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a member's random draws, which follow its name, be those of the ordinary one, so that numbers compare."""
    fork = RowRandom.fork

    def under_ordinary_names(self: RowRandom, tag: str) -> RowRandom:
        start, found, name = tag.partition("member ")
        return fork(self, f"{start}{found}{plain(name)}" if found else tag)

    monkeypatch.setattr(RowRandom, "fork", under_ordinary_names)


def plain(name: str) -> str:
    """The name of a stream or figure with ordinary streams."""
    for hostile, ordinary in zip(HOSTILE, PLAIN, strict=True):
        for spelt in (hostile, PerStream.key(hostile), TERMS[hostile]):
            parts = f".{name.replace('/', './.')}.".replace(f".{spelt}.", f".{ordinary}.")
            name = parts[1:-1].replace("./.", "/")
    return name


# what is built


def treatments(parts: Parts) -> list[Any]:
    """What the optimizer makes of every parameter, in the order in which they are registered; None: it is frozen."""
    of = {id(p): g["treatment"] for g in parts.optimizer.torch.param_groups for p in g["params"]}
    return [of.get(id(p)) for p in parts.learner.parameters()]


def places(parts: Parts) -> dict[int, int]:
    return {id(p): i for i, p in enumerate(parts.learner.parameters())}


def clipped(parts: Parts) -> list[list[int]]:
    """The places of the parameters whose gradients are clipped together."""
    place = places(parts)
    return [[place[id(p)] for p in group] for group in parts.learner.clip_groups("module").values()]


def rules(parts: Parts) -> list[Any]:
    """What the objective freezes, slows or exempts, by the places of its parameters."""
    place = places(parts)
    return [
        ([place[id(p)] for p in r.parameters()], r.lr, r.decay, r.frozen_steps, r.constant)
        for r in parts.learner.objective.param_rules()
    ]


def shipped(parts: Parts) -> list[tuple[str, Tensor]]:
    return [*parts.learner.shipped().state_dict().items()]


def same_name(hostile: str, ordinary: str) -> bool:
    """Return whether two names of tensors differ in nothing but the streams in them."""
    pairs = zip(hostile.split("."), ordinary.split("."), strict=True)
    return all(theirs in (ours, plain(ours)) for ours, theirs in pairs)


def fitting(folder: Path, objective: str) -> tuple[slice, bool] | None:
    """Which streams an objective takes, and whether it wants a term for each; None where it takes none."""
    cfg = shrunk(registry.resolve(objective, "objectives").Config())
    for some in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        for apart in (False, True):
            chosen = term_for_each(PLAIN[some], cfg) if apart else cfg
            try:
                build(recipe(folder, PLAIN[some], chosen), CPU)
            except ValueError:
                continue
            return some, apart
    return None


@pytest.mark.parametrize("objective", registry.GROUPS["objectives"])
def test_decay_freezing_clipping_and_shipping_do_not_read_names(
    objective: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multissl.build.Blueprint", lambda learner: None)  # a copy of which nothing is asked
    fits = fitting(folder, objective)
    assert (fits is None) == (objective in NOWHERE)
    if fits is None:
        return
    some, apart = fits
    cfg = shrunk(registry.resolve(objective, "objectives").Config())
    ours, theirs = (
        build(recipe(folder, names[some], term_for_each(names[some], cfg) if apart else cfg), CPU)
        for names in (HOSTILE, PLAIN)
    )
    assert treatments(ours) == treatments(theirs)
    assert clipped(ours) == clipped(theirs)
    assert rules(ours) == rules(theirs)
    for (name, tensor), (ordinary, other) in zip(shipped(ours), shipped(theirs), strict=True):
        assert same_name(name, ordinary), name
        assert torch.equal(tensor, other), name


# a loop of one's own


def own_loop(folder: Path, names: Sequence[str], cfg: Objective.Config) -> tuple[list[float], list[Tensor]]:
    """Losses of a few steps and the weights after them: no trainer, no files."""
    torch.manual_seed(0)
    made = recipe(folder, names, cfg)
    modality = made.modality.build().fit()
    specs = modality.streams()
    encoders = Encoders({s: cfg.build(specs[s]) for s, cfg in made.encoders.items()})
    objective: Objective = made.objective.build(encoders, specs)
    plans, data, losses = objective.plans(), modality.dataset("train"), list[float]()
    parameters = [p for m in (encoders, objective) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(3):
        torch.manual_seed(step)
        rng = RowRandom((0, step), 0, 8, 8)
        raw = modality.collate([data[step * 8 + i] for i in range(8)], plans, rng)
        progress = Progress(step=step, total=3)
        found = objective(encoders, modality.views(raw, plans, rng), progress)
        found.total.backward()
        clip_gradients({"all": parameters}, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(encoders, progress)
        losses.append(found.total.item())
    modules = (encoders, objective, objective.exported(encoders))
    return losses, [t.clone() for m in modules for t in m.state_dict().values()]


@pytest.mark.parametrize("objective", ["clip", "byol", "dino"])
def test_a_loop_of_ones_own_gives_the_same_numbers(objective: str, folder: Path) -> None:
    cfg = shrunk(registry.resolve(objective, "objectives").Config())
    made: list[tuple[list[float], list[Tensor]]] = []
    for names in (HOSTILE, PLAIN):
        some = names[::2] if objective == "dino" else names
        made.append(own_loop(folder, some, term_for_each(some, cfg) if objective == "dino" else cfg))
    (losses, ours), (others, theirs) = made
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# a run


def figures(run: Path) -> list[dict[str, Any]]:
    """The logged figures under ordinary names, without what a clock measures."""
    lines = [{plain(n): v for n, v in x.items() if n not in MEASURED} for x in RunFolder(run).read_metrics()]
    return [x for x in lines if x["kind"] in ("train", "eval")]


@functools.cache
def finished(folder: Path, kind: str, objective: str) -> tuple[Path, Recipe]:
    """A run of four steps that was resumed after two."""
    names = HOSTILE if kind == "hostile" else PLAIN
    cfg = shrunk(registry.resolve(objective, "objectives").Config())
    if objective == "dino":
        names = names[::2]
        cfg = term_for_each(names, cfg)
    evals: Mapping[str, Any] = {f"knn_{i}": KNN.Config(stream=s, k=(3,)) for i, s in enumerate(names)}
    made = recipe(folder, names, cfg, evals=dict(evals))
    run = folder / f"{kind}_{objective}"
    train(made.replace(steps=2), run)
    train(made, run)
    return run, made


@pytest.mark.parametrize("objective", ["clip", "dino"])
def test_a_run_ends_resumes_loads_encodes_and_starts_another(objective: str, folder: Path) -> None:
    run, made = finished(folder, "hostile", objective)
    other, _ = finished(folder, "plain", objective)
    assert figures(run) == figures(other)
    ours, theirs = load(run), load(other)
    assert [*ours.encoders] == [*made.encoders]
    assert [plain(s) for s in ours.encoders] == [*theirs.encoders]
    states = [m.encoders.state_dict().values() for m in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert report(run).stat().st_size > 1000
    pictures = list(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8))
    started = build(made.replace(init=str(run), locked=(*made.encoders,)[:1], lr_by_stream={}), CPU)
    for stream in made.encoders:
        samples = pictures if ours.modality.streams()[stream].kind == "grid" else ["one two", "three", "four"]
        features = ours.encode(samples, stream=stream)
        assert torch.equal(features, theirs.encode(samples, stream=plain(stream)))
        if objective == "clip":
            z = ours.embed(samples, stream=stream)
            assert torch.equal(z, theirs.embed(samples, stream=plain(stream)))
        views = clean_views(ours.modality, [ours.modality.dataset("val")[0]], stream, CPU)
        with torch.no_grad():
            fresh = started.learner.encoders.eval().encode([views])[0].pooled
            assert torch.equal(fresh, ours.encoders.encode([views])[0].pooled)


@pytest.mark.parametrize("objective", ["clip", "dino"])
def test_a_stream_is_taken_out_of_a_run_of_several(objective: str, folder: Path) -> None:
    run, made = finished(folder, "hostile", objective)
    model = load(run)
    for stream in made.encoders:
        alone = Encoders({stream: made.encoders[stream].build(model.modality.streams()[stream])})
        if objective == "clip":  # of towers those of other streams are left out
            load_weights(alone, run)
            theirs = model.encoders[stream].state_dict()
            assert all(torch.equal(t, theirs[f"encoder.{n}"]) for n, t in alone[stream].state_dict().items())
        else:
            with pytest.raises(
                ValueError, match=r"these weights do not fit the encoder|are in no layout that is known here"
            ):
                load_weights(alone, run)


def test_options_of_a_stream_with_a_dot_are_typed_as_any(folder: Path) -> None:
    made = recipe(folder, HOSTILE[::2], shrunk(registry.resolve("byol", "objectives").Config()))
    changed: Any = apply(made, read(["--encoders.blocks.0.depth", "1", "--encoders.normal.depth=3"])).encoders
    assert [encoder.depth for encoder in changed.values()] == [3, 2, 1]
    other = apply(made, read(["--encoders.blocks.0", "resnet", "encoders.blocks.0.width=8"])).encoders[
        "blocks.0"
    ]
    assert to_dict(other)["kind"] == "resnet"
    with pytest.raises(ValueError, match=r"no option --encoders\.blocks\.0\.dept.*depth"):
        apply(made, read(["--encoders.blocks.0.dept", "1"]))
    rates = apply(made, read(["--lr_by_stream.blocks.0=0.5"])).lr_by_stream
    assert rates == {**made.lr_by_stream, "blocks.0": 0.5}
    with pytest.raises(ValueError, match="lr_by_stream names 'text-a', no stream"):
        apply(made, read(["--lr_by_stream.text-a", "0.5"]))
    learner = build(apply(made, read(["--locked", "blocks.0"])), CPU).learner
    assert not any(p.requires_grad for p in learner.encoders["blocks.0"].parameters())
    assert any(p.requires_grad for p in learner.encoders["normal"].parameters())
