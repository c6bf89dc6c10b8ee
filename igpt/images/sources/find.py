"""Which reader a name or a path needs."""

import difflib
from collections.abc import Callable
from pathlib import Path

from igpt.errors import UserError
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.sources import (
    archive,
    arrays,
    binaries,
    cifar,
    columns,
    digits,
    folders,
    imagenet,
    packed,
    tables,
    tar,
    tokenised,
)
from igpt.images.sources.names import suffixes as image_suffixes
from igpt.images.sources.source import Source

NAMED: dict[str, Callable[[], Source]] = {
    "cifar10": cifar.open_cifar10,
    "cifar100": cifar.open_cifar100,
    "stl10": binaries.open_stl10,
    "fashion-mnist": binaries.open_fashion_mnist,
    "digits": digits.open_digits,
}
KINDS = "a folder of images, or a .tar .tar.gz .tar.zst .csv .tsv .parquet .arrow .npz .npy file"
# Sets whose folder is known by the names of its files.
_FINDERS: tuple[Callable[[Path], Source | None], ...] = (
    imagenet.find_imagenet,
    cifar.find_cifar,
    binaries.find_idx,
    binaries.find_stl10,
    tokenised.find_tokens,
)


def open_source(data: str, *, unlabelled: bool = False) -> Source:
    """The reader of what the command line calls DATA.

    Args:
        data: a name, or the path of a folder or file; `*` in the last part takes several files.
        unlabelled: leave labels out, where they come from folders, columns or files.

    Raises:
        UserError: there is no such name or path, or nothing in it can be read.
    """
    if data in NAMED:
        return NAMED[data]()
    path = Path(data).expanduser()
    if is_packed(path):
        return packed.open_packed(PackedSet.open(path))
    if path.is_dir():
        return _open_folder(path, unlabelled=unlabelled)
    if files := files_of(path):
        return _open_files(files, name=data, unlabelled=unlabelled)
    raise unknown_data(data)


def files_of(path: Path) -> list[Path]:
    """The file, with those that belong to it; or those that a pattern in its name means, sorted."""
    if files := tokenised.token_files(path):
        return files
    if path.exists():
        return [path]
    if "*" not in path.name or not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.glob(path.name) if file.is_file())


def unknown_data(data: str) -> UserError:
    """What to say of DATA that is neither a name nor a path."""
    near = difflib.get_close_matches(data, NAMED, n=1)
    if near:
        return UserError(f"there is no data at {data}: did you mean {near[0]}?")
    names = ", ".join(NAMED)
    return UserError(f"there is no data at {data}: names: {names}, or the path of {KINDS}")


def _open_folder(folder: Path, *, unlabelled: bool) -> Source:
    for find in _FINDERS:
        if (source := find(folder)) is not None:
            return source
    files = sorted(path for path in folder.iterdir() if path.is_file())
    archives = [path for path in files if archive.is_archive_name(path.name)]
    tables_of_images = [path for path in files if path.suffix in columns.SUFFIXES]
    for chosen in (archives, tables_of_images):
        if chosen:
            return _open_files(chosen, name=str(folder), unlabelled=unlabelled)
    return folders.open_folder(folder, unlabelled=unlabelled)


def _open_files(files: list[Path], *, name: str, unlabelled: bool) -> Source:
    suffixes = {path.suffix.lower() for path in files}
    if tokenised.token_files(files[0]):
        return tokenised.open_tokens(files)
    if all(archive.is_archive_name(path.name) for path in files):
        return tar.open_tars(files, name=name, unlabelled=unlabelled)
    if suffixes <= set(columns.SUFFIXES):
        return columns.open_columns(files, name=name, unlabelled=unlabelled)
    if len(files) == 1 and suffixes <= {".csv", ".tsv"}:
        return tables.open_table(files[0], unlabelled=unlabelled)
    if suffixes == {".npz"} and len(files) == 1:
        return arrays.open_npz(files[0])
    if suffixes == {".npy"} and len(files) == 1:
        return arrays.open_npy(files[0])
    if suffixes <= {".gz", ".zip", ".7z", ".bz2", ".xz", ".zst"}:
        raise UserError(f"{name} is compressed: unpack it first, to a folder or a tar")
    if suffixes <= image_suffixes():
        raise UserError(f"{name} is a single image: pass the folder that holds it")
    raise UserError(f"{name} is of a kind that is not read: pass {KINDS}")
