"""Documents that are pages, conversations, words for nothing, or texts of another encoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multissl.modalities.text.files import LONGEST, read_texts
from multissl.modalities.text.markup import without_markup
from multissl.sources.rows import Bad

PAGE = """<!DOCTYPE html><html><head><title>t</title><style>p {color: red}</style></head>
<body><h1>Head &amp; tail</h1><p>One <b>bold</b> word.<br>Next</p><script>alert("x < y")</script></body></html>"""


def test_pages_are_read_as_their_text() -> None:
    assert without_markup(PAGE) == "Head & tail\nOne bold word.\nNext"
    assert without_markup("Good film.<br /><br />Very good.") == "Good film.\nVery good."


@pytest.mark.parametrize(
    "text", ["a < b and c > d", "the <b> tag is bold", "if x<y: pass", "vector<int> v; a->b"]
)
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert without_markup(text) == text


def test_pages_in_files_folders_and_tables(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / "pages").mkdir(exist_ok=True)
        (tmp_path / "pages" / f"{i}.html").write_text(PAGE.replace("tail", f"tail {i}"))
    texts = read_texts(str(tmp_path / "pages"), "all").texts
    assert sorted(map(str, texts))[0] == "Head & tail 0\nOne bold word.\nNext"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": f"<p>page {i}</p>"}) for i in range(12)))
    assert read_texts(str(tmp_path / "a.jsonl"), "all").texts == [f"page {i}" for i in range(12)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_texts_of_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    lines = [f"Zeile {i} über Bäume" for i in range(12)]
    (tmp_path / "a.txt").write_bytes("\r\n".join(lines).encode(encoding))
    assert read_texts(str(tmp_path / "a.txt"), "all").texts == lines


def test_conversations_are_their_messages(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": [{"text": "a"}]},
            ]
        }
        for i in range(12)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_texts(str(tmp_path / "a.jsonl"), "all").texts == [f"q{i}\na" for i in range(12)]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "N/A", "NULL", "<NA>", ""])
def test_words_for_nothing_are_no_documents_and_no_labels(tmp_path: Path, word: str) -> None:
    rows = [f"{word if i % 4 == 0 else f'text {i}'},{word if i % 3 == 0 else 'ab'[i % 2]}" for i in range(12)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows))
    found = read_texts(str(tmp_path / "a.csv"), "all")
    assert [isinstance(text, Bad) for text in found.texts] == [i % 4 == 0 for i in range(12)]
    assert found.labels.tolist() == [-1 if i % 3 == 0 else i % 2 for i in range(12)]
    assert found.classes == ["a", "b"]
    lines = [json.dumps({"text": word if i % 4 == 0 else f"text {i}"}) for i in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert sum(isinstance(text, Bad) for text in read_texts(str(tmp_path / "a.jsonl"), "all").texts) == 3
    (tmp_path / "a.txt").write_text("\n".join([word or " ", *(f"text {i}" for i in range(12))]))
    assert sum(isinstance(text, str) for text in read_texts(str(tmp_path / "a.txt"), "all").texts) == 12


def test_a_cell_of_many_characters_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text\n" + "word " * 500_000 + "\n" + "\n".join(f"t{i}" for i in range(12))
    )
    texts = read_texts(str(tmp_path / "a.csv"), "train").texts
    assert len(texts) == 25 + 11
    assert max(len(text) for text in texts if isinstance(text, str)) == LONGEST
