"""What pages are made of: the frame of a page, tables, pictures. All of it is one text that opens without a network.

State: none.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""It forbids the browser to load anything, so a page that needs the network would show it at once."""


def document(
    heading: str, verdict: str, sections: Mapping[str, str], *, mood: str = "", last: str = ""
) -> str:
    """Return a page; heading and verdict are plain text, sections and `last` HTML, and empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(verdict)}</title><style>{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}</style>"
        f'</head>\n<body><h1>{escape(heading)}</h1><p class="verdict{mood}">{escape(verdict)}</p>'
        + "".join(f"<section><h2>{title}</h2>{body}</section>\n" for title, body in sections.items() if body)
        + f"{last}</body></html>\n"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, each of them HTML, as a table; nothing of none."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{body}</table></div>' if rows else ""


def wrapped(kind: str, parts: Iterable[str]) -> str:
    """Return parts side by side; nothing of none."""
    body = "".join(parts)
    return f'<div class="{kind}">{body}</div>' if body else ""


def picture(image: np.ndarray, title: str, caption: str = "") -> str:
    """Return an image, uint8 [H, W, 3], with its title and caption, which are plain text."""
    from PIL.Image import fromarray

    png = io.BytesIO()
    fromarray(image).save(png, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return (
        f'<figure><b>{escape(title)}</b><img src="{source}" alt="{escape(title)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
