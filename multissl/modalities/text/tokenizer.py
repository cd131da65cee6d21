"""Tokens of text: a byte-level BPE trained on the spot, or a fast tokenizer from a local folder.

Byte-pair encoding: Sennrich et al., ACL 2016, arXiv 1508.07909; on bytes: GPT-2 (Radford et al. 2019). Bytes leave no
unknown symbol. The three ids of a trained vocabulary that stand for no text (padding, end of a document, hidden token)
lie below the tokens of the BPE, so no text can spell them; a loaded tokenizer keeps its own and gets those it lacks.
Training is deterministic: the same texts give the same file on any machine.
Shapes: n tokens of a document.  State: the tokenizer's own JSON and the special ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multissl import registry

BYTES = 256
SPECIAL = 3
"""Padding, end of a document and hidden token: ids 0, 1 and 2 of a trained vocabulary."""
LONGEST_WORD = 64
"""Characters; longer words are cut: merging within a line without spaces takes time by the square of its length."""


class Tokens(NamedTuple):
    """A document."""

    ids: np.ndarray
    """int32 [n]"""
    starts: np.ndarray
    """bool [n], True where a word begins."""


class Vocabulary:
    """Texts to ids and back."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.size: int = spec["size"]
        self.pad: int = spec["pad"]
        self.sep: int = spec["sep"]
        self.mask: int = spec["mask"]
        self._shift: int = spec["shift"]
        self._backend: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None}  # a worker makes its own

    @property
    def backend(self) -> Any:
        """The tokenizer of the tokenizers library."""
        if self._backend is None:
            self._backend = library().Tokenizer.from_str(self.spec["tokenizer"])
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = True  # "[MASK]" in a text is text
        return self._backend

    @property
    def content(self) -> np.ndarray:
        """The ids that stand for text, int32 [*]."""
        known = np.arange(self._shift, self._shift + self.backend.get_vocab_size(), dtype=np.int32)
        return np.setdiff1d(known, np.array(self.spec["special"], dtype=np.int32))

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids and word starts of every text, without special ids."""
        found = []
        for first in range(0, len(texts), 1024):  # the library's own objects are large
            for each in self.backend.encode_batch(
                list(texts[first : first + 1024]), add_special_tokens=False
            ):
                ids = np.array(each.ids, dtype=np.int32) + np.int32(self._shift)
                words = np.array([-1 if w is None else w for w in each.word_ids], dtype=np.int64)
                starts = np.ones(len(ids), dtype=bool)
                starts[1:] = words[1:] != words[:-1]
                found.append(Tokens(ids, starts))
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Return ids written out, without special ones."""
        special = set(self.spec["special"])
        own = [i - self._shift for i in ids if i not in special]
        return self.backend.decode(own, skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id reads as, with a space before it where a word begins."""
        names = {self.pad: "", self.sep: " ¶", self.mask: " [hidden]"}
        decoded = []
        for i in ids:
            token = names.get(i)
            if token is None:
                raw = self.backend.id_to_token(i - self._shift) or "?"
                token = self.backend.decode([i - self._shift], skip_special_tokens=False)
                begins = raw[0] in "Ġ▁" or (
                    self._shift == 0 and not raw.startswith("##") and not token[:1].isspace()
                )
                token = f" {token.strip()}" if begins else token.removeprefix("##")
            decoded.append(token)
        return decoded


def library() -> Any:
    """The tokenizers library, on one thread: its threads do not survive the fork into data workers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return registry.require("tokenizers")


def train_bpe(texts: Iterable[str], size: int, lower: bool = False) -> Vocabulary:
    """A byte-level BPE of at most `size` ids, specials among them, from texts; smaller where these hold too little.

    `lower` makes it read capitals as small letters.
    """
    made = library()
    byte_level = made.pre_tokenizers.ByteLevel
    model = made.Tokenizer(made.models.BPE())
    steps = [made.normalizers.Lowercase()] if lower else []
    model.normalizer = made.normalizers.Sequence([*steps, made.normalizers.Prepend(" ")])
    pieces = made.pre_tokenizers.Split(made.Regex(rf"\S{{{LONGEST_WORD}}}"), "isolated")
    model.pre_tokenizer = made.pre_tokenizers.Sequence([pieces, byte_level(add_prefix_space=False)])
    model.decoder = made.decoders.ByteLevel()
    trainer = made.trainers.BpeTrainer(
        vocab_size=size - SPECIAL,
        special_tokens=[],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
        max_token_length=LONGEST_WORD,
    )
    model.train_from_iterator(texts, trainer)
    spec = {"pad": 0, "sep": 1, "mask": 2, "special": [0, 1, 2], "shift": SPECIAL, "size": size}
    return Vocabulary({**spec, "tokenizer": model.to_str()})


def load_tokenizer(path: str) -> Vocabulary:
    """A fast tokenizer of a local folder as transformers saves it, or a tokenizer.json by itself."""
    option = f"modality.tokenizer={path!r}"
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{option}: no such file or folder; leave it empty to train one on the texts")
    names: dict[str, int | None]
    if place.is_file():
        try:
            backend = library().Tokenizer.from_str(place.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"{option} is no tokenizer.json ({error})") from None
        ids = {t: backend.token_to_id(t) for t in ("[PAD]", "[SEP]", "[MASK]", "<pad>", "</s>", "<mask>")}
        given = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        names = {
            "pad": _first(ids, "[PAD]", "<pad>"),
            "sep": _first(ids, "[SEP]", "</s>"),
            "mask": _first(ids, "[MASK]", "<mask>"),
        }
    else:
        library()
        try:
            _check_class(place)
            loaded = registry.require("transformers").AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{option} holds no tokenizer ({reason})") from None
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"{option} is a slow tokenizer, which tells no words: give one with tokenizer.json"
            )
        given = set(loaded.all_special_ids)
        sep = loaded.sep_token_id if loaded.sep_token_id is not None else loaded.eos_token_id
        names = {"pad": loaded.pad_token_id, "sep": sep, "mask": loaded.mask_token_id}
    size = backend.get_vocab_size(with_added_tokens=True)
    found: dict[str, int] = {}
    for name, value in names.items():
        found[name] = size if value is None or value in found.values() else value
        size += found[name] == size
    special = sorted(given | set(found.values()))
    return Vocabulary({**found, "special": special, "shift": 0, "size": size, "tokenizer": backend.to_str()})


def _check_class(place: Path) -> None:
    """Refuse a folder that names another class of transformers as its tokenizer.

    Whatever class is named gets loaded from the folder, and one such as AutoModel forgets that no code is to be run.
    """
    transformers = registry.require("transformers")
    config, _ = transformers.PreTrainedConfig.get_config_dict(str(place), local_files_only=True)
    path = place / "tokenizer_config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for kind in (own.get("tokenizer_class"), config.get("tokenizer_class")):
        stem = str(kind or "").removesuffix("Fast")
        for name in (stem, f"{stem}Fast"):  # it is looked up by either name
            found = getattr(transformers, name, None)
            if found and not (
                isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
            ):
                raise ValueError(f"tokenizer_class={kind!r} is no tokenizer, or its package is missing")


def _first(ids: dict[str, int | None], *wanted: str) -> int | None:
    return next((ids[name] for name in wanted if ids[name] is not None), None)


def as_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """What `Vocabulary` takes back, as JSON values; the tokenizer itself as nested values, not as a string."""
    return {**vocabulary.spec, "tokenizer": json.loads(vocabulary.spec["tokenizer"])}


def from_json(state: dict[str, Any]) -> Vocabulary:
    """The vocabulary of `as_json`."""
    return Vocabulary({**state, "tokenizer": json.dumps(state["tokenizer"], ensure_ascii=False)})
