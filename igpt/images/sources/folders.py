"""Folders of images: one folder a class, or no classes and any nesting; perhaps split already.

Links are followed, to files and to folders, but never to a folder above; a link to nothing or to
itself is an image that cannot be read. Folders below that igpt itself wrote (runs, searches, model
folders, packed sets, its cache) hold no data.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from igpt.errors import UserError
from igpt.files import cache_folder
from igpt.images.rejects import EMPTY_CLASS
from igpt.images.sources.labels import Layout, layout_of
from igpt.images.sources.names import Unread, is_hidden, is_image_name, shown, suffixes
from igpt.images.sources.source import Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import image_code

# Names of which all stand in what igpt writes, and nowhere else together.
_OWN_FOLDERS = (
    {"config.json", "metrics.jsonl"},
    {"config.json", "checkpoints"},
    {"config.json", "model.safetensors", "preprocessor_config.json"},
    {"manifest.json", "splits.npy", "labels.npy"},
    {"unfinished.json", "rejects.csv"},
    {"search.json"},
)


def open_folder(folder: Path, *, unlabelled: bool = False) -> Source:
    """The images of a folder and everything below it.

    `igpt.images.sources.labels` says what the folders mean.

    Args:
        folder: where the images are.
        unlabelled: folders are no classes.

    Raises:
        UserError: there are no images.
    """
    counts, said = Counter[str](), Counter[int | None]()
    unread, own = Unread(), list[str]()
    for inner, names in walk_folders(folder, own=own):
        images = [name for name in names if is_image_name(name)]
        counts[inner] = len(images)
        said.update(map(image_code, images))
        for name in set(names).difference(images):
            unread.note(name)
    layout = layout_of(counts, unlabelled=unlabelled, said=said)
    seen = [*unread.lines(), *own_folders_line(own)]
    if not layout.n_images:
        found = f"; {'; '.join(seen)}" if seen else ""
        raise UserError(
            f"{folder} holds no images ({' '.join(sorted(suffixes()))}){found}: check the path"
        )

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(_blocks(folder, layout))

    return Source(
        name=str(folder),
        blocks=blocks,
        classes=layout.classes,
        own_splits=layout.own_splits,
        n_images=layout.n_images,
        valid_fraction=layout.valid_fraction,
        decided=(*layout.decided, *seen),
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


def images_below(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Every image file below a folder, sorted, and what to say of the files that are none.

    Raises:
        UserError: a folder cannot be read.
    """
    files, unread, own = list[Path](), Unread(), list[str]()
    for inner, names in walk_folders(folder, own=own):
        for name in names:
            if is_image_name(name):
                files.append(folder / inner / name)
            else:
                unread.note(name)
    return files, (*unread.lines(), *own_folders_line(own))


def walk_images(folder: Path) -> Iterator[Path]:
    """Every image file below a folder, in sorted order, one folder's names in memory at a time.

    Raises:
        UserError: a folder cannot be read.
    """
    for inner, names in walk_folders(folder):
        for name in filter(is_image_name, names):
            yield folder / inner / name


def walk_folders(folder: Path, *, own: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Every folder from `folder` down, by its relative path, and the names of its files, sorted.

    Args:
        folder: where to begin; it counts whatever it is called and whoever wrote it.
        own: gets the relative paths of the folders that igpt wrote, which are left out.

    Raises:
        UserError: a folder cannot be read.
    """
    yield from _walk(folder, "", (os.path.realpath(folder),), [] if own is None else own)


def _walk(
    top: Path, inner: str, above: tuple[str, ...], own: list[str]
) -> Iterator[tuple[str, list[str]]]:
    try:
        with os.scandir(top / inner) as entries:
            seen = sorted((e.name, _is_folder(e)) for e in entries if not is_hidden(e.name))
    except OSError as error:
        raise UserError(
            f"cannot read folder {top / inner}: {error.strerror}: check the path"
        ) from error
    if inner and _is_own(above[-1], {name for name, _ in seen}):
        own.append(inner)
        return
    yield inner, [name for name, is_dir in seen if not is_dir]
    for name in (name for name, is_dir in seen if is_dir):
        below = f"{inner}/{name}" if inner else name
        real = os.path.realpath(top / below)
        if real not in above:
            yield from _walk(top, below, (*above, real), own)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: its name decides whether it is a lost image
        return False


def _is_own(real: str, names: Collection[str]) -> bool:
    return any(own <= set(names) for own in _OWN_FOLDERS) or real == os.path.realpath(
        cache_folder()
    )


def own_folders_line(own: Collection[str]) -> tuple[str, ...]:
    """What to say of folders that igpt wrote and so left out."""
    if not own:
        return ()
    more = f" and {len(own) - 3} more" if len(own) > 3 else ""
    return (f"left out, as igpt wrote it: {', '.join(map(shown, sorted(own)[:3]))}{more}",)
