"""A number in a header costs nothing: no more than a gigabyte and five seconds, whatever it says, for any reader."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl.contract.data import Sample, Unreadable
from multissl.modalities.audio.files import Clip
from multissl.modalities.image.files import SUFFIXES, load
from multissl.modalities.rl.recorded import read_replay
from multissl.modalities.tabular.tables import read_table
from multissl.modalities.video.files import load_clip
from multissl.sources.opening import open_source
from tests.foreign.cases import folder, picture
from tests.helpers.paired_data import tone
from tests.sources.test_limits import lying_png

SECONDS, BYTES = 5, 1 << 30
HUGE = 2**31 - 5


def read_picture(path: str) -> Any:
    return load(Sample(path, 0), 3)


def read_sound(path: str) -> Any:
    clip = Clip(Sample(path, 0), 16_000)
    return clip.cut(0, min(clip.length, 16_000))


def read_film(path: str) -> Any:
    return load_clip(Sample(path, 0))


def read_archive(path: str) -> list[Any]:
    data = open_source(path, "all", SUFFIXES)
    return [load(sample, 3) for sample in data]


def patched(content: bytes, place: int, form: str, value: int) -> bytes:
    made = bytearray(content)
    struct.pack_into(form, made, place, value)
    return bytes(made)


def jpeg() -> bytes:
    content = picture(form="JPEG")
    sizes = content.find(b"\xff\xc0") + 5
    return patched(content, sizes, ">I", 0xFFDC_FFDC)


def array(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"xx"


def archive_of_arrays() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("frames.npy", array((40_000, 400, 400, 3)))
        out.writestr("actions.npy", array((40_000,)))
        out.writestr("terminated.npy", array((40_000,)))
    return file.getvalue()


def tar_of_a_huge_member() -> bytes:
    whole, info = io.BytesIO(), tarfile.TarInfo("b.png")
    with tarfile.open(fileobj=whole, mode="w") as out:
        first = tarfile.TarInfo("a.png")
        first.size = len(picture())
        out.addfile(first, io.BytesIO(picture()))
    info.size = 1 << 40
    start = 512 + -(-len(picture()) // 512) * 512
    return whole.getvalue()[:start] + info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512


def zip_of_a_huge_member() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", picture())
        out.writestr("b.png", b"\0" * 100)
    content = file.getvalue()
    return patched(content, content.rfind(b"PK\x01\x02") + 24, "<I", HUGE)


LIES: dict[str, tuple[str, Callable[[], bytes], Callable[[str], Any]]] = {
    "pixels of a PNG": ("a.png", lambda: lying_png(HUGE, HUGE), read_picture),
    "pixels of a JPEG": ("a.jpg", jpeg, read_picture),
    "pixels of a BMP": ("a.bmp", lambda: patched(picture(form="BMP"), 18, "<I", HUGE), read_picture),
    "pixels of a GIF": ("a.gif", lambda: patched(picture(form="GIF"), 6, "<I", 0xFFFF_FFFF), read_picture),
    "the shape of a picture": ("a.npy", lambda: array((200_000, 200_000, 3)), read_picture),
    "the shape of a film": ("a.npy", lambda: array((200_000, 2000, 2000, 3)), read_film),
    "the bytes of a sound": ("a.wav", lambda: patched(tone(1), 40, "<I", HUGE), read_sound),
    "the rate of a sound": ("a.wav", lambda: patched(tone(1), 24, "<I", HUGE), read_sound),
    "a rate of one": ("a.wav", lambda: patched(tone(1), 24, "<I", 1), read_sound),
    "the channels of a sound": ("a.wav", lambda: patched(tone(1), 22, "<H", 0xFFFF), read_sound),
    "the shape of episodes": ("a.npz", archive_of_arrays, read_replay),
    "a member of a tar": ("a.tar", tar_of_a_huge_member, read_archive),
    "a member of a zip": ("a.zip", zip_of_a_huge_member, read_archive),
    "what a table unpacks to": ("a.csv.gz", lambda: gzip.compress(b"a,b\n" + b"1" * (400 << 20)), read_table),
}


def costs(root: str) -> dict[str, tuple[float, int, str]]:
    """Return of every lie the seconds and the bytes that reading it takes, and what is said."""
    spent = {}
    # packages that readers import are no cost of a header
    for file, content, read in (("a.png", picture(), read_picture), ("a.wav", tone(1), read_sound)):
        read(str(Path(folder(Path(root, "sound"), {file: content}), file)))
    for number, (name, (file, content, read)) in enumerate(LIES.items()):
        path = str(Path(folder(Path(root, str(number)), {file: content()}), file))
        before, start, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), ""
        try:
            read(path)
        except (ValueError, Unreadable) as error:
            said = str(error)
        seconds = time.perf_counter() - start
        spent[name] = seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), said
    return spent


@pytest.mark.slow
def test_no_number_in_a_header_is_believed(tmp_path: Path) -> None:
    """In a process of its own, as the most memory that one has taken is known."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spent = pool.apply(costs, (str(tmp_path),))
    assert {*spent} == {*LIES}
    for name, (seconds, size, said) in spent.items():
        assert seconds < SECONDS, name
        assert size < BYTES, name
        assert "\n" not in said, name
