"""What a file is by its name or, where its name does not say, by its first bytes; what reads those that are left out.

State: none.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping

from multissl.registry import EXTRAS

NAMED = re.compile(r"\.[a-z][a-z0-9]{0,7}")
"""A suffix that says what a file is; that of scan.2024 or v1.5 does not."""
HEAD = 132
"""Bytes that a file is known by."""
MAGIC = (
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (0, b"GIF8", ".gif"), (8, b"WEBP", ".webp"),
    (0, b"II*\x00", ".tif"), (0, b"MM\x00*", ".tif"), (0, b"BM", ".bmp"), (4, b"jP  ", ".jp2"),
    (8, b"WAVE", ".wav"), (0, b"fLaC", ".flac"), (0, b"OggS", ".ogg"), (0, b"ID3", ".mp3"), (0, b"\xff\xfb", ".mp3"),
    (8, b"AIFF", ".aiff"), (0, b"caff", ".caf"), (0, b".snd", ".au"),
    (4, b"ftypavif", ".avif"), (4, b"ftypheic", ".heic"), (4, b"ftypmif1", ".heic"), (4, b"ftypM4A", ".m4a"),
    (4, b"ftyp3g", ".3gp"), (4, b"ftypqt", ".mov"), (4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"), (0, b"\x00\x00\x01\xba", ".mpg"), (0, b"0&\xb2u\x8ef\xcf\x11", ".wmv"),
    (0, b"FLV\x01", ".flv"), (0, b"\x93NUMPY", ".npy"), (0, b"PAR1", ".parquet"),
    (128, b"DICM", ".dcm"),
)  # fmt: skip
"""Place, bytes and suffix of the formats that are known by content, the special before the general."""
PACKAGES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    **dict.fromkeys((".dcm", ".dicom"), f"'multissl[{EXTRAS['pydicom']}]'"),
    **dict.fromkeys((".avif", ".jp2", ".j2k", ".jpx", ".j2c"), "'pillow>=11.3'"),
    **dict.fromkeys((".m4a", ".aac", ".wma", ".amr", ".m4b", ".mka", ".ac3"), f"'multissl[{EXTRAS['av']}]'"),
}
"""What to install for a format that is not read otherwise."""
HIDDEN = "hidden (their names begin with a dot)"
"""What files and members are counted as that would be samples, were their names others."""
MENTIONED = 8
"""Reasons that a line names, the most frequent ones."""


def file_kind(path: str) -> str:
    """Return the suffix of a file in lower case, or that of its content where its name has none; "" where unknown."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if NAMED.fullmatch(suffix) else content_kind(path)


def content_kind(path: str) -> str:
    """Return the suffix that the first bytes of a regular file stand for, "" where they are not known."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    return next((suffix for place, magic, suffix in MAGIC if head[place:].startswith(magic)), "")


def describe_left_out(accepted: int, left_out: Mapping[str, int], unit: str) -> str:
    """Return the sentence that says how much was accepted, and what was left out with the reason or the way out."""
    total = accepted + sum(left_out.values())
    return f"took {accepted:,} of {total:,} {unit}; left out: {', '.join(counted(left_out))}"


def counted(left_out: Mapping[str, int]) -> list[str]:
    """Return reasons with their counts and what to install, the most frequent first; the last says how many more."""
    reasons = []
    for reason, count in Counter(left_out).most_common(MENTIONED):
        advice = f" (pip install {PACKAGES[reason]})" if reason in PACKAGES else ""
        reasons.append(f"{reason} {count:,}{advice}")
    if len(left_out) > MENTIONED:
        reasons[-1] += f" and {len(left_out) - MENTIONED} more"
    return reasons
