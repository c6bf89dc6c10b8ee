"""Which files count: one rule for folders, archives, tables and what a command is given.

A file is an image if its name ends like one (`suffixes`, in any case) and no part of the name below
the place that was given is hidden (`.cache`, `._cat.jpg`) or kept there by a system for itself
(`__MACOSX`, `Thumbs.db`). Everything else is not even opened; `Unread` counts it by kind, so that
it can be said. Folders that igpt wrote (`igpt.images.sources.folders`) are no data either.

A name that a table gives may have been written on another machine: `find_named` says which file on
this disk it means.
"""

import functools
import importlib.util
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath

from igpt.errors import UserError

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".avif"),
    )
)
"""Endings that are read without anything else installed."""
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
"""Endings that the extra `heif` reads."""

_SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"),
        *("#recycle", "$recycle.bin", "system volume information", "lost+found"),
    )
)
HEIF_REMEDY = "pip install 'igpt[heif]'"
_TABLE_REMEDY = "pass one as DATA where it lists images and their labels"
_RAW_REMEDY = "convert them to JPEG or PNG"
# What people take for images and no reader here does, with what to do about it.
_REMEDIES = {
    **dict.fromkeys(HEIF_SUFFIXES, HEIF_REMEDY),
    **dict.fromkeys((".csv", ".tsv", ".jsonl"), _TABLE_REMEDY),
    **dict.fromkeys((".npz", ".npy"), "pass one as DATA where it holds many images"),
    **dict.fromkeys(
        (
            *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
            *(".psd", ".svg", ".eps", ".pdf", ".jxl", ".exr", ".hdr", ".dcm", ".nii", ".ico"),
        ),
        _RAW_REMEDY,
    ),
}
_MOST_KINDS = 6
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_NAMES = 1_000_000


@functools.cache
def has_heif() -> bool:
    """Whether the extra that reads HEIC is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of the images that can be read here, in lower case."""
    return SUFFIXES | HEIF_SUFFIXES if has_heif() else SUFFIXES


def is_hidden(part: str) -> bool:
    """Whether one part of a name is hidden, or a system's own."""
    return (part.startswith(".") and part not in (".", "..")) or part.lower() in _SYSTEM_NAMES


def counts(name: str) -> bool:
    """Whether no part of a relative name, with `/` between them, is hidden."""
    return not any(map(is_hidden, name.split("/")))


def is_image_name(name: str) -> bool:
    """Whether a relative name, with `/` between its parts, is that of an image that counts."""
    return os.path.splitext(name)[1].lower() in suffixes() and counts(name)  # noqa: PTH122


def expanded(name: str) -> list[str]:
    """The names that braces mean, as a shell has them: `{000..119}` counts, `{a,b}` lists.

    Raises:
        UserError: they are more than a million.
    """
    if (braces := _BRACES.search(name)) is None:
        return [name]
    first, last, listed = braces.groups()
    width = len(first or "") if (first or "").startswith("0") else 0
    choices = range(int(first), int(last) + 1) if listed is None else listed.split(",")
    endings = expanded(name[braces.end() :])
    if len(choices) * len(endings) > _MOST_NAMES:
        raise UserError(f"{name} means more than {_MOST_NAMES} names: take a part of them")
    before = name[: braces.start()]
    return [f"{before}{str(i).zfill(width)}{ending}" for i in choices for ending in endings]


class Unread:
    """Counts the files that are not even opened, by kind."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def note(self, name: str) -> None:
        """A file that is no image; hidden ones are passed over without a word."""
        if counts(name):
            self._kinds[os.path.splitext(name)[1].lower() or "no ending"] += 1  # noqa: PTH122

    def lines(self) -> tuple[str, ...]:
        """What to say of them: each kind of image with its remedy, all else in one line."""
        images = [
            f"{n} {kind} files are not read: {_REMEDIES[kind]}"
            for kind, n in sorted(self._kinds.items())
            if kind in _REMEDIES
        ]
        others = [(kind, n) for kind, n in self._kinds.most_common() if kind not in _REMEDIES]
        if not others:
            return tuple(images)
        some = [f"{n} {kind}" for kind, n in others[:_MOST_KINDS]]
        more = sum(n for _, n in others[_MOST_KINDS:])
        some += [f"{more} of other kinds"] if more else []
        return (*images, f"files that are no images: {', '.join(some)}")


def shown(name: str | Path) -> str:
    """A name as it can be printed and stored: bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_named(folder: Path, name: str) -> Path:
    """The file that a table in `folder` means by `name`.

    As it stands; else with `/` for `\\`; else in another normal form of Unicode (a Mac writes é as
    two letters); else, where it begins at the root of another machine (`C:\\`, `/home/me`), by the
    longest end of it that lies below `folder`. Where nothing is found, the first reading is given.
    """
    first = folder / name
    if os.path.lexists(first):
        return first
    plain = re.sub(r"^(file://|[A-Za-z]:)", "", name.replace("\\", "/"))
    parts = [part for part in PurePosixPath(plain).parts if part != "/"]
    starts = range(len(parts)) if plain.startswith("/") else range(min(1, len(parts)))
    for start in starts:
        ending = "/".join(parts[start:])
        for form in dict.fromkeys((ending, *_forms(ending))):
            if os.path.lexists(found := folder / form):
                return found
    return first


def _forms(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
