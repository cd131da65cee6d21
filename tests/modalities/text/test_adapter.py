"""Text: windows, packing, masks, replacement and T5's spans; the same views whatever the workers and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from multissl.contract.data import Batch, Sample, Unreadable, Views
from multissl.contract.plans import ViewPlan
from multissl.engine.batches import StepBatches
from multissl.inference import clean_views
from multissl.modalities.text.adapter import Text
from multissl.random import RowRandom

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "walks",
    "near",
    "under",
    "house",
    "tree",
    "quickly",
    "and",
    "unbelievably",
]


def sentences(count: int, seed: int = 0, most: int = 40) -> list[str]:
    rng = np.random.RandomState(seed)
    return [" ".join(rng.choice(WORDS, rng.randint(4, most))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(sentences(200))]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def made(corpus: str, **options: Any) -> Text:
    cfg = Text.Config(**{"data": corpus, "vocab": 300, "length": 24, "local_length": 8, **options})
    return Text(cfg).fit()


def batch_of(modality: Text, plan: ViewPlan, step: int = 0, rank: int = 0, world: int = 1) -> Batch:
    steps = StepBatches(modality, {"text": plan}, 16, 0, rank, world, final=True)
    return steps[step][0]


def only(modality: Text, plan: ViewPlan, step: int = 0) -> Views:
    (views,) = batch_of(modality, plan, step)
    return views


RATIO = (0.15, 0.15)
PLAN = ViewPlan(
    num_clean=1, num_global=2, num_local=2, mask_ratio=(0.1, 0.5), mask_share=0.5, coords=True, target=True
)


def test_shapes_types_and_what_is_real(corpus: str) -> None:
    modality = made(corpus, mask_group=16)
    spec = modality.streams()["text"]
    assert (spec.kind, spec.shape, spec.num_tokens, spec.vocab) == ("sequence", (24,), 24, 300)
    clean, whole, local = batch_of(modality, PLAN)
    assert [v.role for v in (clean, whole, local)] == ["clean", "global", "local"]
    assert clean.x.shape == (16, 24)
    assert whole.x.shape == (32, 24)
    assert local.x.shape == (32, 8)
    for views in (clean, whole, local):
        assert views.x.dtype == torch.int64
        assert int(views.x.min()) >= 0
        assert int(views.x.max()) < 300
    assert whole.valid is None
    assert clean.valid is not None
    pad = modality.vocabulary().pad
    assert ((clean.x == pad) == ~clean.valid).all()
    assert not clean.valid.all()
    assert (clean.valid[:, :-1] | ~clean.valid[:, 1:]).all()  # padding follows
    assert whole.coords is not None
    assert (whole.coords > 0).all()
    assert (whole.coords < 1).all()
    assert whole.target is not None
    assert torch.equal(whole.target, whole.x)


def test_a_clean_view_is_the_document_read_back(corpus: str) -> None:
    modality = made(corpus, length=128)
    data: Any = modality.dataset("val")
    texts = [t for i, t in enumerate(sentences(200)) if i % 10 == 9]
    views = clean_views(modality, [data[i] for i in range(len(data))], "text")
    words = modality.vocabulary()
    for row, text in enumerate(texts):
        assert views.valid is not None
        assert "".join(words.pieces(views.x[row][views.valid[row]].tolist())) == f" {text}"


def test_packed_rows_are_full_and_end_documents(corpus: str) -> None:
    modality = made(corpus)
    words = modality.vocabulary()
    views = only(modality, ViewPlan(num_global=1))
    assert (views.x != words.pad).all()
    ends = (views.x == words.sep).sum(1)
    assert (ends > 0).any()
    data: Any = modality.dataset("train")
    following = data[3].data.following
    assert sum(len(t.ids) for t in (data[3].data.own, *following)) >= 24


def test_without_packing_rows_hold_one_document(corpus: str) -> None:
    modality = made(corpus, pack=False)
    views = only(modality, ViewPlan(num_global=2, mask_ratio=RATIO))
    words = modality.vocabulary()
    assert not (views.x == words.sep).any()
    assert views.valid is not None
    assert ((views.x == words.pad) == ~views.valid).all()
    assert views.mask is not None
    assert not (views.mask.hidden & ~views.valid).any()
    counts, have = views.mask.hidden.sum(1), views.valid.sum(1)
    expected = torch.where(have > 1, (4 * have / 24).ceil().clamp(min=1).minimum(have - 1), 0)
    assert torch.equal(counts, expected.long())
    assert views.mask.num_hidden is None
    assert len(views.mask.index) == 32 * 4  # padded


def test_the_same_window_twice_and_two_spans(corpus: str) -> None:
    plan = ViewPlan(num_global=2)
    same = only(made(corpus, pack=False, same_window=True), plan)
    assert torch.equal(same.x[:16], same.x[16:])
    spans = only(made(corpus, pack=False, crop=(0.3, 0.7)), plan)
    assert not torch.equal(spans.x[:16], spans.x[16:])
    data: Any = made(corpus, pack=False).dataset("train")
    longest = max(len(data[i].data.own.ids) for i in range(len(data)))
    assert longest > 24
    assert spans.valid is not None
    assert int(spans.valid.sum(1).max()) <= 17  # 0.7 of 24, rounded up


@pytest.mark.parametrize("kind", ["token", "word", "span", "t5"])
def test_masks_hide_a_constant_number_of_words_and_no_special(corpus: str, kind: Any) -> None:
    modality = made(corpus, mask=kind)
    for step in range(3):
        views = only(modality, ViewPlan(num_global=1, mask_ratio=(0.3, 0.3), num_masks=2), step)
        assert len(views.masks) == 2
        assert not torch.equal(views.masks[0].hidden, views.masks[1].hidden)
        for mask in views.masks:
            count = {"t5": 7}.get(kind, 8)
            assert mask.num_hidden == count
            assert (mask.hidden.sum(1) == count).all()
            assert not (mask.hidden & (views.x == modality.vocabulary().sep)).any()
            assert (mask.weight == 1 / count).all()


def test_a_mask_fits_rows_of_many_short_documents(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("\n".join("abcdefgh"[i % 8] for i in range(64)))
    modality = made(str(tmp_path / "short.txt"))
    views = only(modality, ViewPlan(num_global=1, mask_ratio=(0.75, 0.75)))
    assert views.mask is not None
    assert (views.mask.hidden.sum(1) == 18).all()
    assert not (views.mask.hidden & (views.x == modality.vocabulary().sep)).any()


def test_replacement_is_by_the_shares_and_the_target_stays_whole(corpus: str) -> None:
    modality = made(corpus, mask="token")
    words, plan = (
        modality.vocabulary(),
        ViewPlan(num_global=1, mask_ratio=(0.5, 0.5), corrupt=True, target=True),
    )
    fates = torch.zeros(3)
    for step in range(12):
        views = only(modality, plan, step)
        assert views.target is not None
        assert views.mask is not None
        hidden, kept = views.mask.hidden, views.x == views.target
        assert kept[~hidden].all()
        masked = (views.x == words.mask) & hidden
        fates += torch.tensor([masked.sum(), (~kept & ~masked).sum(), (kept & hidden).sum()])
        assert np.isin(views.x[~kept & ~masked].numpy(), words.content).all()
    shares = fates / fates.sum()
    assert (shares - torch.tensor([0.8, 0.1, 0.1])).abs().max() < 0.03


def test_spans_share_one_fate(corpus: str) -> None:
    modality = made(corpus, replacement=(0.5, 0.0))
    views = only(modality, ViewPlan(num_global=1, mask_ratio=(0.4, 0.4), corrupt=True, target=True))
    assert views.mask is not None
    masked = views.x == modality.vocabulary().mask
    neighbors = views.mask.hidden[:, 1:] & views.mask.hidden[:, :-1]
    assert neighbors.any()
    assert (masked[:, 1:] == masked[:, :-1])[neighbors].all()
    assert masked.any()
    assert (views.mask.hidden & ~masked).any()


def test_infilling_takes_out_what_its_target_holds(corpus: str) -> None:
    modality = made(corpus, infill=0.3)
    spec = modality.streams()["text"]
    assert (spec.num_tokens, spec.target_tokens, spec.vocab) == (24 - 7 + 2, 7 + 2, 302)
    views = only(modality, ViewPlan(num_global=1, target=True))
    assert views.target is not None
    assert views.x.shape == (16, 19)
    assert views.target.shape == (16, 9)
    for x, target in zip(views.x.tolist(), views.target.tolist(), strict=True):
        assert [i for i in x if i >= 300] == [301, 300]
        assert [i for i in target if i >= 300] == [301, 300]
        assert x[0] < 300  # a text begins with what is shown
        assert target[0] == 301
        assert x[-1] == 300
    assert modality.provides("text") == {"local", "target"}
    assert spec.num_tokens + spec.target_tokens == 24 + 2 * 2


def test_a_context_and_its_targets(corpus: str) -> None:
    plan = ViewPlan(num_global=1, mask_ratio=(0.15, 0.2), context_ratio=(0.85, 1.0), num_masks=3)
    modality = made(corpus)
    views = only(modality, plan)
    assert len(views.masks) == 4
    assert not (views.x == modality.vocabulary().sep).any()
    for target in views.masks[1:]:
        assert (views.masks[0].hidden | ~target.hidden).all()
        for row in target.hidden:
            places = row.nonzero().flatten()
            assert int(places[-1] - places[0]) + 1 == len(places)  # one span
    with pytest.raises(ValueError, match="pack=True"):
        only(made(corpus, pack=False), plan)


def test_views_are_the_same_on_any_ranks_and_workers(corpus: str) -> None:
    modality = made(corpus, mask_group=8)
    plan = ViewPlan(num_clean=1, num_global=2, num_local=1, mask_ratio=(0.1, 0.5), corrupt=True, target=True)
    whole = batch_of(modality, plan, 3)
    halves = [batch_of(modality, plan, 3, rank, 2) for rank in (0, 1)]
    for i, views in enumerate(whole):
        for name in ("x", "valid", "target"):
            value = getattr(views, name)
            if value is not None:
                parts = [getattr(h[i], name).unflatten(0, (views.num_views, -1)) for h in halves]
                assert torch.equal(torch.cat(parts, 1).flatten(0, 1), value), name
    steps = StepBatches(modality, {"text": plan}, 16, 0, 0, 1, final=True)
    for workers in (1, 2):
        loader = DataLoader(steps, batch_size=None, sampler=range(2, 4), num_workers=workers)
        batch = list(loader)[1][0]
        for views, expected in zip(batch, whole, strict=True):
            assert torch.equal(views.x, expected.x)
            assert all(
                torch.equal(a.hidden, b.hidden) for a, b in zip(views.masks, expected.masks, strict=True)
            )


def test_a_saved_vocabulary_reads_other_texts_alike(corpus: str, tmp_path: Path) -> None:
    modality = made(corpus)
    state = json.loads(json.dumps(modality.state()))
    (tmp_path / "other.txt").write_text(
        "\n".join(f"completely different {i} naïve ümlaut 東京" for i in range(30))
    )
    again = made(str(tmp_path / "other.txt"))
    fresh = again.state()
    again.restore(state)
    assert again.state() == state != fresh
    text = "the cat sees naïve 東京 [MASK] ¶"
    samples = [Sample(text, 0), Sample(text.encode(), 1)]
    views = clean_views(again, samples, "text")
    assert torch.equal(views.x, clean_views(modality, samples, "text").x)
    assert torch.equal(views.x[0], views.x[1])
    assert not np.isin(views.x[views.valid].numpy(), [0, 1, 2]).any()  # no text spells a special id


def test_the_training_of_the_tokenizer_is_repeatable_and_blind_to_validation(
    corpus: str, tmp_path: Path
) -> None:
    state = made(corpus).state()
    assert made(corpus).state() == state
    rows = [json.loads(line) for line in Path(corpus).read_text().splitlines()]
    for i in range(9, len(rows), 10):
        rows[i]["text"] = "zzqzzq zzqzzq"
    (tmp_path / "changed.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert made(str(tmp_path / "changed.jsonl")).state() == state


def test_capitals_read_as_small_letters_where_asked(corpus: str) -> None:
    plain, small = made(corpus).vocabulary(), made(corpus, lower=True).vocabulary()
    assert small.encode(["The CAT"])[0].ids.tolist() == small.encode(["the cat"])[0].ids.tolist()
    assert plain.encode(["The CAT"])[0].ids.tolist() != plain.encode(["the cat"])[0].ids.tolist()
    assert plain.encode(["the cat"])[0].ids.tolist() == small.encode(["the cat"])[0].ids.tolist()


def test_a_loaded_tokenizer_keeps_its_ids(corpus: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "un", "##believ", "##ably"]
    (tmp_path / "vocab.txt").write_text("\n".join(n for n in names if n != "unbelievably"))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    for path in (tmp_path / "bert", tmp_path / "bert" / "tokenizer.json"):
        modality = made(corpus, tokenizer=str(path))
        words = modality.vocabulary()
        assert (words.pad, words.sep, words.mask, words.size) == (1, 3, 4, len(names) - 1)
        (tokens,) = words.encode(["the cat unbelievably [MASK]"])
        assert tokens.starts.tolist()[:5] == [True, True, True, False, False]
        assert 4 not in tokens.ids
        assert "".join(words.pieces(tokens.ids[:5].tolist())) == " the cat unbelievably"
        views = only(modality, ViewPlan(num_global=1, mask_ratio=RATIO, corrupt=True, target=True))
        assert int(views.x.max()) < modality.streams()["text"].vocab


def test_baselines_and_pictures(corpus: str) -> None:
    modality = made(corpus)
    data: Any = modality.dataset("val")
    views = clean_views(modality, [data[i] for i in range(5)], "text")
    baselines = modality.baselines()
    assert baselines["raw"](views).shape == (5, 24)
    counts = baselines["tfidf"](views)
    assert len(counts) == 5
    torch.testing.assert_close(counts.norm(dim=1), torch.ones(5))
    cards = modality.pictures(views)
    assert cards.shape == (5, 110, 200, 3)
    assert all((card < 128).any() for card in cards)
    plan = ViewPlan(num_clean=1, num_global=1, mask_ratio=(0.4, 0.4), corrupt=True, target=True)
    (figure,) = modality.figures(batch_of(modality, plan))
    assert figure.image.dtype == np.uint8
    gray = (figure.image == 206).all(-1)
    orange = (figure.image == np.array([190, 80, 0])).all(-1)
    assert gray.sum() > 2000  # letters have gray edges, struck words a gray ground
    assert orange.any()
    (plain,) = modality.figures(batch_of(modality, ViewPlan(num_clean=1)))
    assert (plain.image == 206).all(-1).sum() < 500


def test_texts_of_several_lines_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "verse.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"line {i}\n\tand\r\nnext\n"}) for i in range(20)))
    modality = made(str(path))
    (figure,) = modality.figures(batch_of(modality, ViewPlan(num_clean=1, num_global=1)))
    assert (figure.image < 128).any()
    assert (modality.pictures(batch_of(modality, ViewPlan(num_clean=1))[0]) < 128).any()


def test_samples_that_are_no_text(corpus: str) -> None:
    modality, rng = made(corpus), RowRandom((0, 0), 0, 1, 1)
    for data, words in ((b"\xff\xfe bad", "no UTF-8"), ("", "holds no text"), (3, "want a text, got int")):
        with pytest.raises(Unreadable, match=words):
            modality.collate([Sample(data, 0)], {"text": ViewPlan(num_clean=1)}, rng)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab": 100}, "modality.vocab=100: want 259"),
        ({"length": 2}, "modality.length=2"),
        ({"local_length": 25}, "modality.local_length=25"),
        ({"crop": (0.5, 1.0)}, "pack=False"),
        ({"replacement": (0.8, 0.3)}, "modality.replacement"),
        ({"infill": 0.15, "pack": False}, "pack=True"),
        ({"span_p": 0.0}, "modality.span_p=0.0"),
    ],
)
def test_limits(corpus: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        made(corpus, **options)


def test_a_tokenizer_that_is_none(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "tokenizer.json", "empty"):
        with pytest.raises(ValueError, match=r"modality\.tokenizer="):
            made(corpus, tokenizer=str(tmp_path / name)).streams()


def test_the_demo_has_classes_that_raw_ids_do_not_tell() -> None:
    modality = Text(Text.Config()).fit()
    train: Any = modality.dataset("train")
    val: Any = modality.dataset("val")
    assert len(train) > 2000
    assert len(train.classes) == 9
    assert (np.bincount(val.labels[val.labels >= 0], minlength=9) > 10).all()
    assert len(set(modality.vocabulary().content)) > 3000
