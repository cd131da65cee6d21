"""Pictures, films and sounds that broke other projects."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multissl.contract.data import Unreadable
from multissl.modalities.audio import files as audio
from multissl.modalities.image.files import SUFFIXES, load
from multissl.modalities.video.files import open_clip, open_videos, read_frames
from multissl.sources.base import Request
from multissl.sources.opening import list_source, open_source
from tests.foreign.cases import CASES, case, folder, packed, picture, tar

RATE = 8000


def names(path: str, suffixes: tuple[str, ...] = SUFFIXES, kind: str = "image") -> list[str]:
    data = open_source(path, "all", suffixes, kind)
    return sorted(Path(getattr(sample.data, "name", sample.data)).name for sample in data)


def left_out(path: str, suffixes: tuple[str, ...] = SUFFIXES, kind: str = "image") -> dict[str, int]:
    return dict(list_source(Request(path, suffixes, kind)).left_out)


def means(path: str) -> list[list[int]]:
    return [
        [round(v) for v in load(sample, 3).float().mean((1, 2)).tolist()]
        for sample in open_source(path, "all", SUFFIXES)
    ]


@case("image", "pytorch/vision#552", "pictures called .JPEG, .JPG and .webp", "all are taken")
def capitals_in_suffixes(root: Path) -> None:
    path = folder(
        root, {"x/1.JPEG": picture(form="JPEG"), "x/2.JPG": picture(form="JPEG"), "y/3.webp": picture()}
    )
    assert names(path) == ["1.JPEG", "2.JPG", "3.webp"]
    assert left_out(path) == {}


@case(
    "image",
    "python-pillow/Pillow#4807",
    "._NAME files that macOS writes beside pictures",
    "hidden, and counted",
)
def resource_forks(root: Path) -> None:
    junk = b"\0\5\x16\7 no picture"
    path = folder(root / "f", {"1.png": picture(), "2.png": picture(), "._1.png": junk, ".DS_Store": b"x"})
    assert names(path) == ["1.png", "2.png"]
    assert left_out(path) == {"hidden (their names begin with a dot)": 1}
    members = {
        "set/1.JPG": picture(form="JPEG"),
        "set/2.JPG": picture(form="JPEG"),
        "__MACOSX/set/._1.JPG": junk,
    }
    path = packed(root / "a.zip", members)
    assert names(path) == ["1.JPG", "2.JPG"]
    assert left_out(path) == {"hidden (their names begin with a dot)": 1}


@case("image", "replicate/lora-training#9", "a zip of IMG_1.JPG without any folder", "both are taken")
def a_zip_without_folders(root: Path) -> None:
    path = packed(root / "a.zip", {"IMG_1.JPG": picture(form="JPEG"), "IMG_2.JPG": picture(form="JPEG")})
    assert names(path) == ["IMG_1.JPG", "IMG_2.JPG"]


@case(
    "image", "GabrielePicco/deep-learning-flower-identifier#2", "WebP that is called .jpg", "read by content"
)
def names_that_lie(root: Path) -> None:
    path = folder(root, {"a.jpg": picture(50, "WEBP"), "b.jpg": picture(50, "JPEG")})
    assert means(path) == [[50] * 3] * 2


@case(
    "image",
    "vlfeat/matconvnet#91",
    "JPEG of cyan, magenta, yellow and black, as in ImageNet",
    "its colors are right",
)
def colors_of_print(root: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((10, 12, 3), (200, 30, 30), np.uint8)).convert("CMYK").save(
        out, "JPEG", quality=95
    )
    assert means(folder(root, {"a.jpg": out.getvalue(), "b.png": picture()})) == [[200, 30, 30], [100] * 3]


@case("image", "pytorch/vision#7977", "photographs that EXIF turns", "upright, and their sides are exchanged")
def turned_photographs(root: Path) -> None:
    pixels, turn, out = np.zeros((10, 20, 3), np.uint8), Image.Exif(), io.BytesIO()
    pixels[:, :5], turn[0x0112] = 255, 6
    Image.fromarray(pixels).save(out, "JPEG", exif=turn, quality=95)
    (sample, _) = open_source(folder(root, {"a.jpg": out.getvalue(), "b.jpg": picture()}), "all", SUFFIXES)
    read = load(sample, 3)
    assert read.shape == (3, 20, 10)
    assert float(read[:, 1].float().mean()) > 250, "what was left is above"


@case(
    "image",
    "fizyr/keras-retinanet#855",
    "a JPEG whose last bytes are missing",
    "left out by name, the others train",
)
def a_cut_off_picture(root: Path) -> None:
    whole = picture(form="JPEG", size=(200, 200))
    data = open_source(folder(root, {"a.jpg": whole, "b.jpg": whole[:-300]}), "all", SUFFIXES)
    load(data[0], 3)
    with pytest.raises(Unreadable, match=r"b\.jpg"):
        load(data[1], 3)


@case(
    "image",
    "ieee8023/covid-chestxray-dataset#96",
    "names without a suffix in metadata.csv",
    "left out by name",
)
def names_without_suffix(root: Path) -> None:
    folder(
        root,
        {"RA-1.jpg": picture(), "b.jpg": picture(), "metadata.csv": b"filename,finding\nRA-1,x\nb.jpg,y\n"},
    )
    data = open_source(str(root / "metadata.csv"), "all", SUFFIXES)
    with pytest.raises(Unreadable, match="RA-1: No such file or directory"):
        load(data[0], 3)
    load(data[1], 3)


@case(
    "image", "huggingface/datasets#7150", "members 22.0/1.1.png and train.v1/1.jpg of a tar", "all are taken"
)
def dots_in_members(root: Path) -> None:
    members = {"train.v1/1.jpg": picture(), "train.v1/2.jpg": picture(), "22.0/1.1.png": picture()}
    path = tar(root / "a.tar", members)
    assert names(path) == ["1.1.png", "1.jpg", "2.jpg"]
    assert left_out(path) == {}


@case(
    "image",
    "huggingface/datasets#3729",
    "what Unicode calls the end of a line, in a list of names",
    "part of the name",
)
def ends_of_lines_in_names(root: Path) -> None:
    strange = ["a\u2028b.png", "c\x85d.png"]
    folder(root, {**{name: picture() for name in strange}, "list.txt": "\n".join(strange).encode()})
    assert names(str(root / "list.txt")) == strange


# films


def film(path: Path, times: list[int], codec: str = "mpeg4") -> Path:
    av: Any = pytest.importorskip("av", reason="the extra `video` is not installed")
    with av.open(str(path), "w") as container:
        out = container.add_stream(codec, rate=25)
        out.width, out.height, out.pix_fmt = 64, 48, "yuv420p"
        for number, time in enumerate(times):
            pixels = np.full((48, 64, 3), 20 * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(out.encode(frame))
        container.mux(out.encode())
    return path


@case(
    "video", "ChiWeiHsiao/DeepVO-pytorch#37", "frames 00002.png and 000010.png", "they come as people count"
)
def numbers_of_frames(root: Path) -> None:
    folder(root / "a", {f"0000{number}.png": picture(20 * number) for number in range(12)})
    assert read_frames(str(root / "a"), range(12))[:, 0, 0, 0].tolist() == [20 * n for n in range(12)]


@case(
    "video", "dmlc/decord#373", "a film that says 130 frames and has 30", "the 30 are there, and reading ends"
)
def more_frames_said_than_there_are(root: Path) -> None:
    content = bytearray(film(root / "a.mp4", [*range(30)]).read_bytes())
    table = content.find(b"stts") + 12
    struct.pack_into(">I", content, table, struct.unpack_from(">I", content, table)[0] + 100)
    (root / "lie.mp4").write_bytes(content)
    clip = open_clip(str(root / "lie.mp4"))
    assert len(clip.times) == 30
    assert clip.read([0, 15, 29]).shape == (3, 48, 64, 3)


@case("video", "pytorch/audio#3824", "a film whose clock starts at 4 seconds", "its first frame is the first")
def a_late_start(root: Path) -> None:
    clip = open_clip(str(film(root / "a.mp4", [100 + n for n in range(12)])))
    assert [round(float(t), 2) for t in clip.times[[0, 11]] - clip.times[0]] == [0, 0.44]
    assert abs(int(clip.read([5])[0, 0, 0, 0]) - 100) < 8


@case("video", "pytorch/vision#2490", "frames at uneven times", "each keeps its time")
def uneven_times(root: Path) -> None:
    times = [0, 1, 2, 3, 10, 20, 21, 22, 50, 51, 52, 80]
    clip = open_clip(str(film(root / "a.mkv", times)))
    np.testing.assert_allclose(clip.times - clip.times[0], np.array(times) / 25, atol=2e-3)


@case(
    "video",
    "webdataset/webdataset#319",
    "frames sample_0.frames.2.jpg and .10.jpg",
    "a film, in the order of numbers",
)
def frames_with_dots(root: Path) -> None:
    names = [f"{part}/sample_0.frames.{number}.png" for part in "ab" for number in range(12)]
    data = open_videos(folder(root, {name: picture(20 * (i % 12)) for i, name in enumerate(names)}), "all")
    assert [Path(sample.data).name for sample in data] == ["a", "b"]
    assert read_frames(data[1].data, range(12))[:, 0, 0, 0].tolist() == [20 * n for n in range(12)]


# sounds


def wave(form: str, subtype: str) -> bytes:
    soundfile: Any = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    out = io.BytesIO()
    soundfile.write(out, 0.5 * np.sin(np.arange(RATE) / 10), RATE, format=form, subtype=subtype)
    return out.getvalue()


def sounds(path: str) -> dict[str, tuple[float, float]]:
    """Seconds and the largest value of every sound."""
    heard = {}
    for sample in open_source(path, "all", audio.SUFFIXES, "audio"):
        clip = audio.Clip(sample, RATE)
        heard[Path(sample.data).name] = clip.length / RATE, float(clip.cut(0, clip.length).abs().max())
    return heard


@case("audio", "pytorch/audio#3806", "WAV of 24 bits", "amplitudes are right")
def words_of_24_bits(root: Path) -> None:
    ((seconds, loudest),) = sounds(folder(root, {"a.wav": wave("WAV", "PCM_24")})).values()
    assert seconds == 1
    assert loudest == pytest.approx(0.5, abs=1e-3)


@case("audio", "xinjli/allosaurus#33", "WAV of 32-bit floats", "amplitudes are right")
def words_of_floats(root: Path) -> None:
    ((_, loudest),) = sounds(folder(root, {"a.wav": wave("WAV", "FLOAT")})).values()
    assert loudest == pytest.approx(0.5, abs=1e-3)


@case("audio", "meta-pytorch/torchcodec#1378", "a note behind the sound of a WAV", "it is no sound")
def a_note_behind_the_sound(root: Path) -> None:
    note = b"LIST" + struct.pack("<I", 16) + b"INFOISFT\4\0\0\0abc\0"
    content = wave("WAV", "PCM_24") + note
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    assert sounds(folder(root, {"a.wav": content}))["a.wav"][0] == 1


@case(
    "audio", "pytorch/audio#2870", "a WAV whose header says no channels", "left out by name, nothing crashes"
)
def no_channels(root: Path) -> None:
    content = wave("WAV", "PCM_16")
    path = folder(root, {"a.wav": content[:22] + b"\0\0" + content[24:], "b.wav": content})
    data = open_source(path, "all", audio.SUFFIXES, "audio")
    with pytest.raises(Unreadable, match=r"a\.wav"):
        audio.Clip(data[0], RATE)


@case(
    "audio",
    "webdataset/webdataset#237",
    "a song called 2.0 (Clean Version).mp3 in a tar",
    "taken, with its label",
)
def dots_in_songs(root: Path) -> None:
    members = {
        "./1 Track 2.0 (Clean Version).mp3": b"x",
        "./1 Track 2.0 (Clean Version).cls": b"pop",
        "./b.mp3": b"x",
    }
    data = open_source(tar(root / "a.tar", {**members, "./b.cls": b"rock"}), "all", audio.SUFFIXES, "audio")
    assert {sample.data.name: data.classes[sample.label] for sample in data} == {
        "1 Track 2.0 (Clean Version).mp3": "pop", "b.mp3": "rock",
    }  # fmt: skip


@case("audio", "webdataset/webdataset#288", "members called 1.wav.data", "refused, with what was found")
def data_as_a_suffix(root: Path) -> None:
    path = tar(root / "a.tar", {"S/1.wav.data": b"x", "S/1.wav.label": b"1", "S/2.wav.data": b"x"})
    with pytest.raises(ValueError, match=r"found 3 members \(\.data 2, \.label 1\)"):
        names(path, audio.SUFFIXES, "audio")


@case("audio", "pytorch/audio#3753", "Opus called .opus, .mp3 and nothing at all", "read by content")
def opus_by_any_name(root: Path) -> None:
    content = wave("OGG", "OPUS")
    heard = sounds(folder(root, {"a.opus": content, "b.mp3": content, "c": content}))
    assert [seconds for seconds, _ in heard.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.modality in ("image", "video", "audio")]
)
def test_what_broke_others(name: str, tmp_path: Path) -> None:
    CASES[name].check(tmp_path)
