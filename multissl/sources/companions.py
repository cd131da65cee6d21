"""The file that belongs to a picture and is found by its name: a mask, a depth map.

A rule OLD=NEW says what stands in the name of the companion instead: of a folder (`images=masks`), else of the end of
the name before its suffix (`_leftImg8bit=_gtFine_labelIds`, `=_mask`; `=` alone is the same name with another suffix).
Members of an archive have their companions in the same archive. In a table OLD and NEW are columns.
State: the names that a folder or an archive holds, as long as it does not change.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from multissl.sources.archives import members
from multissl.sources.payloads import Slice


class Rule(NamedTuple):
    """What is replaced in the name of a picture."""

    old: str
    new: str

    @staticmethod
    def of(text: str) -> Rule:
        """Return the rule that `OLD=NEW` says. Raises a ValueError for another text."""
        old, equal, new = text.partition("=")
        if not equal or "/" in old or "/" in new:
            raise ValueError(f"{text!r}: want OLD=NEW, of a folder or of the end of a name, as images=masks")
        return Rule(old, new)

    def applied(self, stem: str) -> str | None:
        """Return a name without its suffix as the rule changes it; None where it does not hold."""
        *folders, last = stem.split("/")
        if self.old and self.old in folders:
            place = len(folders) - 1 - folders[::-1].index(self.old)
            return "/".join([*folders[:place], self.new, *folders[place + 1 :], last])
        if not last.endswith(self.old):
            return None
        return "/".join([*folders, last.removesuffix(self.old) + self.new])


Rules = Sequence[Rule]
"""Rules that hold together."""
USUAL: Mapping[str, Sequence[str]] = {
    "classes": (
        "images=masks", "images=annotations", "images=labels", "JPEGImages=SegmentationClass", "JPEGImages=Annotations",
        "train=trainannot", "val=valannot", "test=testannot", "=_mask", "=_L", "=",
    ),
    "depth": ("images=depth", "images=depths", "rgb=depth", "=_depth"),
}  # fmt: skip
"""Where maps of classes and of depth usually lie, tried one after the other."""
COLUMNS: Mapping[str, Sequence[str]] = {
    "classes": (
        "mask", "masks", "annotation", "annotations", "segmentation", "segmentation_mask", "semantic_mask",
        "label", "labels",
    ),
    "depth": ("depth", "depths", "depth_map"),
}  # fmt: skip
"""What columns of maps of classes and of depth are called, the preferred name first."""
VAGUE = ("=_L", "=")
"""Those of them that files follow which are pictures of their own."""
LABEL_MAPS = "masks or depth maps of pictures beside them"
"""What those that are no pictures are counted as."""


def label_maps(names: Sequence[str]) -> set[str]:
    """Return those of names that are masks or depth maps of pictures among them, by the rules of `USUAL`.

    Names are with or without suffix, their folders parted by `/`.
    """
    rules = [Rule.of(text) for texts in USUAL.values() for text in texts if text not in VAGUE]
    backwards = [Rule(rule.new, rule.old) for rule in rules]
    folders, ends = {r.new for r in rules if r.old}, tuple(r.new for r in rules if not r.old)
    says_so: dict[str, bool] = {}  # of a folder
    likely: dict[str, str] = {}  # the name without its suffix, by the name
    for name in names:
        folder = name[: name.rfind("/") + 1]
        if folder not in says_so:
            says_so[folder] = not folders.isdisjoint(folder.split("/"))
        stem = os.path.splitext(name)[0]
        if says_so[folder] or stem.endswith(ends):
            likely[name] = stem
    there = {os.path.splitext(name)[0] for name in names} if likely else set()
    return {
        name for name, stem in likely.items()
        if any(picture != stem and picture in there for rule in backwards if (picture := rule.applied(stem)))
    }  # fmt: skip


def companion(payload: Any, alternatives: Sequence[Rules], suffixes: Sequence[str]) -> Any:
    """Return the file or member that the first fitting rules name, with the first suffix there is; None for none."""
    if isinstance(payload, Slice):
        there: Mapping[str, Any] = _members(payload.path, os.stat(payload.path).st_mtime_ns)
        return _first_there(payload.name, there.get, alternatives, suffixes)
    if not isinstance(payload, str | os.PathLike):
        return None
    return _first_there(os.fspath(payload).replace(os.sep, "/"), _file, alternatives, suffixes)


def companion_column(columns: Sequence[str], alternatives: Sequence[Rules]) -> str:
    """Return the column that the first fitting rule names, whose OLD is the column of the pictures; "" for none."""
    rules = [rule for each in alternatives for rule in each]
    return next((rule.new for rule in rules if {rule.old, rule.new} <= {*columns}), "")


def _first_there(
    name: str, look_up: Callable[[str], Any], alternatives: Sequence[Rules], suffixes: Sequence[str]
) -> Any:
    stem, own = os.path.splitext(name)
    for rules in alternatives:
        renamed: str | None = stem
        for rule in rules:
            renamed = rule.applied(renamed) if renamed is not None else None
        if renamed is None:
            continue
        for suffix in suffixes:
            itself = (renamed, suffix) == (stem, own.lower())
            if not itself and (found := look_up(f"{renamed}{suffix}")) is not None:
                return found
    return None


def _file(path: str) -> str | None:
    folder, name = os.path.split(path)
    try:
        changed = os.stat(folder or ".").st_mtime_ns
    except OSError:
        return None
    return path if name in _names(folder or ".", changed) else None


@functools.lru_cache(maxsize=64)
def _names(folder: str, changed: int) -> frozenset[str]:
    return frozenset(os.listdir(folder))


@functools.lru_cache(maxsize=8)
def _members(path: str, changed: int) -> dict[str, Slice]:
    return {part.name: part for part in members(path)}
