"""A CSV (or TSV) file of image paths and labels."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UserError
from igpt.images.rejects import NOT_LISTED
from igpt.images.sources.layout import DUPLICATE, Duplicates
from igpt.images.sources.names import is_image_name
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import TRAIN, split_codes

NO_LABEL = "no label"
NO_PATH = "no path"
_PATH_NAMES = ("path", "file", "filename", "file_name", "image", "image_path")
_LABEL_NAMES = ("label", "class", "target", "category")


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    label: str
    split: str


@dataclass(slots=True)
class _Survey:
    """What the first pass over the rows found."""

    labels: set[str]
    splits: set[str]
    duplicates: Duplicates
    n_rows: int = 0
    has_labels: bool = False


def open_table(path: Path, *, unlabelled: bool = False) -> Source:
    """The images that a CSV names.

    Its first line names the columns: `path` (relative to the CSV), and perhaps `label` and
    `split` (train, valid, test).

    Args:
        path: the file; `.tsv` is separated by tabs.
        unlabelled: leave the labels out.

    Raises:
        UserError: it is no such table, or has no rows.
    """
    survey = _Survey(set(), set(), Duplicates())
    for row in _rows(path):
        survey.n_rows += 1
        survey.duplicates.note(os.path.normpath(row.path))
        survey.labels.update([row.label] if row.label else [])
        survey.splits.update([row.split] if row.split else [])
    survey.duplicates.settle()
    if not survey.n_rows:
        raise UserError(f"{path} has no rows: write one a line below the header")
    splits = split_codes(survey.splits)
    if unknown := survey.splits - splits.keys() - {"train"}:
        raise UserError(
            f"{path}: unknown split {min(unknown)!r}: write train (always), valid and test"
        )
    classes = None
    if survey.labels and not unlabelled:
        numeric = all(label.isascii() and label.isdigit() for label in survey.labels)
        classes = tuple(sorted(survey.labels, key=(lambda v: (int(v), v)) if numeric else None))

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(_blocks(path, survey.duplicates, classes, splits))

    return Source(
        name=str(path),
        blocks=blocks,
        classes=classes,
        own_splits=frozenset(splits.values()) or frozenset({TRAIN}),
        n_images=survey.n_rows,
    )


def _blocks(
    path: Path, duplicates: Duplicates, classes: tuple[str, ...] | None, splits: dict[str, int]
) -> Iterator[Block]:
    number = {name: i for i, name in enumerate(classes or ())}
    builder = BlockBuilder(labelled=classes is not None)
    listed: dict[Path, set[str]] = {}
    duplicates.restart()
    for row in _rows(path):
        reason = ""
        if not row.path:
            reason = NO_PATH
        elif duplicates.is_repeated(os.path.normpath(row.path)):
            reason = DUPLICATE
        elif classes is not None and not row.label:
            reason = NO_LABEL
        file = path.parent / row.path
        listed.setdefault(file.parent, set()).add(file.name)
        if reason:
            builder.reject(row.path, reason)
            continue
        yield from builder.add(
            Span(file), row.path, number.get(row.label, -1), splits.get(row.split, TRAIN)
        )
    for folder, names in listed.items():
        for name in _not_listed(folder, names):
            builder.reject(os.path.relpath(folder / name, path.parent), NOT_LISTED)
    yield from builder.rest()


def _not_listed(folder: Path, names: set[str]) -> list[str]:
    try:
        return sorted(
            name for name in os.listdir(folder) if is_image_name(name) and name not in names
        )
    except OSError:
        return []


def _rows(path: Path) -> Iterator[_Row]:
    """Every row, its columns found by name.

    Raises:
        UserError: it cannot be read, or its header has no path.
    """
    with _reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        at_path, at_label = _column(header, _PATH_NAMES), _column(header, _LABEL_NAMES)
        at_split = _column(header, ("split",))
        if at_path is None:
            raise UserError(
                f"{path}: its first line must name the columns, path and label among them"
            )

        def cell(row: list[str], at: int | None) -> str:
            return row[at].strip() if at is not None and at < len(row) else ""

        for row in reader:
            if row:
                yield _Row(cell(row, at_path), cell(row, at_label), cell(row, at_split).lower())


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}: save it as CSV in UTF-8") from error
