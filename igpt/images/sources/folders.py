"""Folders of images: one folder a class, or no classes and any nesting; perhaps split already."""

import os
from collections.abc import Iterator
from pathlib import Path

from igpt.errors import UserError
from igpt.images.files import SUFFIXES
from igpt.images.sources.source import BLOCK_IMAGES, Block, Part, Source, Span
from igpt.images.splits import TEST, TRAIN, VALID

NO_CLASS = "not in a class folder"
EMPTY_CLASS = "class folder without images"
# Names of the folders of a split, and what each is.
_SPLIT_NAMES = {"train": TRAIN, "val": VALID, "valid": VALID, "validation": VALID, "test": TEST}


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return Path(name).suffix.lower() in SUFFIXES


def split_codes(names: set[str]) -> dict[str, int]:
    """Which of these top folders are splits; none unless `train` is one of them.

    Where there is no test folder, the validation folder is the test split: so the paper uses
    ImageNet's (§3.1).
    """
    codes = {name: _SPLIT_NAMES[name.lower()] for name in names if name.lower() in _SPLIT_NAMES}
    if TRAIN not in codes.values() or len(codes) < 2:
        return {}
    if TEST not in codes.values():
        codes = {name: TEST if code == VALID else code for name, code in codes.items()}
    return codes


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
    tops = {entry.name for entry in _entries(folder) if entry.is_dir()}
    roots = {folder / name: code for name, code in split_codes(tops).items()} or {folder: TRAIN}
    counts = {root: _count(root) for root in roots}
    n_images = sum(sum(by_top.values()) for by_top in counts.values())
    if not n_images:
        raise UserError(f"{folder} holds no images ({' '.join(sorted(SUFFIXES))}): check the path")
    named = sorted({top for by_top in counts.values() for top, n in by_top.items() if top and n})
    classes = tuple(named) if len(named) >= 2 and not unlabelled else None
    empty = [top for by_top in counts.values() for top, n in by_top.items() if top and not n]

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        if classes and empty:
            rejects = [(name, EMPTY_CLASS) for name in sorted(set(empty) - set(named))]
            yield Block(images=[], keys=[], labels=[], rejects=rejects)
        for root, code in sorted(roots.items(), key=lambda item: item[1]):
            yield from _blocks(folder, root, code, classes)

    return Source(
        name=str(folder),
        blocks=blocks,
        classes=classes,
        own_splits=frozenset(roots.values()),
        n_images=n_images,
    )


def _blocks(
    folder: Path, root: Path, code: int, classes: tuple[str, ...] | None
) -> Iterator[Block]:
    number = {name: i for i, name in enumerate(classes or ())}
    spans: list[Span] = []
    labels: list[int] = []
    rejects: list[tuple[str, str]] = []

    def block() -> Block:
        keys = [str(span.path.relative_to(folder)) for span in spans]
        held = list(labels) if classes else None
        return Block(images=list(spans), keys=keys, labels=held, code=code, rejects=list(rejects))

    for path in walk_images(root):
        top = _top(path, root)
        if classes and top not in number:
            rejects.append((str(path.relative_to(folder)), NO_CLASS))
            continue
        spans.append(Span(path))
        labels.append(number.get(top, -1))
        if len(spans) == BLOCK_IMAGES:
            yield block()
            spans, labels, rejects = [], [], []
    if spans or rejects:
        yield block()


def _top(path: Path, root: Path) -> str:
    """Name of the folder just below `root` that holds the image; empty: `root` itself."""
    inner = path.relative_to(root).parts
    return inner[0] if len(inner) > 1 else ""


def _count(root: Path) -> dict[str, int]:
    """Images below each folder at the top; under the empty name, those at the top itself."""
    counts = {entry.name: 0 for entry in _entries(root) if entry.is_dir()}
    for path in walk_images(root):
        top = _top(path, root)
        counts[top] = counts.get(top, 0) + 1
    return counts


def walk_images(root: Path) -> Iterator[Path]:
    """Every image file below a folder, in sorted order, one folder's names in memory at a time.

    Raises:
        UserError: a folder cannot be read.
    """
    yield from _walk(root, (os.path.realpath(root),))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in above:  # a link to a folder above would never end
                yield from _walk(Path(entry.path), (*above, real))
        elif is_image_name(entry.name):
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}: check the path") from error
