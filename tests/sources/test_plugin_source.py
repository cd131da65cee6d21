"""A source of another package, found through its entry point: one file, one line, nothing of multissl touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from multissl import registry
from multissl.contract.modality import Modality
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.files import SUFFIXES
from multissl.sources.opening import open_source

COLORS = '''
from collections.abc import Hashable

import numpy as np

from multissl.sources.base import Listing, Request, Source


class Colors(Source):
    """Plain pictures, `colors:COUNT`."""

    def matches(self, path: str) -> bool:
        return path.startswith("colors:")

    def stamp(self, request: Request) -> Hashable:
        return ()

    def list_samples(self, request: Request) -> Listing:
        count = int(request.path.partition(":")[2])
        if not count:
            raise ValueError("no colors")
        pictures = [np.full((32, 32, 3), i, np.uint8) for i in range(count)]
        return Listing(pictures, [i % 2 for i in range(count)], [""] * count)
'''
README = (Path(__file__).parents[2] / "multissl" / "sources" / "README.md").read_text()
SHARDS = "\n".join(line.removeprefix("    ") for line in README.splitlines() if not line or line[0] == " ")
"""The example of the README."""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both sources as an installer would put them on sys.path, with their entry points."""
    site = tmp_path / "site"
    info = site / "more_sources-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "more_colors.py").write_text(COLORS)
    (site / "more_shards.py").write_text(SHARDS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-sources\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[multissl.sources]\ncolors = more_colors:Colors\nnpz = more_shards:NumpyShards\n"
    )
    monkeypatch.syspath_prepend(str(site))
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()


def test_a_place_of_another_package_is_opened_by_a_modality() -> None:
    assert registry.names("sources")[-2:] == ["colors", "npz"]
    modality: Modality = Image.Config(data="colors:20", size=32, local_size=16, patch=4).build()
    train, val = modality.dataset("train"), modality.dataset("val")
    assert (len(train), len(val)) == (18, 2)
    assert [sample.label for sample in val] == [1, 1]
    assert np.array_equal(val[1].data, np.full((32, 32, 3), 19))
    with pytest.raises(ValueError, match=r"^modality.data='colors:0': no colors$"):
        Image.Config(data="colors:0", size=32, local_size=16, patch=4).build().dataset("train")


@pytest.mark.parametrize("path", ["a-train.npz", "*.npz", "a-{train,test}.npz", ""])
def test_a_format_of_shards_is_found_by_name_by_pattern_and_in_a_folder(path: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 20), ("test", 3)):
        pictures = np.full((count, 8, 8, 3), count, np.uint8)
        np.savez(data / f"a-{split}.npz", image=pictures, label=np.arange(count))
    train, test = (open_source(f"{data}/{path}", split, SUFFIXES) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 3)
    assert np.array_equal(test[2].data, np.full((8, 8, 3), 3))
    assert [sample.label for sample in test] == [0, 1, 2]


def test_errors_name_its_suffix_among_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"0")
    with pytest.raises(
        ValueError, match=r"known: a folder, .txt, .csv, .tsv, .*.tar, .zip, .*, .parquet, .npz$"
    ):
        open_source(str(tmp_path / "a.pdf"), "all", SUFFIXES)
    with pytest.raises(
        ValueError, match=r"a\.pdf is no shard; a pattern names .tar or .zip or .* or .parquet or .npz files"
    ):
        open_source(str(tmp_path / "*.pdf"), "all", SUFFIXES)
