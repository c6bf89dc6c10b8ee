"""Which reader a name or a path needs."""

import difflib
from collections.abc import Callable
from pathlib import Path

from igpt.errors import UserError
from igpt.images.sources import cifar, digits, folders
from igpt.images.sources.source import Source

NAMED: dict[str, Callable[[], Source]] = {
    "cifar10": cifar.open_cifar10,
    "cifar100": cifar.open_cifar100,
    "digits": digits.open_digits,
}


def open_source(data: str, *, unlabelled: bool = False) -> Source:
    """The reader of what the command line calls DATA.

    Args:
        data: a name, or the path of a folder or file.
        unlabelled: folders are no classes.

    Raises:
        UserError: there is no such name or path, or nothing in it can be read.
    """
    if data in NAMED:
        return NAMED[data]()
    path = Path(data).expanduser()
    if path.is_dir():
        return cifar.find_cifar(path) or folders.open_folder(path, unlabelled=unlabelled)
    if path.is_file():
        raise UserError(f"{data} is of a kind that is not read")
    raise unknown_data(data)


def unknown_data(data: str) -> UserError:
    """What to say of DATA that is neither a name nor a path."""
    near = difflib.get_close_matches(data, NAMED, n=1)
    hint = f"did you mean {near[0]}?" if near else f"names: {', '.join(NAMED)}"
    return UserError(f"there is no data at {data}: {hint}, or the path of a folder, tar or file")
