"""Tables in one JSON document: a list of objects, pandas' layouts, and COCO's pictures with annotations.

COCO's file (Lin et al., ECCV 2014, arXiv 1405.0312) becomes a row for each picture: `file_name`, `caption` with all of
its captions, `label` where all of its annotations name one category. LLaVA's is a list with `image` and
`conversations`, which `chat` reads.
State: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multissl.plain_data import parse_json
from multissl.sources.encodings import decode_text
from multissl.sources.reading import unpacked
from multissl.sources.rows import Bad, Rows, json_rows

MOST_VALUES = 1 << 30
"""Values of a document that is a table."""
SPEAKER, SAID = ("role", "from"), ("content", "value")
"""What the entries of a message are called, by OpenAI's and by ShareGPT's format."""
ANSWERS = ("assistant", "gpt", "model", "bot", "chatgpt")
"""Who gives answers in a conversation."""


def json_table(path: str) -> Rows:
    """Return the rows of a JSON document, or of JSON lines that are called so."""
    text = decode_text(unpacked(path)).removeprefix("\ufeff")
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{"):
        return json_rows(path)
    document = parse_json(text, path, MOST_VALUES)
    rows = _rows(document)
    if rows is None:
        raise ValueError(
            "a JSON file that holds no table: want a list of objects, one object per line, columns of equal length, or "
            "COCO's images and annotations"
        )
    return [
        row if isinstance(row, dict) else Bad(f"entry {place} is no JSON object")
        for place, row in enumerate(rows)
    ]


def json_lines(path: str) -> Rows:
    """Return the rows of JSON lines, or of a JSON document that is called so."""
    rows = json_rows(path)
    if rows and all(isinstance(row, Bad) for row in rows):
        try:
            return json_table(path)
        except ValueError:  # what breaks its lines says more
            return rows
    return rows


def chat(messages: Any, answers: bool = False) -> str | None:
    """Return the text of a conversation, a list of messages, line by line; None for what is no conversation.

    `answers` leaves out what the user and the system say, as captions do; LLaVA's sign for the picture is left out.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        return None
    lines = []
    for message in messages:
        if not isinstance(message, Mapping):
            return None
        said = next((message[key] for key in SAID if key in message), None)
        if isinstance(said, Sequence) and not isinstance(said, str):  # parts, each of a kind
            said = " ".join(
                p["text"] for p in said if isinstance(p, Mapping) and isinstance(p.get("text"), str)
            )
        if not isinstance(said, str):
            return None
        speaker = str(next((message[key] for key in SPEAKER if key in message), "")).lower()
        if not answers or speaker in ANSWERS:
            lines.append(said.replace("<image>", "").strip())
    return "\n".join(line for line in lines if line)


def _rows(document: Any) -> list[Any] | None:
    """Return the rows of a document by its layout; None where it is no table."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict) or not document:
        return None
    if isinstance(document.get("images"), list) and isinstance(document.get("annotations"), list):
        return _coco(document)
    columns, data = document.get("columns"), document.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, columns), row, strict=False)) for row in data]  # orient="split"
    lists = [value for value in document.values() if isinstance(value, list)]
    tables = [value for value in lists if value and all(isinstance(row, dict) for row in value)]
    if len(tables) == len(document) == 1:
        return tables[0]
    if len(lists) == len(document) and len({len(value) for value in lists}) == 1:
        return [dict(zip(document, row, strict=True)) for row in zip(*lists, strict=True)]
    if len(tables) == 1:
        return tables[0]
    if all(isinstance(value, dict) for value in document.values()):  # pandas' default: column, index, cell
        index = dict.fromkeys(key for value in document.values() for key in value)
        return [{name: value.get(key) for name, value in document.items()} for key in index]
    return None


def _coco(document: dict[str, Any]) -> list[Any]:
    """Return a row for each picture with what its annotations say."""
    categories = document.get("categories")
    categories = categories if isinstance(categories, list) else []
    names = {_key(c, "id"): _key(c, "name") for c in categories if isinstance(c, dict)}
    captions: dict[Any, list[str]] = {}
    classes: dict[Any, set[Any]] = {}
    for note in document["annotations"]:
        if not isinstance(note, dict):
            continue
        if isinstance(note.get("caption"), str):
            captions.setdefault(_key(note, "image_id"), []).append(note["caption"])
        if note.get("category_id") is not None:
            category = _key(note, "category_id")
            classes.setdefault(_key(note, "image_id"), set()).add(names.get(category, category))
    rows: list[Any] = []
    for image in document["images"]:
        if not isinstance(image, dict):
            rows.append(image)
            continue
        row = dict(image)
        if captions:
            row["caption"] = captions.get(_key(image, "id"))
        if classes:
            own = classes.get(_key(image, "id"), set())
            row["label"] = next(iter(own)) if len(own) == 1 else None
        rows.append(row)
    return rows


def _key(entry: dict[str, Any], name: str) -> str | int | float | None:
    """Return a number or name by which COCO's lists refer to each other; raise a ValueError for a list or mapping."""
    value = entry.get(name)
    if isinstance(value, list | dict):
        raise ValueError(f"a COCO file whose {name!r} is {value!r:.40}: want a number or a text")
    return value
