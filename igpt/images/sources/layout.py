"""What the folders of a collection mean: splits, classes, or nothing."""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from igpt.errors import UserError
from igpt.images.splits import IMAGENET_VALID_FRACTION, TEST, TRAIN, VALID, VALID_FRACTION

NO_CLASS = "not in a class folder"
EMPTY_CLASS = "class folder without images"
DUPLICATE = "the same name as one before"
_SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALID,
    "valid": VALID,
    "validation": VALID,
    "test": TEST,
    "testing": TEST,
}


def split_codes(names: set[str]) -> dict[str, int]:
    """Which of these names are splits; none unless a training split is among several.

    Where there is no test split, the validation split is it: so the paper uses ImageNet's (§3.1).
    """
    codes = {name: _SPLIT_NAMES[name.lower()] for name in names if name.lower() in _SPLIT_NAMES}
    if TRAIN not in codes.values() or len(codes) < 2:
        return {}
    if TEST not in codes.values():
        codes = {name: TEST if code == VALID else code for name, code in codes.items()}
    return codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is known of every image from the folder it lies in."""

    depth: int
    """Folders that hold everything, and so mean nothing."""
    splits: Mapping[str, int]
    """Code by the name of a split's folder; empty: no splits."""
    labels: Mapping[str, int] | None
    """Number by the name of a class's folder, in sorted order; None: folders are no classes."""
    empty: tuple[str, ...]
    """Class folders without an image."""
    n_images: int
    """How many there are."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        return None if self.labels is None else tuple(self.labels)

    @property
    def own_splits(self) -> frozenset[int]:
        """Codes of the splits it has."""
        return frozenset(self.splits.values()) or frozenset({TRAIN})

    @property
    def valid_fraction(self) -> float:
        """The paper's share for validation: ImageNet's is smaller (§3.1)."""
        names = self.classes or ()
        is_imagenet = len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)
        return IMAGENET_VALID_FRACTION if is_imagenet else VALID_FRACTION

    def place(self, name: str) -> tuple[int, int]:
        """Split code and label (-1: none) of an image by its relative path.

        Raises:
            UserError: it lies outside every split or class; the message is the reason alone.
        """
        folders = name.split("/")[self.depth : -1]
        code = TRAIN
        if self.splits:
            if not folders or folders[0] not in self.splits:
                raise UserError("not in the folder of a split")
            code = self.splits[folders[0]]
            folders = folders[1:]
        if self.labels is None:
            return code, -1
        if not folders or folders[0] not in self.labels:
            raise UserError(NO_CLASS)
        return code, self.labels[folders[0]]


def layout_of(counts: Mapping[str, int], *, unlabelled: bool) -> Layout:
    """The layout of a tree of folders.

    Args:
        counts: images directly in each folder, by its relative path (`""`: the top).
        unlabelled: folders are no classes.
    """
    n_images = sum(counts.values())
    trees = {PurePosixPath(name).parts: n for name, n in counts.items()}
    depth = 0
    # A folder that holds nothing but one folder is packaging.
    while len({parts[depth] for parts in trees if len(parts) > depth}) == 1 and not any(
        n for parts, n in trees.items() if len(parts) == depth
    ):
        depth += 1
        if not any(len(parts) > depth for parts in trees):
            depth -= 1
            break
    tops = {parts[depth] for parts in trees if len(parts) > depth}
    splits = split_codes(tops)
    level = depth + bool(splits)
    held: Counter[str] = Counter()
    for parts, n in trees.items():
        if len(parts) > level and (not splits or parts[depth] in splits):
            held[parts[level]] += n
    named = sorted(name for name, n in held.items() if n)
    is_labelled = len(named) >= 2 and not unlabelled
    return Layout(
        depth=depth,
        splits=splits,
        labels={name: i for i, name in enumerate(named)} if is_labelled else None,
        empty=tuple(sorted(name for name, n in held.items() if not n)) if is_labelled else (),
        n_images=n_images,
    )


class Duplicates:
    """Finds names that come twice among millions, at eight bytes a name."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._twice: frozenset[int] = frozenset()
        self._seen: set[int] = set()

    def note(self, name: str) -> None:
        """First pass: this name comes."""
        self._keys.append(key_of_name(name))

    def settle(self) -> None:
        """The first pass is over."""
        keys, counts = np.unique(np.array(self._keys, np.uint64), return_counts=True)
        self._twice = frozenset(keys[counts > 1].tolist())
        self._keys = array("Q")

    def restart(self) -> None:
        """Another pass begins."""
        self._seen.clear()

    def is_repeated(self, name: str) -> bool:
        """Later passes: whether this name came before in this pass."""
        if not self._twice or (key := key_of_name(name)) not in self._twice:
            return False
        repeated = key in self._seen
        self._seen.add(key)
        return repeated


def key_of_name(name: str) -> int:
    """64 bits of a name."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
