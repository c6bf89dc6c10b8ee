"""Which reader a name or a path needs; a packed set, to make a smaller one of it, is read here."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from igpt.errors import UserError
from igpt.images.packed.format import is_packed
from igpt.images.packed.originals import originals_of
from igpt.images.packed.read import PackedSet
from igpt.images.sources import (
    archive,
    arrays,
    columns,
    folders,
    named,
    remote,
    tables,
    tar,
)
from igpt.images.sources.names import counts, expanded, is_image_name
from igpt.images.sources.names import suffixes as image_suffixes
from igpt.images.sources.source import Block, Part, Source, block_length, without_labels
from igpt.images.splits import SPLITS, Split
from igpt.system import at_home

NAMED: dict[str, Callable[[], Source]] = {
    "cifar10": named.open_cifar10,
    "cifar100": named.open_cifar100,
    "stl10": named.open_stl10,
    "fashion-mnist": named.open_fashion_mnist,
    "digits": named.open_digits,
}
KINDS = (
    "a folder of images, or a .tar .tar.gz .tar.zst .zip .csv .tsv .jsonl .parquet .arrow .npz "
    ".npy file"
)
# Sets whose folder is known by the names of its files.
_FINDERS: tuple[Callable[[Path], Source | None], ...] = (
    named.find_imagenet,
    named.find_cifar,
    named.find_idx,
    named.find_stl10,
    arrays.find_tokens,
)


def open_source(data: str, *, unlabelled: bool = False, channels: tuple[int, ...] = ()) -> Source:
    """The reader of what the command line calls DATA.

    Args:
        data: a name, or the path of a folder or file; `*` in the last part and braces take several.
        unlabelled: leave labels out, where they come from folders, columns or files.
        channels: of arrays, from 0: three that become red, green and blue, or one that becomes
            grey; empty: all.

    Raises:
        UserError: there is no such name or path, or nothing in it can be read.
    """
    if channels:
        return _open_channels(data, channels, unlabelled=unlabelled)
    if data in NAMED:
        return NAMED[data]()
    if remote.is_remote(data):
        held = remote.mirror(data)
        with remote.named(held):
            source = _open_path(held.path, str(held.path), unlabelled=unlabelled)
        source = replace(source, name=held.name)
    else:
        source = _open_path(at_home(data), data, unlabelled=unlabelled)
    return without_labels(source) if unlabelled and source.classes is not None else source


def _open_channels(data: str, channels: tuple[int, ...], *, unlabelled: bool) -> Source:
    path = at_home(data)
    chosen = ",".join(map(str, channels))
    if path.suffix.lower() not in (".npz", ".npy") or arrays.token_files(path):
        raise UserError(
            f"--channels {chosen} is of arrays (.npz, .npy): {data} is read as RGB, without it"
        )
    if not path.is_file():
        raise unknown_data(data)
    if path.suffix.lower() == ".npy":
        source = arrays.open_npy(path, channels=channels)
    else:
        source = arrays.open_npz(path, unlabelled=unlabelled, channels=channels)
    meant = "red, green and blue" if len(channels) == 3 else "grey"
    said = f"channels: {', '.join(map(str, channels))} as {meant}; the others are not read"
    # In the name, as whoever goes on with a set must choose the same.
    name = f"{source.name} (channels {chosen})"
    return replace(source, name=name, decided=(*source.decided, said))


def _open_path(path: Path, data: str, *, unlabelled: bool) -> Source:
    if is_packed(path):
        remote.fetch_all(path)
        return open_packed(PackedSet.open(path))
    if path.is_dir():
        return _open_folder(path, unlabelled=unlabelled)
    if files := files_of(path):
        return _open_files(files, name=data, unlabelled=unlabelled)
    raise unknown_data(data)


def files_of(path: Path) -> list[Path]:
    """The file, with those that belong to it; or those that a pattern in its name means, in order.

    Raises:
        UserError: braces name some that are there, and others that are not.
    """
    if files := arrays.token_files(path):
        return files
    if path.exists():
        return [path]
    if len(named := [Path(name) for name in expanded(str(path))]) > 1:
        absent = [file for file in named if not file.is_file()]
        if absent and len(absent) < len(named):
            raise UserError(f"{len(absent)} of the {len(named)} files of {path} lack: {absent[0]}")
        return [] if absent else named
    if "*" not in path.name or not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.glob(path.name) if file.is_file())


def unknown_data(data: str) -> UserError:
    """What to say of DATA that is neither a name nor a path."""
    near = difflib.get_close_matches(data, NAMED, n=1)
    if near:
        return UserError(f"there is no data at {data}: did you mean {near[0]}?")
    names = ", ".join(NAMED)
    hub = f", or hf:{data} for a data set of the Hub" if remote.may_be_hub(data) else ""
    return UserError(f"there is no data at {data}: names: {names}, or the path of {KINDS}{hub}")


def _open_folder(folder: Path, *, unlabelled: bool) -> Source:
    for find in () if remote.is_mirrored(folder) else _FINDERS:
        if (source := find(folder)) is not None:
            return source
    archives, column_files, listed, n_images = _inside(folder)
    beside = f"{n_images} images beside them are not read: name their folder, or move them away"
    if archives:
        source = _open_files(archives, name=str(folder), unlabelled=unlabelled)
    elif column_files and not (n_images and not columns.has_images(column_files[0])):
        source = _open_files(column_files, name=str(folder), unlabelled=unlabelled)
    elif listed and all(tables.gives_labels(remote.present(path)) for path in listed):
        return _open_files(listed, name=str(folder), unlabelled=unlabelled)
    else:
        return folders.open_folder(folder, unlabelled=unlabelled)
    return replace(source, decided=(*source.decided, *([beside] if n_images else [])))


def _inside(folder: Path) -> tuple[list[Path], list[Path], list[Path], int]:
    """Archives, tables and lists of a folder and all below it, and the number of its images.

    A table of addresses stands beside images, as downloaders leave it, and means nothing then.
    """
    archives, column_files, listed, n_images = list[Path](), list[Path](), list[Path](), 0
    for inner, names in folders.walk_folders(folder):
        for name in filter(counts, names):
            if archive.is_archive_name(name):
                archives.append(folder / inner / name)
            elif name.lower() in tables.METADATA:
                listed.append(folder / inner / name)
            elif name.lower().endswith(columns.SUFFIXES):
                column_files.append(folder / inner / name)
            else:
                n_images += is_image_name(name)
    return archives, column_files, listed, n_images


def _open_files(files: list[Path], *, name: str, unlabelled: bool) -> Source:
    suffixes = {tables.kind_of(path) or path.suffix.lower() for path in files}
    if arrays.token_files(files[0]):
        return arrays.open_tokens(files)
    if all(archive.is_archive_name(path.name) for path in files):
        return tar.open_tars(files, name=name, unlabelled=unlabelled)
    are_columns = suffixes <= set(columns.SUFFIXES)
    if are_columns and not (tables.names_files(files[0]) and not columns.has_images(files[0])):
        return columns.open_columns(files, name=name, unlabelled=unlabelled)
    for path in files:
        remote.present(path)
    if are_columns or suffixes <= set(tables.SUFFIXES):
        return tables.open_tables(files, name=name, unlabelled=unlabelled)
    if suffixes == {".npz"} and len(files) == 1:
        return arrays.open_npz(files[0], unlabelled=unlabelled)
    if suffixes == {".npy"} and len(files) == 1:
        return arrays.open_npy(files[0])
    if suffixes <= {".gz", ".7z", ".rar", ".bz2", ".xz", ".zst"}:
        raise UserError(f"{name} is compressed: unpack it first, to a folder or a tar")
    if suffixes <= image_suffixes():
        raise UserError(f"{name} is a single image: pass the folder that holds it")
    raise UserError(f"{name} is of a kind that is not read: pass {KINDS}")


def open_packed(packed: PackedSet) -> Source:
    """The images of a packed set, its splits kept as they are.

    Raises:
        UserError: it holds random crops, which have no single size.
    """
    if packed.manifest["views"]:
        raise UserError(f"{packed.folder} holds random crops: prepare its source again instead")

    def blocks(part: Part) -> Iterator[Block]:
        return part.share(every_block())

    def every_block() -> Iterator[Block]:
        for code, split in enumerate(SPLITS):
            yield from _blocks(packed, split, code)

    return Source(
        name=f"{packed.source} at {packed.image_size} pixels",
        blocks=blocks,
        classes=packed.classes,
        source_px=packed.manifest.get("source_px", 0),
        own_splits=frozenset(code for code, split in enumerate(SPLITS) if packed.n(split)),
        n_images=sum(packed.n(split) for split in SPLITS),
    )


def _blocks(packed: PackedSet, split: Split, code: int) -> Iterator[Block]:
    images, labels, places = packed.images(split), packed.labels(split), packed.rows(split)
    originals = originals_of(packed)
    step = block_length(3 * packed.image_size**2)
    for start in range(0, len(images), step):
        rows = np.arange(start, min(start + step, len(images)))
        yield Block(
            images=images[rows],
            keys=[f"{split}/{row}" for row in rows],
            labels=None if labels is None else labels[rows],
            originals=[] if originals is None else [originals.at(int(i)) for i in places[rows]],
            code=code,
        )
