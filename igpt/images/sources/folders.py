"""Folders of images: one folder a class, or no classes and any nesting; perhaps split already."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from igpt.errors import UserError
from igpt.images.files import SUFFIXES
from igpt.images.sources.layout import EMPTY_CLASS, Layout, layout_of
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a million times


def open_folder(folder: Path, *, unlabelled: bool = False) -> Source:
    """The images of a folder and everything below it.

    Two or more folders with images at its top are classes. `train` beside `val` or `test` at its
    top are splits, with the classes below.

    Args:
        folder: where the images are.
        unlabelled: folders are no classes.

    Raises:
        UserError: there are no images.
    """
    counts: Counter[str] = Counter()
    for inner, names in walk_folders(folder):
        counts[inner] = sum(map(is_image_name, names))
    layout = layout_of(counts, unlabelled=unlabelled)
    if not layout.n_images:
        raise UserError(f"{folder} holds no images ({' '.join(sorted(SUFFIXES))}): check the path")

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(_blocks(folder, layout))

    return Source(
        name=str(folder),
        blocks=blocks,
        classes=layout.classes,
        own_splits=layout.own_splits,
        n_images=layout.n_images,
        valid_fraction=layout.valid_fraction,
    )


def _blocks(folder: Path, layout: Layout) -> Iterator[Block]:
    builder = BlockBuilder(labelled=layout.classes is not None)
    for name in layout.empty:
        builder.reject(name, EMPTY_CLASS)
    for path in walk_images(folder):
        name = path.relative_to(folder).as_posix()
        try:
            code, label = layout.place(name)
        except UserError as error:
            builder.reject(name, str(error))
            continue
        yield from builder.add(Span(path), name, label, code)
    yield from builder.rest()


def walk_images(folder: Path) -> Iterator[Path]:
    """Every image file below a folder, in sorted order, one folder's names in memory at a time.

    Raises:
        UserError: a folder cannot be read.
    """
    for inner, names in walk_folders(folder):
        for name in filter(is_image_name, names):
            yield folder / inner / name


def walk_folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from `folder` down, by its relative path, and the names of its files, sorted.

    Hidden ones are left out; links to folders are followed, but never to a folder above.

    Raises:
        UserError: a folder cannot be read.
    """
    yield from _walk(folder, "", (os.path.realpath(folder),))


def _walk(top: Path, inner: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    try:
        with os.scandir(top / inner) as entries:
            seen = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"cannot read folder {top / inner}: {error.strerror}: check the path"
        ) from error
    yield inner, [name for name, is_dir in seen if not is_dir]
    for name in (name for name, is_dir in seen if is_dir):
        below = f"{inner}/{name}" if inner else name
        real = os.path.realpath(top / below)
        if real not in above:
            yield from _walk(top, below, (*above, real))
