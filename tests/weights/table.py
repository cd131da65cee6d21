"""Writes the table of docs/weights.md, from what the tests compare.

python -m tests.weights.table
"""

from __future__ import annotations

from pathlib import Path

from multissl import registry
from multissl.weights.layouts.base import Published
from multissl.weights.loading import published
from multissl.weights.released import licence_of
from tests.golden.test_golden_layouts import CLIPS, OTHERS, PICTURES
from tests.weights.test_libraries import HUGGING_FACE, TIMM

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
BEGIN, END = "<!-- table: python -m tests.weights.table -->", "<!-- end of table -->"
COMPARED_ELSEWHERE = {
    "torchvision_vit": "torchvision, at its own size",
    "dinov2": "golden encoders_dinov2/dinov2_vit",
    "mae": "timm's ViT under these names",
    "videomae": "Hugging Face's VideoMAE under these names",
    "ast": "Hugging Face's AST under these names",
    "data2vec_vision": "timm's Beit",
    "openai_clip": "Hugging Face's CLIP under these names",
    "open_clip": "Hugging Face's CLIP under these names",
}
"""What tests of their own compare: in `test_libraries.py`, `test_official_names.py` and `tests/golden`."""


def rows() -> list[str]:
    """Return a row for every layout of transformers."""
    golden = {**PICTURES, **CLIPS, **OTHERS}
    lines = []
    for name in registry.GROUPS["layouts"]:
        layout = published(name)
        if layout is None:
            continue
        variants = [v for v, how in golden.items() if how.layout == name]
        libraries = [*HUGGING_FACE, *TIMM]
        models = dict.fromkeys(m.kind for m in libraries if m.layout == name)
        sizes = max((len(m.sizes) for m in libraries if m.layout == name), default=0)
        seen = f"{', '.join(models)} ({sizes} size{'s' * (sizes > 1)})" if models else "-"
        licence = licence_of(name, None, {}) or "as the model's card says"
        lines.append(
            f"| `{name}` | {layout.title} | {told(layout)} | {', '.join(variants) or '-'} | "
            f"{COMPARED_ELSEWHERE.get(name, seen)} | {licence} |"
        )
    return lines


def told(layout: Published) -> str:
    """Return how a layout is recognised: by content, or because somebody says so."""
    if layout.name in ("plain_vit", "clip_names"):
        return "by content, and asks whose it is"
    named = {how.layout for how in (*PICTURES.values(), *CLIPS.values()) if how.named}
    content = {how.layout for how in (*PICTURES.values(), *CLIPS.values(), *OTHERS.values()) if not how.named}
    if layout.name in named:
        return "named, or by its own sign" if overrides(layout) else "named"
    return "by content" if layout.name in content or overrides(layout) else "named"


def overrides(layout: Published) -> bool:
    """Return whether something in a file can tell the layout."""
    return "Return False" not in (type(layout).matches.__doc__ or "")


def table() -> str:
    """Return the table."""
    head = "| `--init NAME:FILE` | weights of | recognised | golden variants | compared with its library | licence |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows()])


def written(page: str) -> str:
    """Return a page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
