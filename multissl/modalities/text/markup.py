"""Documents of HTML as their text: tags, scripts and styles are taken out, entities become what they stand for.

A text that only mentions a tag stays as it is: what counts is a beginning as of a page, or tags that end or break
lines.
State: none.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

PAGE = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
TAGS = re.compile(
    r"<br\s*/?>|</(?:p|div|span|a|li|ul|td|tr|table|h[1-6]|body|html|em|strong)\s*>", re.IGNORECASE
)
SILENT = frozenset({"script", "style", "template", "noscript", "head"})
"""Elements whose text is not shown."""
INLINE = frozenset(
    {"a", "abbr", "b", "code", "em", "i", "mark", "small", "span", "strong", "sub", "sup", "u"}
)
"""Elements that do not end a line."""


def without_markup(text: str) -> str:
    """Return a document without the tags of HTML, or as it is where it is none."""
    if "<" not in text or not (PAGE.match(text) or TAGS.search(text)):
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    """Collects the text that a page shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line, or a stretch that is not shown."""
        self.silent += tag in SILENT
        if tag not in INLINE:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line at <br/> and its like, which hold nothing."""
        if tag not in INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """End a line, or a stretch that is not shown."""
        if tag in SILENT and self.silent:
            self.silent -= 1
        if tag not in INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        if not self.silent:
            self.parts.append(data)
