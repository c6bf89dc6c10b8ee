"""Tables of image paths and labels: CSV, TSV, JSON lines, parquet and Arrow; one or several.

The first line names the columns (of JSON lines each record does), separated by commas, tabs,
semicolons or bars. The column of images is the first of a usual name that names files which are
there; else another one that does; else one that does with an ending which it leaves out (`id`).
Labels, splits and files that were named on another machine follow `igpt.images.sources.labels`,
`igpt.images.splits` and `igpt.images.sources.names`. Where no column says a split, the names of
several tables do (`train.csv`, `test/metadata.jsonl`).
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from igpt.errors import UserError
from igpt.images.rejects import NOT_LISTED, check_pointer
from igpt.images.sources import columns
from igpt.images.sources.archive import damage, unpacked
from igpt.images.sources.labels import (
    DUPLICATE,
    Duplicates,
    Numbering,
    label_key,
    note_label,
    ordered,
    said_of_labels,
    said_of_odd,
)
from igpt.images.sources.names import find_named, is_image_name, suffixes
from igpt.images.sources.source import Block, BlockBuilder, Source, Span
from igpt.images.splits import (
    COLUMN_NAMES,
    TRAIN,
    codes_of_cells,
    codes_of_files,
    said_alone,
    said_of_splits,
)

SUFFIXES = (".csv", ".tsv", ".jsonl")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
METADATA = frozenset(f"metadata{end}" for end in (*SUFFIXES, ".parquet"))
"""Names of the tables that stand beside images on the Hub."""
NO_PATH = "no path"
ADDRESS = "an address on the network, not a file here: download it first"
_PATH_NAMES = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path"),
    *("image", "img", "image_file", "image_name", "img_name", "image_filename", "name", "images"),
)
# Characters of a line; more is no row of a table but an attack on memory.
_MAX_LINE = 2**24
# Rows that tell which column names files.
_TRIED = 20


@dataclass(frozen=True, slots=True)
class _Columns:
    path: str
    label: str | None
    split: str | None
    ending: str
    """Of the files' names, where the table leaves it out."""


@dataclass(slots=True)
class _Survey:
    """What the first pass over the rows found."""

    columns: dict[Path, _Columns] = field(default_factory=dict)
    labels: Counter[str | None] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    duplicates: Duplicates = field(default_factory=Duplicates)
    n_rows: Counter[Path] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    file: Path
    label: Any
    split: str


def open_tables(paths: Sequence[Path], *, name: str, unlabelled: bool = False) -> Source:
    """The images that tables name.

    Args:
        paths: the files, in order.
        name: of the source.
        unlabelled: leave the labels out.

    Raises:
        UserError: one is no such table, or none has rows.
    """
    survey = _survey(paths, unlabelled=unlabelled)
    n_rows = survey.n_rows.total()
    if not n_rows:
        raise UserError(f"{name} has no rows: write one a line below the header")
    splits = codes_of_cells(survey.splits, name)
    by_file = {} if splits else codes_of_files(paths)
    numbering = Numbering(ordered(label for label in survey.labels if label is not None))
    is_labelled = bool(numbering.classes)
    codes: Counter[int] = Counter()
    for word, n in survey.splits.items() if not by_file else ():
        codes[splits.get(word, TRAIN)] += n
    for path in paths if by_file else ():
        codes[by_file[path]] += survey.n_rows[path]
    where = "the column of splits" if splits else "the names of files"
    decided = [said_of_splits(where, codes)] if splits or by_file else []
    decided += [] if decided else said_alone((*survey.splits, *(path.name for path in paths)))
    if is_labelled:
        counts = {"n_labelled": n_rows - survey.labels[None], "n_images": n_rows}
        named = {known.label.strip() for known in survey.columns.values() if known.label}
        column = f"the column {', '.join(sorted(named))}"
        decided.append(said_of_labels(column, n_classes=len(numbering.classes), **counts))
    elif not unlabelled and not survey.odd:
        decided.append("labels: none, as no column is named like one")
    decided += said_of_odd("the column of labels", survey.odd)

    def every_block() -> Iterator[Block]:
        reading = _Reading(survey, numbering if is_labelled else None)
        for path in paths:
            yield from reading.blocks(path, {"": by_file[path]} if by_file else splits)
        yield from reading.rest(paths[0].parent)

    return Source(
        name=name,
        blocks=lambda part: part.share(every_block()),
        classes=numbering.classes if is_labelled else None,
        own_splits=frozenset(codes),
        n_images=n_rows,
        decided=tuple(decided),
    )


def _survey(paths: Sequence[Path], *, unlabelled: bool) -> _Survey:
    found = _Survey()
    for path in paths:
        found.columns[path] = known = _columns(path)
        for row in _rows(path, known):
            found.n_rows[path] += 1
            found.duplicates.note(os.path.normpath(row.file))
            found.splits[row.split] += 1
            note_label(None if unlabelled else row.label, found.labels, found.odd)
    found.duplicates.settle()
    return found


class _Reading:
    """A pass over the rows of tables that were surveyed."""

    def __init__(self, survey: _Survey, numbering: Numbering | None) -> None:
        self._survey, self._numbering = survey, numbering
        self._builder = BlockBuilder(labelled=numbering is not None)
        self._listed: dict[Path, set[str]] = {}
        survey.duplicates.restart()

    def blocks(self, path: Path, splits: Mapping[str, int]) -> Iterator[Block]:
        """The images of one table, in order; `splits` is the code of each word."""
        for row in _rows(path, self._survey.columns[path]):
            try:
                label = self._label(row)
            except UserError as error:
                self._builder.reject(row.path, str(error))
                continue
            code = splits.get(row.split, splits.get("", TRAIN))
            yield from self._builder.add(Span(row.file), row.path, label, code)

    def _label(self, row: _Row) -> int:
        if not row.path:
            raise UserError(NO_PATH)
        if re.match(r"[a-z][a-z0-9+]+://", row.path) and not row.path.startswith("file:"):
            raise UserError(ADDRESS)
        self._listed.setdefault(row.file.parent, set()).add(row.file.name)
        if self._survey.duplicates.is_repeated(os.path.normpath(row.file)):
            raise UserError(DUPLICATE)
        return -1 if self._numbering is None else self._numbering.number(row.label)

    def rest(self, top: Path) -> Iterator[Block]:
        """The last images, and what lies beside those of the tables."""
        for folder, names in self._listed.items():
            for name in _not_listed(folder, names):
                self._builder.reject(os.path.relpath(folder / name, top), NOT_LISTED)
        yield from self._builder.rest()


def _not_listed(folder: Path, names: set[str]) -> list[str]:
    try:
        return sorted(
            name for name in os.listdir(folder) if is_image_name(name) and name not in names
        )
    except (OSError, ValueError):  # there is no such folder; no name holds a zero byte
        return []


def kind_of(path: Path) -> str:
    """The ending of a table of text, without that of its compression; "" for any other file."""
    name = path.name.lower()
    stem = next((name.removesuffix(end) for end in _COMPRESSED if name.endswith(end)), name)
    return next((end for end in SUFFIXES if stem.endswith(end)), "")


def names_files(path: Path) -> bool:
    """Whether a column of a table names files that are there."""
    try:
        rows = islice(_rows(path, _columns(path)), _TRIED)
        return any(row.file.is_file() for row in rows if row.path)
    except UserError:
        return False


def gives_labels(path: Path) -> bool:
    """Whether a table names files and their labels."""
    try:
        return _columns(path).label is not None
    except UserError:
        return False


def _columns(path: Path) -> _Columns:
    """Which columns hold what.

    Raises:
        UserError: the file cannot be read, or no column names images.
    """
    with _reading(path):
        records = _records(path)
        header = list(next(records, {}))
        first = list(islice(records, _TRIED))
    by_lower = {name.strip().lower(): name for name in reversed(header)}
    named = [by_lower[known] for known in _PATH_NAMES if known in by_lower]
    others = [name for name in header if name not in named]

    def leads_to_files(name: str, ending: str) -> bool:
        values = [str(record.get(name) or "") + ending for record in first]
        return any(_looks_like_image(v) and find_named(path.parent, v).exists() for v in values)

    tried = ((name, end) for end in ("", *sorted(suffixes())) for name in (*named, *others))
    found, ending = next((pair for pair in tried if leads_to_files(*pair)), (None, ""))
    if any(_looks_like_image(v) and find_named(path.parent, v).exists() for v in header):
        raise UserError(
            f"{path}: its first line is an image already: write the names of the columns above it, "
            "such as path,label"
        )
    if found is None and not named:
        raise UserError(
            f"{path}: its first line must name the columns, path and label among them; "
            f"it says {', '.join(header)[:200] or 'nothing'}"
        )
    column = found or named[0]
    split = next((by_lower[known] for known in COLUMN_NAMES if known in by_lower), None)
    label = label_key(n for n in header if n not in (column, split))
    return _Columns(column, label, split, ending)


def _looks_like_image(value: str) -> bool:
    return is_image_name(re.split(r"[/\\]", value)[-1])


def _rows(path: Path, known: _Columns) -> Iterator[_Row]:
    with _reading(path):
        records = _records(path)
        next(records, None)
        for record in records:
            name = str(record.get(known.path) or "").strip()
            name += known.ending if name else ""
            split = "" if known.split is None else str(record.get(known.split) or "")
            label = None if known.label is None else record.get(known.label)
            yield _Row(name, find_named(path.parent, name), label, split.strip().lower())


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The names of the columns, as a record's keys, and then every record."""
    if path.suffix.lower() in columns.SUFFIXES:
        yield from columns.records(path)
        return
    kind = kind_of(path)
    with _opened(path) as file:
        yield from _json_records(file) if kind == ".jsonl" else _csv_records(file, kind)


def _csv_records(file: TextIO, kind: str) -> Iterator[Mapping[str, Any]]:
    start = file.readline(2**16)
    if re.fullmatch(r"sep=.\s*", start):  # a note of Excel's for itself
        start = file.readline(2**16)
    first = "\t" if kind == ".tsv" else ","
    separator = max((first, *",\t;|"), key=lambda mark: _n_known(start, mark))
    header = next(csv.reader([start], delimiter=separator), [])
    for name, n in Counter(header).items():
        if n > 1 and (label_key([name]) or name.strip().lower() in (*_PATH_NAMES, *COLUMN_NAMES)):
            raise UserError(f"{n} columns are called {name}: rename all but one")
    yield dict.fromkeys(header)
    for row in csv.reader(_lines(file), delimiter=separator, strict=True):
        if row:
            yield dict(zip(header, row, strict=False))


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise ValueError(f"a line has more than {_MAX_LINE} characters")
        yield line


def _json_records(file: TextIO) -> Iterator[Mapping[str, Any]]:
    names: dict[str, None] = {}
    held: list[dict[str, Any]] = []
    records = (json.loads(line) for line in _lines(file) if line.strip())
    for record in islice(records, _TRIED):
        if not isinstance(record, dict):
            raise ValueError("a line is no JSON object")
        names.update(dict.fromkeys(record))
        held.append(record)
    yield names
    yield from held
    yield from (record for record in records if isinstance(record, dict))


def _n_known(header: str, separator: str) -> int:
    """How many columns of a known name a separator gives."""
    names = [name.strip().strip('"').lower() for name in header.split(separator)]
    known = sum(name in _PATH_NAMES for name in names) + (label_key(names) is not None)
    return known + sum(name in COLUMN_NAMES for name in names)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a table, compressed or not; what Excel calls Unicode text is UTF-16."""
    with path.open("rb") as raw:
        head = raw.read(256)
        check_pointer(head)
        raw.seek(0)
        is_wide = unpacked(head, raw).read(2) in (b"\xff\xfe", b"\xfe\xff")
        raw.seek(0)
        encoding = "utf-16" if is_wide else "utf-8-sig"
        with io.TextIOWrapper(unpacked(head, raw), encoding, newline="") as file:
            yield file


def _damage() -> tuple[type[Exception], ...]:
    return (*damage(), csv.Error, RecursionError)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except _damage() as error:
        kind = "JSON lines" if kind_of(path) == ".jsonl" else "CSV"
        raise UserError(f"cannot read {path}: {error}: save it as {kind} in UTF-8") from error
