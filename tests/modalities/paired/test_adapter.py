"""Pairs: the same bytes everywhere, mixing, texts and partners by class, what members measure, what is built in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multissl import catalogue, options
from multissl.contract.data import Batch, Sample, Unreadable
from multissl.contract.plans import CLEAN, Plans, ViewPlan
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.layers.heads import MLPHead
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.paired.rows import Record, repeats
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.clip import CLIP
from multissl.recipe import Recipe
from multissl.run.model import load
from multissl.run.train import train
from tests.helpers.paired_data import (
    IMAGE,
    SMALL,
    TEXT,
    class_folders,
    clean,
    every,
    ids,
    pairs,
    png,
    rows,
    shard,
    written,
)

# draws


def test_the_draws_of_a_member_do_not_depend_on_which_others_there_are(tmp_path: Path) -> None:
    files: Any = [{"a.png": png(10 * i), "b.png": png(200 - 10 * i), "c.png": png(90 + i)} for i in range(10)]
    source = shard(tmp_path / "a.tar", files)
    plan, drawn = ViewPlan(num_global=1, mask_ratio=(0.5, 0.5)), {}
    for members in ("ab", "cba"):
        made = pairs(source, members={name: IMAGE for name in members})
        raw, _ = StepBatches(made, dict.fromkeys(members, plan), 4, 0, 0, 1, final=True)[0]
        drawn[members] = raw
    for name in "ab":
        one, other = (drawn[members].of(name, "global") for members in drawn)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.masks[0].hidden, other.masks[0].hidden)
    assert not torch.equal(
        drawn["ab"].of("a", "global").masks[0].hidden, drawn["ab"].of("b", "global").masks[0].hidden
    )


# one modality twice


def test_a_modality_is_paired_with_itself_under_two_names(tmp_path: Path, said: list[str]) -> None:
    two = {"photo": IMAGE, "depth": IMAGE}
    files: Any = [{"photo.png": png(10 * i), "depth.png": png(200 - 10 * i)} for i in range(10)]
    made = pairs(shard(tmp_path / "a.tar", files), members=two)
    views = clean(made, every(made), {"photo": CLEAN, "depth": CLEAN})
    assert [*made.streams()] == ["photo", "depth"]
    assert "photo and depth are all Image: a modality is paired with itself" in said
    assert (views["photo"].x.mean((1, 2, 3)).diff() > 0).all()
    assert (views["depth"].x.mean((1, 2, 3)).diff() < 0).all()
    with pytest.raises(
        ValueError, match=r"photo and depth are both Image.*call the files 00000.photo.png and"
    ):
        pairs(shard(tmp_path / "b.tar", rows()), members=two).dataset("train")


# the same bytes


PLANS: Plans = {
    "image": ViewPlan(num_clean=1, num_global=2, num_local=2),
    "text": ViewPlan(num_clean=1, num_global=2),
}


def same(one: Batch, other: Batch) -> None:
    assert [(v.stream, v.role) for v in one] == [(v.stream, v.role) for v in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.x, b.x), f"{a.stream} {a.role}"
        assert torch.equal(ids(a), ids(b))
        assert (a.present is None) == (b.present is None)
        assert a.present is None or b.present is None or torch.equal(a.present, b.present)


def batch(made: StepBatches, step: int) -> Batch:
    return made.views(made[step][0], step)


def partly(tmp_path: Path) -> Paired:
    files = rows()
    del files[3]["txt"]
    return pairs(shard(tmp_path / "a.tar", files))


def test_workers_a_restart_and_another_process_give_the_same_stream(tmp_path: Path) -> None:
    made = partly(tmp_path)
    steps = StepBatches(made, PLANS, 8, 5, 0, 1, final=False)
    expected = [batch(steps, s) for s in range(4)]
    for fetched, known in zip(
        batches_of(steps, 2, 4, Data(workers=2), 1, torch.device("cpu")), expected[2:], strict=True
    ):
        same(fetched.batch, known)
    later = pickle.loads(pickle.dumps(partly(tmp_path)))
    later.restore(json.loads(json.dumps(made.state())))
    same(batch(StepBatches(later, PLANS, 8, 5, 0, 1, final=False), 3), expected[3])
    assert not torch.equal(expected[0][1].x, expected[1][1].x)
    streams = [(v.stream, v.role) for v in expected[0]]
    assert streams == [
        (s, r) for s in ("image", "text") for r in ("clean", "global", "local") if (s, r) != ("text", "local")
    ]


def test_two_ranks_make_the_views_of_one(tmp_path: Path) -> None:
    made = partly(tmp_path)
    whole = batch(StepBatches(made, PLANS, 8, 5, 0, 1, final=False), 1)
    halves = [batch(StepBatches(made, PLANS, 8, 5, rank, 2, final=False), 1) for rank in (0, 1)]
    for views, *parts in zip(whole, *halves, strict=True):
        x = torch.cat([p.x.unflatten(0, (views.num_views, -1)) for p in parts], 1)
        assert torch.equal(x.flatten(0, 1), views.x)
        assert torch.equal(torch.cat([ids(p) for p in parts]), ids(views))


# mixing


def test_small_sources_are_drawn_by_temperature_in_a_fixed_epoch(tmp_path: Path) -> None:
    assert repeats([100, 25, 4], 1) == [100, 25, 4]
    assert repeats([100, 25, 4], 2) == [100, 50, 20]
    files: Any = rows(40)
    more: Any = [{**row, "txt": f"other {i}"} for i, row in enumerate(rows(10))]
    both = shard(tmp_path / "a.tar", files), shard(tmp_path / "b.tar", more)
    plain, mixed = (pairs(both, temperature=t) for t in (1.0, 2.0))
    counts = [
        sum(s.data.parts["text"].startswith("other") for s in every(made, "train")) for made in (plain, mixed)
    ]
    assert counts == [9, 18]
    assert len(every(mixed, "train")) == 36 + 18
    assert len(every(mixed, "val")) == len(every(plain, "val")) == 5
    rowed = [s.data.row for s in every(mixed, "train")]
    assert rowed == [s.data.row for s in every(pairs(both, temperature=2.0), "train")]
    assert {rowed.count(r) for r in rowed if r >= 40} == {2}


# texts made of classes, pairs by class


def test_prompts_make_the_text_of_the_class(tmp_path: Path) -> None:
    files = [{k: v for k, v in row.items() if k != "txt"} for row in rows()]
    templates = ("a photo of a {}.", "{}")
    made = pairs(shard(tmp_path / "a.tar", files), prompts={"text": templates}, names={"three": "trio"})
    samples = every(made)
    assert [s.data.parts["text"] for s in samples[2:4]] == ["a photo of a two.", "trio"]
    found = ids(clean(made, samples)["text"])
    assert torch.equal(found[:10], found[10:])
    assert len(set(found.tolist())) == 10


def by_class(tmp_path: Path, **options: Any) -> Paired:
    left = IMAGE.replace(data=class_folders(tmp_path / "left", "png", 12))
    right = IMAGE.replace(data=class_folders(tmp_path / "right", "png", 5, 2))
    return Paired(Paired.Config(**{"members": {"left": left, "right": right}, "join": "label", **options}))


def test_partners_are_drawn_among_samples_of_the_same_class(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    data: Any = made.dataset("train")
    own: Any = made.members["left"].dataset("train")
    assert len(data) == sum(own[i].label < 2 for i in range(len(own))) < len(own)  # the right has no class 2
    steps = StepBatches(made, {"left": CLEAN, "right": CLEAN}, 16, 0, 0, 1, final=False)
    left, right = batch(steps, 0)
    assert torch.equal(ids(left), ids(right))
    assert set(ids(left).tolist()) == {0, 1}
    for k in (0, 1):  # brightness tells the class
        mine = [v.x[ids(v) == k].mean((1, 2, 3)) for v in (left, right)]
        assert (mine[0].mean() - mine[1].mean()).abs() < 0.15
        assert len(mine[1].unique()) > 1, "the partner is always the same one"
    again = [
        batch(steps, 0)[1],
        batch(StepBatches(by_class(tmp_path), steps.plans, 16, 0, 0, 1, final=False), 0)[1],
    ]
    assert all(torch.equal(right.x, other.x) for other in again)
    assert not torch.equal(right.x, batch(steps, len(data))[1].x)
    assert left.group_id is None


def test_a_broken_partner_is_told_and_another_taken(tmp_path: Path, said: list[str]) -> None:
    made = by_class(tmp_path)
    for path in sorted((tmp_path / "right" / "0").iterdir())[1:]:
        path.write_bytes(b"no picture")
    data: Any = made.dataset("train")
    some = [data[i] for i in range(len(data)) if data[i].label == 0]
    views = clean(made, some, {"left": CLEAN, "right": CLEAN})
    assert len(views["right"].x.flatten(1).unique(dim=0)) == 1
    assert any("is no partner of others" in line for line in said)
    for path in (tmp_path / "right" / "0").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(Unreadable, match="no right of class 0 can be read"):
        clean(made, some, {"left": CLEAN, "right": CLEAN})


def test_members_without_a_class_in_common_are_refused(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    other = Image.Config(**SMALL[Image.Config])  # the built-in motifs
    both = {**made.cfg.members, "right": other}
    with pytest.raises(ValueError, match=r"no class in common \(left: 0, 1, 2; right: "):
        Paired(Paired.Config(members=both, join="label")).fit()


def test_a_prompt_is_a_third_stream_of_a_join_by_class(tmp_path: Path) -> None:
    made = by_class(tmp_path)
    three = {**made.cfg.members, "text": TEXT}
    names = {"0": "zero", "1": "one"}
    made = Paired(
        Paired.Config(members=three, join="label", prompts={"text": ("{}", "number {}")}, names=names)
    )
    steps = StepBatches(made, dict.fromkeys(three, CLEAN), 16, 0, 0, 1, final=False)
    found = {v.stream: v for v in batch(steps, 0)}
    said = written(found["text"], made)
    assert {s.split()[-1] for s in said} == {"zero", "one"}
    assert {s.startswith("number") for s in said} == {True, False}
    assert [names[str(k)] for k in ids(found["left"]).tolist()] == [s.split()[-1] for s in said]


# members that measure


def test_cells_are_a_member_and_measured_on_the_training_rows(tmp_path: Path) -> None:
    data = shard(tmp_path / "a.tar", rows())
    made = pairs(data, members={"tabular": Tabular.Config(), "image": IMAGE}).fit()
    spec = made.streams()["tabular"]
    assert spec.channels == ("size", "color"), "the label is no cell"
    plans: Plans = {"tabular": ViewPlan(num_clean=1, num_global=2), "image": CLEAN}
    expected = batch(StepBatches(made, plans, 8, 0, 0, 1, final=False), 0)
    state = json.loads(json.dumps(made.state()))
    later = pairs(data, members=made.cfg.members)
    later.restore(state)
    assert later.streams() == made.streams()
    moved = pairs("gone.tar", members=made.cfg.members)  # a run is read where its data is not
    moved.restore(state)
    row = {"size": 0.7, "color": "one"}
    views = clean(moved, [Sample({"tabular": row}, 0)], {"tabular": CLEAN})["tabular"]
    assert torch.equal(views.x, clean(later, [Sample({"tabular": row}, 0)], {"tabular": CLEAN})["tabular"].x)
    assert expected[0].stream == "tabular"


def test_features_made_once_are_cells_beside_their_texts(tmp_path: Path) -> None:
    """LiT without its locked tower at every step, as docs/pairs.md has it."""
    draw = np.random.RandomState(0)
    numbers = draw.randn(40, 4).round(3)
    lines = [
        [*map(str, row), f"about {'plus' if row[0] > 0 else 'minus'} {i}"] for i, row in enumerate(numbers)
    ]
    path = tmp_path / "features.csv"
    path.write_text("\n".join(",".join(line) for line in [["f0", "f1", "f2", "f3", "text"], *lines]))
    members = {"image": Tabular.Config(corruption=(0.0,)), "text": TEXT}
    recipe = Recipe(
        modality=Paired.Config(members=members, data=(str(path),)),
        encoders={
            "image": MLPEncoder.Config(dims=(8,)),
            "text": TransformerEncoder.Config(dim=16, depth=1, heads=2),
        },
        objective=CLIP.Config(projector=MLPHead.Config(out=8, layers=1, norm="none")),
        batch_size=16,
        steps=2,
        loggers={},
        data=Data(workers=0),
    )
    assert recipe.modality.build().fit().streams()["image"].channels == ("f0", "f1", "f2", "f3")
    train(recipe, tmp_path / "run")
    model = load(tmp_path / "run")
    first = dict(zip(["f0", "f1", "f2", "f3"], numbers[0].tolist(), strict=True))
    assert model.embed([first], stream="image").shape == (1, 8)
    assert model.embed(["about plus 0"], stream="text").norm().item() == pytest.approx(1, abs=1e-5)


def test_a_restored_text_member_reads_as_in_training_without_the_data(tmp_path: Path) -> None:
    made = pairs(shard(tmp_path / "a.tar", rows()))
    moved = pairs("gone.tar")
    moved.restore(json.loads(json.dumps(made.state())))
    for asked, data in (({"text": CLEAN}, "sample 3 shows three"), ({"image": CLEAN}, png(40))):
        mine, theirs = (clean(m, [Sample(data, 0)], asked) for m in (made, moved))
        (name,) = asked
        assert torch.equal(mine[name].x, theirs[name].x)
    with pytest.raises(Unreadable, match="want a mapping with image and text, got str"):
        clean(moved, [Sample("sample", 0)])


def test_the_report_shows_samples_side_by_side_and_baselines_are_those_that_all_have(tmp_path: Path) -> None:
    made = partly(tmp_path)
    figures = made.figures(batch(StepBatches(made, PLANS, 8, 5, 0, 1, final=False), 0))
    assert [p.title for p in figures][:2] == ["Pairs", "What the encoder is shown: image"]
    assert figures[0].image.dtype == np.uint8
    assert figures[0].image.std() > 10
    baselines = made.baselines()
    assert set(baselines) == {"raw"}
    for views in clean(made, every(made)[:3]).values():
        assert baselines["raw"](views).shape[0] == 3


# what is built in


def test_the_built_in_captions_tell_what_was_drawn() -> None:
    made = Paired(Paired.Config())
    train, val = made.dataset("train"), every(made, "val")
    assert [len(train), len(val)] == [5000, 1000]
    first = [train[i].data.parts["text"] for i in range(3)]
    assert first == [
        "medium crosses in light grey on dark turquoise",
        "a picture of fine bricks, light grey before dark grey",
        "dark grey spiral on a light purple ground, coarse",
    ]
    assert isinstance(val[0].data, Record)
    classes = made.dataset("val").classes
    assert all(classes[s.label] in s.data.parts["text"] for s in val)
    contents = [s.data.same for s in val]
    assert 800 < len(set(contents)) < 900
    told: dict[int, set[str]] = {}
    for s in val:  # equal contents are equal words, however they are put
        told.setdefault(s.data.same, set()).add(" ".join(sorted(w for w in _words(s.data.parts["text"]))))
    assert all(len(words) == 1 for words in told.values()), [w for w in told.values() if len(w) > 1][:3]


def _words(text: str) -> list[str]:
    filler = {"a", "picture", "of", "in", "on", "ground", "before", "painted", "over"}
    plain = text.replace(",", "").replace(":", "").split()
    return [w for w in plain if w not in filler]


def test_image_text_is_the_name_of_its_first_recipe() -> None:
    assert catalogue.find("image_text")() == catalogue.find("image_text/slip")()
    names = [*catalogue.entries()]
    assert {"image_text/lit", "audio_video/clip", "image_text_audio/clip"} < set(names)
    assert not any("__" in name for name in names)


def test_members_and_sources_are_options_of_a_command() -> None:
    given = ["--data", "a.tar", "b.tar", "--modality.members.image.size", "64", "--modality.temperature=2"]
    recipe, _ = options.open_recipe("image_text", given)
    modality, own = recipe.modality, catalogue.find("image_text")().modality
    assert isinstance(modality, Paired.Config)
    assert isinstance(own, Paired.Config)
    assert modality.data == ("a.tar", "b.tar")
    image = modality.members["image"]
    assert isinstance(image, Image.Config)
    assert image.size == 64
    assert modality.members["text"] == own.members["text"]
    assert modality.temperature == 2
