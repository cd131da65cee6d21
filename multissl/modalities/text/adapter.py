"""Text: documents as windows of tokens, with spans hidden, replaced or taken out.

A row of a global view begins in its document and, with `pack`, goes on with those that follow, an end-of-document id
between them, so that every row is full and masks hide equally many tokens in each (T5, RoBERTa); without, it ends with
its document and padding follows (SimCSE). Clean and local views hold nothing but their document. Where counts must not
depend on where documents end (T5's spans, a context and its targets), they are joined without the id between.
Which tokens are hidden: see text_spans. With `infill` the views are T5's inputs, their targets the spans taken out.
Shapes: B samples of this rank, V views, R = V*B rows, L tokens, n of a document.  State: the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import HasText, HiddenWords, Running
from multissl.contract.data import Batch, Raw, Role, Sample, Samples, Unreadable, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Modality, Need, flatten
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.rows import masks_of
from multissl.modalities.text import masks as text_masks
from multissl.modalities.text import probes as text_probes
from multissl.modalities.text import tokenizer
from multissl.modalities.text.baselines import Tfidf
from multissl.modalities.text.files import COLUMNS, FILES, Documents, Passage, Texts, read_texts
from multissl.modalities.text.masks import Replacement, Spans, Words
from multissl.modalities.text.preparation import IdPreparation, preparation_of
from multissl.modalities.text.rows import Rows
from multissl.modalities.text.sizes import check_options, sizes_for
from multissl.modalities.text.spans import GEOMETRIC, Kind, t5_corrupt, t5_mask, t5_spans
from multissl.modalities.text.tokenizer import Tokens, Vocabulary
from multissl.modalities.views import build_views, ids_of, roles, with_masks
from multissl.random import RowRandom
from multissl.sources.rows import Bad


class Text(HasText):
    """Documents of text files and tables."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of text."""

        sizes: ClassVar[tuple[str, ...]] = ("length", "local_length")

        data: str = ""
        """A .txt file (paragraphs, else lines), .jsonl, .csv, .xlsx, .parquet, a pattern or a folder of such tables,
        whose names may say train, val or test, a folder or tar of .txt files, `hf:NAME`; empty: the built-in demo,
        Python's own documentation."""
        column: str = ""
        """Columns of a table that hold the text, joined by commas; empty: text, sentence, content, messages or another
        usual name. data.text is the entry of a nested column."""
        label: str = ""
        """The column that holds the class; empty: label, class or target where there is one."""
        delimiter: str = ""
        """What parts the cells of a .csv file, one character or tab, semicolon, bar; empty: found in the file."""
        missing: tuple[str, ...] = ()
        """More words that stand for a missing cell, beside NA, NaN, null, None and what else pandas takes for one."""
        tokenizer: str = ""
        """A folder with a fast tokenizer, or a tokenizer.json; empty: a byte-level BPE is trained on the texts."""
        vocab: int = 4096
        """Ids of a trained tokenizer."""
        lower: bool = False
        """Whether a trained tokenizer reads capitals as small letters."""
        length: int = 128
        """Tokens of clean and global views; 0: as many as hold nine of ten training documents, up to 256."""
        local_length: int = 32
        """Tokens of local views; 0: three eighths of `length`."""
        pack: bool = True
        """Fill rows up with the documents that follow; False: pad them."""
        same_window: bool = False
        """Every view of a sample shows the same tokens: only what the encoder drops tells them apart (SimCSE)."""
        crop: tuple[float, float] = (1.0, 1.0)
        """Without pack: range of the share of a document, or of `length`, that a global view shows."""
        mask: Kind = "span"
        """What is hidden: tokens (BERT), words, spans of words (SpanBERT), or T5's spans."""
        mask_group: int = 32
        """Samples over which mask ratios are spread evenly; the largest divisor of a rank's samples up to it counts."""
        span_p: float = GEOMETRIC
        """Of mask=span: chance that a span ends after a word."""
        span_words: int = 0
        """Of mask=span: every span has so many words; 0: drawn, 1 to 10."""
        replacement: tuple[float, float] = (0.8, 0.1)
        """Where an objective wants hidden tokens replaced: shares that become the mask id and a random token; the rest
        stays as it is."""
        infill: float = 0.0
        """Share of the tokens that T5's spans take out of the views, to be written as their target; 0: off."""

        def __post_init__(self) -> None:
            check_options(self)

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"local", "mask", "masks", "drop", "target", "corrupt", "coords"}
    )
    suffixes = FILES
    payload = "text"
    plural = "documents"
    shows = MappingProxyType({"tokens": ("length", 1)})
    columns = ("caption", *COLUMNS[:5], "transcript", "alt_text", "alt", *COLUMNS[5:])

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._vocabulary: Vocabulary | None = None
        self._splits: dict[str, Documents] = {}
        self._tfidf: Tfidf | None = None
        self._given: Sequence[Any] = ()

    def __getstate__(self) -> dict[str, Any]:
        # a worker gets its samples by itself
        return {**self.__dict__, "_splits": {}, "_given": (), "_tfidf": None}

    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer, as fitted or restored."""
        if self._vocabulary is None:
            raise self.not_fitted()
        return self._vocabulary

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Load the tokenizer, or train one on the training texts, where none is known yet; choose open lengths.

        Texts that are handed over are those of the baselines too.
        """
        cfg = self.cfg
        if payloads is not None:
            self._given = payloads
        if self._vocabulary is None and cfg.tokenizer:
            self._vocabulary = tokenizer.load_tokenizer(cfg.tokenizer)
        if self._vocabulary is None or cfg.open_sizes():
            texts = [t for t in self._given or self._read("train").texts if isinstance(t, str)]
            self._vocabulary = self._vocabulary or tokenizer.train_bpe(iter(texts), cfg.vocab, cfg.lower)
            self.choose_sizes(texts)
        return self

    def sizes_of(self, payloads: Sequence[Any] | None) -> tuple[dict[str, Any], str]:
        """Return the lengths that suit up to 64 training texts."""
        return sizes_for(payloads or (), self.vocabulary(), self.cfg, not self.cfg.data and not self._given)

    def provides(self, stream: str) -> frozenset[Need]:
        """Without a mask over views and targets of different lengths, without places and equal counts on padding."""
        if self.cfg.infill:
            return frozenset({"local", "target"})
        return self.needs if self.cfg.pack else self.needs - {"coords", "drop"}

    def streams(self) -> dict[str, StreamSpec]:
        """One sequence of ids, the sentinels of `infill` above those of the vocabulary."""
        if self.cfg.open_sizes():
            raise self.not_fitted()
        cfg = self.cfg
        size = self.vocabulary().size
        count, spans = t5_spans(cfg.length, cfg.infill) if cfg.infill else (0, 0)
        spec = StreamSpec(
            kind="sequence", shape=(cfg.length,), num_tokens=cfg.length - count + spans, vocab=size + spans,
            target_dim=size + spans, target_tokens=count + spans, target_kind="classes",
        )  # fmt: skip
        return {"text": spec}

    def dataset(self, split: str) -> Samples:
        """The documents of a split: "train", "val", "test", or "all" of the user's data."""
        if split not in self._splits:
            texts = self._read(split)
            tokens = iter(self.fit().vocabulary().encode([t for t in texts.texts if isinstance(t, str)]))
            readable: list[Tokens] = []
            for row, text in enumerate(texts.texts):
                found = next(tokens) if isinstance(text, str) else None
                if found is not None and not len(found.ids):
                    texts.texts[row] = Bad("the tokenizer finds nothing in it")
                elif found is not None:
                    readable.append(found)
            if not readable:
                reason = next((t.reason for t in texts.texts if isinstance(t, Bad)), "there are none")
                raise ValueError(
                    f"modality.data={self.cfg.data!r}: none of the {len(texts.texts)} documents of"
                    f" {split} can be read: {reason}"
                )
            self._splits[split] = Documents(texts, readable, self.cfg.length)
        return self._splits[split]

    def _read(self, split: str) -> Texts:
        """Return the documents of a split as they are read."""
        cfg = self.cfg
        return read_texts(cfg.data, split, cfg.column, cfg.label, cfg.delimiter, cfg.missing)

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return what is equal for equal documents."""
        return [self._documents(split).contents]

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return a digest of every document, and its label."""
        documents = self._documents(split)
        return [documents.contents, documents.class_numbers()]

    def extent(self, sample: Sample) -> dict[str, float]:
        """Return the number of tokens of a document."""
        return {"tokens": len(self._passage(sample).own.ids)}

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Windows of every role, int64 [V*B, L], which ids are real, masks, targets, and who the samples are."""
        plan, cfg = plans["text"], self.cfg
        passages = [self._passage(s) for s in samples]
        raw: Raw = {**ids_of(samples)}
        for role, count in roles(plan):
            draws = rng.fork(role).rand(count, 2)  # [B, V, 2]: share of a crop, place of a window
            if cfg.same_window and role == "global":
                draws = draws[:, :1].expand(-1, count, -1)
            width = cfg.local_length if role == "local" else cfg.length
            rows = Rows(count, len(samples), width, self.vocabulary().pad)
            for b, (passage, draw) in enumerate(zip(passages, draws.tolist(), strict=True)):
                if role == "global" and cfg.pack:
                    passage = Passage(self._joined(passage, plan))
                for v, (share, place) in enumerate(draw):
                    rows.put(v, b, passage.own, *self._window(role, len(passage.own.ids), share, place))
            if role == "global":
                self._hide(rows, plan, rng.fork("masks"), raw)
            raw[role] = torch.from_numpy(rows.ids.reshape(-1, rows.ids.shape[-1]).astype(np.int64))
            raw[f"{role}_valid"] = torch.from_numpy(rows.valid.reshape(-1, width))
            if plan.coords and role != "clean":
                raw[f"{role}_coords"] = torch.from_numpy(rows.coords.reshape(-1, width, 1))
        return {"text": raw}

    def _passage(self, sample: Sample) -> Passage:
        data = sample.data
        if isinstance(data, Bad):
            raise Unreadable(sample.index, data.reason)
        if isinstance(data, bytes):
            try:
                data = data.decode()
            except UnicodeDecodeError as error:
                raise Unreadable(sample.index, f"no UTF-8 text (byte {error.start})") from error
        if isinstance(data, str) and not data.strip():
            raise Unreadable(sample.index, "holds no text")
        if isinstance(data, str):
            data = Passage(self.vocabulary().encode([data])[0])
        if not isinstance(data, Passage):
            raise Unreadable(sample.index, f"want a text, got {type(data).__name__}")
        if not len(data.own.ids):
            raise Unreadable(sample.index, "the tokenizer finds nothing in it")
        return data

    def _joined(self, passage: Passage, plan: ViewPlan) -> Tokens:
        """The document and those that follow, an id after each where enough tokens to hide remain."""
        cfg = self.cfg
        left = cfg.length - text_masks.most_hidden(plan, cfg.mask, cfg.length) - 2
        left = 0 if cfg.infill or plan.context_ratio else left
        ids, starts, count = [passage.own.ids], [passage.own.starts], len(passage.own.ids)
        for each in passage.following:
            if left > 0 and count < cfg.length:
                ids.append(np.array([self.vocabulary().sep], dtype=np.int32))
                starts.append(np.array([True]))
                left, count = left - 1, count + 1
            ids.append(each.ids)
            starts.append(each.starts)
            count += len(each.ids)
        if count < cfg.length:
            raise ValueError(
                "modality.pack=True fills rows with the documents of a dataset, not of single texts"
            )
        # A document that fills the row by itself keeps its length, for its windows; the others end with the row.
        end = max(len(passage.own.ids), cfg.length)
        return Tokens(np.concatenate(ids)[:end], np.concatenate(starts)[:end])

    def _window(self, role: Role, have: int, share: float, place: float) -> tuple[int, int]:
        """Where a view begins in a document of `have` tokens, and how many it shows."""
        cfg = self.cfg
        if role == "clean":
            return 0, min(have, cfg.length)
        width = min(have, cfg.local_length if role == "local" else cfg.length)
        if role == "global":
            width = max(math.ceil((cfg.crop[0] + (cfg.crop[1] - cfg.crop[0]) * share) * width), 1)
        return min(int(place * (have - width + 1)), have - width), width

    def _hide(self, rows: Rows, plan: ViewPlan, rng: RowRandom, raw: Raw) -> None:
        """Masks of the global views, what is rebuilt, and the ids that stand for what is hidden."""
        cfg, words = self.cfg, self.vocabulary()
        if cfg.infill:
            self._take_out(rows, rng, raw)
            return
        if plan.target:
            raw["target"] = torch.from_numpy(rows.ids.reshape(-1, cfg.length).astype(np.int64))
        if plan.mask_ratio is None:
            return
        if plan.context_ratio is not None:
            if not cfg.pack:
                raise ValueError(
                    "modality.pack=False: a context and its targets need full rows, set pack=True"
                )
            with_masks(raw, draw_masks(plan, "block", (1, cfg.length), cfg.mask_group, rng))
            return
        if plan.corrupt and plan.num_masks > 1:
            raise ValueError("text replaces tokens under one mask: ask for num_masks=1")
        given = Replacement(cfg.replacement, words.mask, words.content) if plan.corrupt else None
        able = rows.valid & ~np.isin(rows.ids, words.spec["special"])
        spans = Spans(cfg.mask, cfg.span_p, cfg.span_words)
        hiding = Words(spans, rows.ids, able, rows.starts, cfg.pack, given)
        with_masks(raw, masks_of(plan, hiding, cfg.mask_group, rng))
        rows.ids = hiding.changed

    def _take_out(self, rows: Rows, rng: RowRandom, raw: Raw) -> None:
        """T5's inputs and targets, which have the same lengths in every row."""
        count, spans = t5_spans(self.cfg.length, self.cfg.infill)
        last = self.streams()["text"].vocab - 1
        inputs, targets = [], []
        lanes = rng.group(1)
        for row, ids in enumerate(rows.ids.reshape(-1, self.cfg.length)):
            hidden = t5_mask(lanes[row % len(lanes)], self.cfg.length, count, spans)
            inputs.append(t5_corrupt(ids, hidden, last))
            targets.append(t5_corrupt(ids, ~hidden, last))
        rows.ids = np.stack(inputs).reshape(*rows.ids.shape[:2], -1)
        raw["target"] = torch.from_numpy(np.stack(targets).astype(np.int64))

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Nothing is left to draw: ids are settled in the worker."""
        given, plan = raw["text"], plans["text"]
        batch: list[Views] = []
        for role, _ in roles(plan, given):
            views = build_views(given[role], "text", role, given)  # x [R, L]
            if not (role == "global" and self.cfg.pack):
                views.valid = given[f"{role}_valid"]
            if plan.coords and role != "clean":
                views.coords = given[f"{role}_coords"]
            if plan.target and role == "global":
                views.target = given["target"]
            batch.append(views)
        return Batch(batch)

    def preparation(self, stream: str) -> IdPreparation:
        """Return how ids become clean views."""
        return preparation_of(self.streams()[stream], tokenizer.as_json(self.vocabulary()))

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        """Ids as they are, and TF-IDF of words and of pairs of neighboring words."""
        if self._tfidf is None:
            texts = [t for t in self._given if isinstance(t, str)] or self._texts("train")
            self._tfidf = Tfidf(texts, self.vocabulary().text)
        return {"raw": flatten, "tfidf": self._tfidf}

    def hidden_words(self, split: str, count: int) -> HiddenWords:
        """Some words of a split, each hidden whole in a row of its own, and what count models pay for them."""
        data, train = self._documents(split), self._documents("train")
        return text_probes.hidden_words(data, train, self.vocabulary(), self.cfg.length, count)

    def running(self, split: str, count: int) -> Running:
        """Some documents of a split as rows in which every token is predicted once."""
        texts, train = self._texts(split), self._texts("train")
        return text_probes.running(
            self._documents(split), texts, train, self.vocabulary(), self.cfg.length, count
        )

    def _documents(self, split: str) -> Documents:
        return cast(Documents, self.dataset(split))

    def _texts(self, split: str) -> list[str]:
        """The readable documents of a split as the tokenizer reads them."""
        cfg = self.cfg
        listed = self._read(split).texts
        texts = [t for t in listed if isinstance(t, str)]
        return [t.lower() for t in texts] if cfg.lower and not cfg.tokenizer else texts

    def figures(self, batch: Batch) -> list[Figure]:
        """The words of some samples, hidden ones struck."""
        from multissl.modalities.text.figures import text_panel

        return text_panel([v for v in batch if v.stream == "text"], self.vocabulary())

    def pictures(self, views: Views) -> np.ndarray:
        """The beginnings of clean views, written out: uint8 [R, H, W, 3]."""
        from multissl.modalities.text.figures import cards

        return cards(views, self.vocabulary())

    def state(self) -> dict[str, Any]:
        """The vocabulary."""
        return {"vocabulary": tokenizer.as_json(self.vocabulary()), **self.sizes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read new texts by the vocabulary of the training."""
        self.restore_sizes(state)
        self._vocabulary = tokenizer.from_json(state["vocabulary"])
        self._splits, self._tfidf = {}, None
