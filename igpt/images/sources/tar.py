"""Images in tar files, read in place: class folders, WebDataset shards, ImageNet's tar of tars."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from igpt.errors import UserError
from igpt.images.rejects import EMPTY_CLASS
from igpt.images.sources.layout import DUPLICATE, Duplicates, Layout, layout_of
from igpt.images.sources.names import is_image_name
from igpt.images.sources.source import MAX_LABEL, Block, BlockBuilder, Part, Source, Span

BLOCK = 512
UNSAFE = "name leads out of the archive"
CUT = "archive is cut off or damaged"
NO_LABEL = "no label"
NO_IMAGE = "label without an image"
# Names and metadata are short; more is an attack on memory.
_MAX_EXTENSION_BYTES = 2**20
_FILE_KINDS, _FOLDER_KIND = (b"0", b"\0"), b"5"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar file."""

    name: str
    start: int
    """First byte of its content in the file."""
    size: int
    """Bytes of its content."""
    is_folder: bool


def read_members(path: Path, *, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """Files and folders of a plain tar, by its headers alone.

    Our own reader because `tarfile` keeps every member in memory and takes five times as long.

    Args:
        path: the file.
        start: where the tar begins in it (a tar inside a tar).
        size: its length there; None: to the end.

    Raises:
        UserError: not a tar, cut off, or damaged.
    """
    try:
        with path.open("rb") as file:
            handle = file.fileno()
            stop = os.fstat(handle).st_size if size is None else start + size
            yield from _members(handle, start, stop)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: {CUT}: fetch it again ({error})") from error


def _members(handle: int, position: int, stop: int) -> Iterator[Member]:
    renamed, resized, first = "", -1, True
    while True:
        header = os.pread(handle, BLOCK, position)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK or position + BLOCK > stop:
            raise ValueError("it ends without an end mark")
        _check_header(header, first=first)
        first = False
        kind, size = header[156:157], _number(header[124:136])
        content = position + BLOCK
        if kind in (b"L", b"x", b"g"):
            if size > _MAX_EXTENSION_BYTES:
                raise ValueError("its metadata is too long")
            data = os.pread(handle, size, content)
            if kind == b"L":
                renamed = data.rstrip(b"\0").decode(errors="surrogateescape")
            elif kind == b"x":
                fields = _pax(data)
                renamed = fields.get("path", renamed)
                resized = int(fields.get("size", resized))
        else:
            size = size if resized < 0 else resized
            if content + size > stop:
                raise ValueError("its last file is not whole")
            if kind in _FILE_KINDS or kind == _FOLDER_KIND:
                yield Member(renamed or _name(header), content, size, kind == _FOLDER_KIND)
            renamed, resized = "", -1
        position = content + -(-size // BLOCK) * BLOCK


def _check_header(header: bytes, *, first: bool) -> None:
    stated = _number(header[148:156])
    if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError("it is not a tar" if first else "a header is damaged")


def _number(field: bytes) -> int:
    """Octal text, or base 256 for large files."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    value = int(field.strip(b" \0") or b"0", 8)
    if value < 0:
        raise ValueError("a size is negative")
    return value


def _name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0").split(b"\0")[0]
    if header[257:262] == b"ustar" and header[345] and header[257:265] != b"ustar  \0":
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records of the form `LENGTH KEY=VALUE\\n`."""
    fields = {}
    while data:
        length = int(data.split(b" ", 1)[0])
        if not 0 < length <= len(data):
            raise ValueError("its metadata is damaged")
        key, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        fields[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[length:]
    return fields


def is_unsafe(name: str) -> bool:
    """Whether a member's name would lead out of the folder it is unpacked to."""
    return name.startswith("/") or ".." in name.split("/")


@dataclass(slots=True)
class _Survey:
    """What one pass over the headers of all tars found."""

    counts: Counter[str]
    duplicates: list[Duplicates]
    has_labels: bool
    cut: list[tuple[Path, int]]
    """Damaged tars and how many images they showed."""


def open_tars(paths: Sequence[Path], *, name: str, unlabelled: bool = False) -> Source:
    """Images of one or many tars: WebDataset's `.cls` beside each image, class folders, or neither.

    A tar that is cut is left out as a whole where there are others, else refused.

    Args:
        paths: the tars, in order.
        name: of the source.
        unlabelled: folders are no classes.

    Raises:
        UserError: the only tar is damaged, or there are no images.
    """
    survey = _survey(paths)
    if len(survey.cut) == len(paths):
        raise UserError(f"{name}: {CUT}: fetch it again")
    layout = layout_of(survey.counts, unlabelled=unlabelled or survey.has_labels)
    if not layout.n_images:
        raise UserError(f"{name} holds no images: check the path")
    has_labels = survey.has_labels and not unlabelled

    def blocks(part: Part) -> Iterator[Block]:
        chosen = list(zip(paths, survey.duplicates, strict=True))
        shared = len(chosen) >= part.count
        every = _blocks(
            list(part.share(chosen)) if shared else chosen, survey.cut, layout, has_labels
        )
        return every if shared else part.share(every)

    return Source(
        name=name,
        blocks=blocks,
        classes=() if has_labels else layout.classes,
        own_splits=layout.own_splits,
        n_images=layout.n_images,
        valid_fraction=layout.valid_fraction,
    )


def _survey(paths: Sequence[Path]) -> _Survey:
    survey = _Survey(Counter(), [], False, [])
    for path in paths:
        counts: Counter[str] = Counter()
        duplicates, has_labels = Duplicates(), False
        try:
            for member in read_members(path):
                if is_unsafe(member.name):
                    continue
                if member.is_folder:
                    counts[_clean(member.name)] += 0
                elif is_image_name(member.name):
                    counts[_clean(member.name).rpartition("/")[0]] += 1
                    duplicates.note(_clean(member.name))
                has_labels |= member.name.endswith(".cls")
        except UserError:
            survey.cut.append((path, sum(counts.values())))
        else:
            for folder, n in counts.items():  # adding Counters would drop the empty folders
                survey.counts[folder] += n
            survey.has_labels |= has_labels
        duplicates.settle()
        survey.duplicates.append(duplicates)
    return survey


def _clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _blocks(
    tars: Sequence[tuple[Path, Duplicates]],
    cut: Sequence[tuple[Path, int]],
    layout: Layout,
    has_labels: bool,
) -> Iterator[Block]:
    builder = BlockBuilder(labelled=has_labels or layout.classes is not None)
    for folder in layout.empty:
        builder.reject(folder, EMPTY_CLASS)
    lost = dict(cut)
    for path, duplicates in tars:
        if path in lost:
            for i in range(max(1, lost[path])):
                builder.reject(f"{path.name}/{i}", CUT)
            continue
        duplicates.restart()
        labelled = _labelled_images(path) if has_labels else _images(path)
        for member, label in labelled:
            name = _clean(member.name)
            try:
                if is_unsafe(member.name):
                    raise UserError(UNSAFE)
                if duplicates.is_repeated(name):
                    raise UserError(DUPLICATE)
                if isinstance(label, str):
                    raise UserError(label)
                code, own_label = layout.place(name)
            except UserError as error:
                builder.reject(f"{path.name}/{name}", str(error))
                continue
            span = Span(path, member.start, member.size)
            key = f"{path.name}/{name}"
            yield from builder.add(span, key, label if has_labels else own_label, code)
    yield from builder.rest()


def _images(path: Path) -> Iterator[tuple[Member, int]]:
    for member in read_members(path):
        if not member.is_folder and is_image_name(member.name):
            yield member, -1


def _labelled_images(path: Path) -> Iterator[tuple[Member, int | str]]:
    """WebDataset's samples: files in a row with one name up to the first dot.

    Yields the image and its class, or the reason why there is none.
    """
    files = (member for member in read_members(path) if not member.is_folder)
    for _, sample in groupby(files, key=_sample_key):
        image = label = None
        for member in sample:
            if member.name.endswith(".cls"):
                label = member
            elif image is None and is_image_name(member.name):
                image = member
        if image is not None:
            yield image, NO_LABEL if label is None else _read_label(path, label)
        elif label is not None:
            yield label, NO_IMAGE


def _sample_key(member: Member) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}"


def _read_label(path: Path, member: Member) -> int | str:
    with path.open("rb") as file:
        text = os.pread(file.fileno(), min(member.size, 20), member.start).strip()
    if text.isdigit() and int(text) <= MAX_LABEL:
        return int(text)
    return f"label is not a number from 0 to {MAX_LABEL}"
