"""Images in tar and zip archives: class folders, WebDataset's samples, or neither; see `archive`.

A label is in the `.cls` beside an image, or in its `.json`; which image it belongs to is said by
the names: a sample's files share a key, the name up to its first dot. Where that would put several
images under one key (`scan.001.png`, `scan.002.png`), the key goes up to the last dot, if images
and labels agree on it; else every image of a sample is taken, and has the sample's label.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from igpt.errors import UserError
from igpt.images.rejects import DEAD_LINK, EMPTY_CLASS, MAX_BAD
from igpt.images.sources.archive import Archive, Entry, ZipArchive, opened
from igpt.images.sources.download import is_offline
from igpt.images.sources.labels import (
    DUPLICATE,
    MAX_CLASSES,
    Duplicates,
    Layout,
    Numbering,
    key_of_name,
    label_in,
    label_of,
    layout_of,
    ordered,
    said_of_labels,
    said_of_odd,
)
from igpt.images.sources.names import Unread, counts, is_image_name
from igpt.images.sources.remote import UnreachableError
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import file_codes, image_code, said_alone, said_of_splits

# Whether a key goes up to the last dot of a name, or to the first.
_WAYS = (False, True)
UNSAFE = "name leads out of the archive"
NO_IMAGE = "label without an image"
NO_FILE = "a device, a pipe or a part of a file"
NO_ANSWER = "nobody answers for its archive"
LATER = "a link to nothing that came before it in a compressed archive"
_LABEL_SUFFIXES = (".cls", ".json")
_MAX_LABEL_BYTES = {".cls": 1_000, ".json": 2**20}
# What links in a compressed archive may mean is kept, up to so many bytes.
_MAX_KEPT_BYTES = 2**28


def open_tars(paths: Sequence[Path], *, name: str, unlabelled: bool = False) -> Source:
    """Images of one or many tars, plain or compressed.

    A tar that is cut, or for which nobody answers, is left out as a whole where there are others,
    else refused; and so are all where nobody answers for more than a tenth: a network that is gone
    says nothing of them.

    Args:
        paths: the tars, in order.
        name: of the source.
        unlabelled: neither folders nor files are classes.

    Raises:
        UserError: every tar is damaged, or there are no images.
    """
    survey = _Survey([], [])
    for path in paths:
        survey.add(path)
    if len(survey.cut) == len(paths):
        raise UserError(survey.cut[0].reason)
    silent = [tar for tar in survey.cut if tar.is_unreachable]
    if len(silent) > max(1, MAX_BAD * len(paths)) or (silent and is_offline()):
        raise UnreachableError(f"{len(silent)} of {len(paths)} archives: {silent[0].reason}")
    labels = None if unlabelled else _labels_of(survey)
    layout = layout_of(
        survey.folders(), unlabelled=unlabelled or labels is not None, said=survey.said()
    )
    if not layout.n_images:
        raise UserError(f"{name} holds no images{survey.seen()}: check the path")
    codes = {} if layout.splits or layout.by_name else file_codes([path.name for path in paths])
    reader = _Reading(layout, labels, codes)

    def blocks(part: Part) -> Iterator[Block]:
        tars = survey.tars
        shared = len(tars) >= part.count
        every = reader.blocks(list(part.share(tars)) if shared else tars)
        return every if shared else part.share(every)

    return Source(
        name=name,
        blocks=blocks,
        classes=labels.numbering.classes if labels else layout.classes,
        own_splits=frozenset(codes.values()) or layout.own_splits,
        n_images=layout.n_images,
        valid_fraction=layout.valid_fraction,
        decided=_decided(survey, layout, labels, codes),
    )


@dataclass(slots=True)
class _Tar:
    """What a pass over the entries of one tar found: some bytes an image."""

    path: Path
    folders: Counter[str] = field(default_factory=Counter)
    """Images directly in each folder."""
    said: Counter[int | None] = field(default_factory=Counter)
    """Images by what `image_code` makes of their names."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    images: "dict[bool, array[int]]" = field(default_factory=lambda: {b: array("Q") for b in _WAYS})
    """Key of each image's sample: up to the first dot, and up to the last."""
    labels: "dict[str, dict[bool, array[int]]]" = field(
        default_factory=lambda: {s: {b: array("Q") for b in _WAYS} for s in _LABEL_SUFFIXES}
    )
    """Key of each label's sample, by the ending of the file that it is in."""
    values: "dict[str, array[int]]" = field(
        default_factory=lambda: {s: array("l") for s in _LABEL_SUFFIXES}
    )
    """Number of each label among all that were seen, -1: none."""
    odd: Counter[str] = field(default_factory=Counter)
    """Files that should hold a label and hold none, by reason."""
    links: dict[str, str] = field(default_factory=dict)
    unread: Unread = field(default_factory=Unread)
    has_end: bool = True
    reason: str = ""
    """Why it is left out as a whole."""
    is_unreachable: bool = False
    """It is elsewhere, and nobody answers."""

    @property
    def n_images(self) -> int:
        """Images that it showed."""
        return sum(self.folders.values())


@dataclass(slots=True)
class _Survey:
    """What one pass over the entries of all tars found."""

    tars: list[_Tar]
    vocabulary: list[str]
    """Every label, in the order in which it first came."""

    @property
    def cut(self) -> list[_Tar]:
        """Those that are left out as a whole."""
        return [tar for tar in self.tars if tar.reason]

    def add(self, path: Path) -> None:
        """Look through one more."""
        tar, known = _Tar(path), len(self.vocabulary)
        self.tars.append(tar)
        number = {label: i for i, label in enumerate(self.vocabulary)}
        try:
            with opened(path) as archive:
                for entry in archive:
                    _note(tar, archive, entry, number)
                tar.has_end = archive.has_end
        except UserError as error:
            tar.reason, tar.is_unreachable = str(error), isinstance(error, UnreachableError)
        else:
            self.vocabulary += list(number)[known:]
        if len(self.vocabulary) > MAX_CLASSES:
            raise UserError(
                f"{path} has more than {MAX_CLASSES} different labels, so they are no classes: "
                "use --unlabelled"
            )
        tar.duplicates.settle()

    def folders(self) -> Counter[str]:
        """Images directly in each folder of all sound tars."""
        total: Counter[str] = Counter()
        for tar in self.tars:
            for folder, n in () if tar.reason else tar.folders.items():
                total[folder] += n  # adding Counters would drop the empty folders
        return total

    def said(self) -> Counter[int | None]:
        """Images of all sound tars by what `image_code` makes of their names."""
        return sum((tar.said for tar in self.tars if not tar.reason), Counter[int | None]())

    def seen(self) -> str:
        """What else is in them, for the line that says that there are no images."""
        lines = self.unread_lines()
        return f"; {'; '.join(lines)}" if lines else ""

    def unread_lines(self) -> tuple[str, ...]:
        """What to say of files that are no images."""
        return tuple(dict.fromkeys(line for tar in self.tars for line in tar.unread.lines()))


def _note(tar: _Tar, archive: Archive | ZipArchive, entry: Entry, number: dict[str, int]) -> None:
    name = clean(entry.name)
    if is_unsafe(entry.name):
        return
    if entry.kind == "folder":
        if counts(name):
            tar.folders[name] += 0
        return
    if entry.kind == "link":
        tar.links[f"{entry.archive}/{name}"] = f"{entry.archive}/{entry.target}"
    suffix = name[-5:].lower() if name.lower().endswith(".json") else name[-4:].lower()
    if is_image_name(name):
        folder, _, base = name.rpartition("/")
        tar.folders[folder] += 1
        tar.said[image_code(base)] += 1
        tar.duplicates.note(f"{entry.archive}/{name}")
        for last, keys in tar.images.items():
            keys.append(_key(entry, name, last=last))
    elif suffix in _LABEL_SUFFIXES and entry.kind == "file" and counts(name):
        label = _read_label(tar, archive, entry, suffix)
        tar.values[suffix].append(-1 if label is None else number.setdefault(label, len(number)))
        for last, keys in tar.labels[suffix].items():
            keys.append(_key(entry, name, last=last))
    else:
        tar.unread.note(name)


def _read_label(tar: _Tar, archive: Archive | ZipArchive, entry: Entry, suffix: str) -> str | None:
    """What a file says of its sample's class, if anything."""
    if entry.size > _MAX_LABEL_BYTES[suffix]:
        return None
    try:
        data = archive.content(entry)
    except UserError:
        return None
    try:
        if suffix == ".cls":
            return label_of(data)
        fields = json.loads(data)
        return label_in(fields) if isinstance(fields, dict) else label_of(fields)
    except (ValueError, RecursionError):
        tar.odd["it is no JSON"] += 1
    except UserError as error:
        tar.odd[str(error)] += 1
    return None


def _key(entry: Entry, name: str, *, last: bool) -> int:
    folder, _, base = name.rpartition("/")
    stem = base.rpartition(".")[0] if last else base.partition(".")[0]
    return key_of_name(f"{entry.archive}/{folder}/{stem}")


def clean(name: str) -> str:
    """A name without what means nothing in it."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def is_unsafe(name: str) -> bool:
    """Whether an entry's name would lead out of the folder it is unpacked to."""
    return name.startswith("/") or ".." in name.split("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Which label each sample of every tar has."""

    suffix: str
    last_dot: bool
    several: int
    """Samples of more than one image."""
    numbering: Numbering
    codes: dict[Path, tuple[np.ndarray, np.ndarray]]
    """(n,) sorted keys of samples that have a label file, and (n,) numbers of classes."""
    n_labelled: int
    orphans: dict[Path, frozenset[int]]
    """Keys of samples that have a label and no image."""

    def of(self, path: Path, key: int) -> int:
        """The class of a sample, -1: none."""
        keys, codes = self.codes[path]
        at = int(np.searchsorted(keys, np.uint64(key)))
        return int(codes[at]) if at < len(keys) and int(keys[at]) == key else -1


def _labels_of(survey: _Survey) -> _Labels | None:
    """The labels, from `.cls` files where there are any, else from `.json`; None: no labels."""
    tars = [tar for tar in survey.tars if not tar.reason]
    for suffix in _LABEL_SUFFIXES:
        used = {value for tar in tars for value in tar.values[suffix]} - {-1}
        if used or (suffix == ".cls" and any(tar.values[suffix] for tar in tars)):
            break
    else:
        return None
    several = {last: sum(_repeats(tar.images[last]) for tar in tars) for last in _WAYS}
    agree = all(
        np.isin(_array(tar.labels[suffix][True]), _array(tar.images[True])).all() for tar in tars
    )
    last_dot = several[False] > 0 and several[True] == 0 and agree
    numbering = Numbering(ordered(survey.vocabulary[value] for value in used))
    number = np.full(len(survey.vocabulary) + 1, -1, np.int64)  # its last is of -1: none
    for value in used:
        number[value] = numbering.number(survey.vocabulary[value])
    codes, orphans, n_labelled = {}, {}, 0
    for tar in tars:
        keys, first = np.unique(_array(tar.labels[suffix][last_dot]), return_index=True)
        codes[tar.path] = keys, number[np.array(tar.values[suffix], np.int64)[first]]
        images, labelled = _array(tar.images[last_dot]), keys[codes[tar.path][1] >= 0]
        n_labelled += int(np.isin(images, labelled).sum())
        orphans[tar.path] = frozenset(np.setdiff1d(labelled, images).tolist())
    return _Labels(
        suffix=suffix,
        last_dot=last_dot,
        several=several[last_dot],
        numbering=numbering,
        codes=codes,
        n_labelled=n_labelled,
        orphans=orphans,
    )


def _array(keys: "array[int]") -> np.ndarray:
    return np.array(keys, np.uint64)


def _repeats(keys: "array[int]") -> int:
    return int((np.unique(_array(keys), return_counts=True)[1] > 1).sum())


def _decided(
    survey: _Survey, layout: Layout, labels: _Labels | None, codes: dict[str, int]
) -> tuple[str, ...]:
    lines = [line for line in layout.decided if labels is None or line.startswith("splits:")]
    if codes:
        by_code: Counter[int] = Counter()
        for tar in survey.tars:
            by_code[codes[tar.path.name]] += 0 if tar.reason else tar.n_images
        lines.append(said_of_splits("the names of the archives", by_code))
    elif not any(line.startswith("splits:") for line in lines):
        lines += said_alone(tar.path.name for tar in survey.tars)
    if labels is not None:
        which = "last" if labels.last_dot else "first"
        where = f"{labels.suffix} files, by names up to the {which} dot"
        lines.append(
            said_of_labels(
                where,
                n_labelled=labels.n_labelled,
                n_images=layout.n_images,
                n_classes=len(labels.numbering.classes),
            )
        )
        if labels.several:
            lines.append(
                f"{labels.several} samples hold several images: each is taken, with the label of "
                "its sample"
            )
    odd = sum((tar.odd for tar in survey.tars if not tar.reason), Counter[str]())
    lines += said_of_odd("the .cls and .json files", odd)
    lines += [
        f"{tar.path.name} has no end mark: it may have been cut between two files"
        for tar in survey.tars
        if not tar.has_end and not tar.reason
    ]
    return (*lines, *survey.unread_lines())


class _Reading:
    """A pass over the images of tars that were surveyed."""

    def __init__(self, layout: Layout, labels: _Labels | None, codes: dict[str, int]) -> None:
        self._layout, self._labels, self._codes = layout, labels, codes

    def blocks(self, tars: Sequence[_Tar]) -> Iterator[Block]:
        """Their images, in order."""
        is_labelled = self._labels is not None or self._layout.classes is not None
        builder = BlockBuilder(labelled=is_labelled)
        for folder in self._layout.empty:
            builder.reject(folder, EMPTY_CLASS)
        for tar in tars:
            if tar.reason:
                reason = tar.reason.removeprefix(f"{tar.path}: ").partition(": fetch it again")[0]
                reason = NO_ANSWER if tar.is_unreachable else reason
                for i in range(max(1, tar.n_images)):
                    builder.reject(f"{tar.path.name}/{i}", reason)
                continue
            tar.duplicates.restart()
            links = _Links(tar)
            with opened(tar.path) as archive:
                for entry in archive:
                    links.pass_by(archive, entry)
                    yield from self._image(builder, tar, archive, entry, links)
        yield from builder.rest()

    def _image(
        self,
        builder: BlockBuilder,
        tar: _Tar,
        archive: Archive | ZipArchive,
        entry: Entry,
        links: "_Links",
    ) -> Iterator[Block]:
        name = clean(entry.name)
        joined = f"[{entry.archive + 1}]" if entry.archive else ""
        key = f"{tar.path.name}{joined}/{name}"
        if not is_image_name(name) or entry.kind == "folder":
            if self._is_orphan(tar, entry, name):
                builder.reject(key, NO_IMAGE)
            return
        try:
            if is_unsafe(entry.name):
                raise UserError(UNSAFE)
            if tar.duplicates.is_repeated(f"{entry.archive}/{name}"):
                raise UserError(DUPLICATE)
            if entry.kind == "other":
                raise UserError(NO_FILE)
            code, label = self._layout.place(name)
            if self._labels is not None:
                last = self._labels.last_dot
                label = self._labels.of(tar.path, _key(entry, name, last=last))
            image = links.image(archive, entry)
        except UserError as error:
            builder.reject(key, str(error))
            return
        yield from builder.add(image, key, label, self._codes.get(tar.path.name, code))

    def _is_orphan(self, tar: _Tar, entry: Entry, name: str) -> bool:
        """Whether this is a label of a sample that has no image."""
        labels = self._labels
        if labels is None or not name.lower().endswith(labels.suffix) or not counts(name):
            return False
        return _key(entry, name, last=labels.last_dot) in labels.orphans[tar.path]


class _Links:
    """What the links of one tar mean, and the images behind them.

    Args:
        tar: as it was surveyed.
    """

    def __init__(self, tar: _Tar) -> None:
        self._meant = {name: _end_of(name, tar.links) for name in tar.links}
        self._wanted = frozenset(target for target in self._meant.values() if target)
        self._path = tar.path
        self._found: dict[str, Entry] | None = None
        self._kept: dict[str, bytes] = {}
        self._n_kept = 0

    def pass_by(self, archive: Archive | ZipArchive, entry: Entry) -> None:
        """Keep what a later link may mean, where there is no going back."""
        if archive.is_plain or entry.kind != "file" or not self._wanted:
            return
        name = f"{entry.archive}/{clean(entry.name)}"
        if name in self._wanted and self._n_kept + entry.size <= _MAX_KEPT_BYTES:
            self._kept[name] = archive.content(entry)
            self._n_kept += entry.size

    def image(self, archive: Archive | ZipArchive, entry: Entry) -> Span | bytes:
        """The image that an entry is, or links to.

        Raises:
            UserError: there is none; the message is the reason alone.
        """
        name = f"{entry.archive}/{clean(entry.name)}"
        if entry.kind == "link":
            meant = self._meant.get(name, "")
            if not archive.is_plain:
                if meant not in self._kept:
                    raise UserError(LATER)
                return self._kept[meant]
            target = self._targets().get(meant)
            if target is None:
                raise UserError(DEAD_LINK)
            entry = target
        elif not archive.is_plain and (
            kept := self._kept.get(f"{entry.archive}/{clean(entry.name)}")
        ):
            return kept
        if archive.is_plain and entry.pieces is None and not entry.is_packed:
            return Span(self._path, entry.start, entry.size)
        return archive.content(entry)

    def _targets(self) -> dict[str, Entry]:
        """Every entry of a plain tar that a link means: another pass, where there are links."""
        if self._found is None:
            self._found = {}
            with opened(self._path) as archive:
                for entry in archive:
                    name = f"{entry.archive}/{clean(entry.name)}"
                    if name in self._wanted and entry.kind == "file":
                        self._found.setdefault(name, entry)
        return self._found


def _end_of(name: str, links: dict[str, str]) -> str:
    """What a link means at last; nothing where links go in a circle."""
    for _ in range(40):
        if name not in links:
            return name
        name = links[name]
    return ""
