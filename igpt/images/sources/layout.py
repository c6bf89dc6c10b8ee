"""What the folders of a collection mean: splits, classes, or nothing."""

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np

from igpt.errors import UserError
from igpt.images.sources.labels import label_of, ordered, said_of_labels
from igpt.images.splits import (
    IMAGENET_VALID_FRACTION,
    TRAIN,
    VALID_FRACTION,
    codes_of_images,
    image_code,
    said_alone,
    said_of_splits,
    split_codes,
)

DUPLICATE = "the same name as one before"
NO_SPLIT = "not in the folder of a split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is known of every image from the folder it lies in."""

    depth: int
    """Folders that hold everything, and so mean nothing."""
    splits: Mapping[str, int]
    """Code by the name of a split's folder; empty: no splits."""
    is_class_first: bool
    """Whether the splits lie within the classes."""
    by_name: Mapping[int, int]
    """Code by what `image_code` makes of an image's name; empty: names say no splits."""
    labels: Mapping[str, int] | None
    """Number by the name of a class's folder; None: folders are no classes."""
    classes: tuple[str, ...] | None
    """Names of the classes, in the order of their numbers."""
    empty: tuple[str, ...]
    """Class folders without an image."""
    n_images: int
    """How many there are."""
    decided: tuple[str, ...]
    """What was made of the folders' names, for people."""

    @property
    def own_splits(self) -> frozenset[int]:
        """Codes of the splits it has."""
        return frozenset((*self.splits.values(), *self.by_name.values())) or frozenset({TRAIN})

    @property
    def valid_fraction(self) -> float:
        """The paper's share for validation: ImageNet's is smaller (§3.1)."""
        names = self.classes or ()
        is_imagenet = len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)
        return IMAGENET_VALID_FRACTION if is_imagenet else VALID_FRACTION

    def place(self, name: str) -> tuple[int, int]:
        """Split code and label (-1: none) of an image by its relative path.

        Raises:
            UserError: it lies outside every split; the message is the reason alone.
        """
        *folders, base = name.split("/")[self.depth :]
        code = self.by_name.get(image_code(base) or TRAIN, TRAIN) if self.by_name else TRAIN
        if self.splits:
            place = int(self.is_class_first)
            if len(folders) <= place or folders[place] not in self.splits:
                raise UserError(NO_SPLIT)
            code = self.splits[folders.pop(place)]
        if self.labels is None or not folders:
            return code, -1
        return code, self.labels.get(folders[0], -1)


def layout_of(
    counts: Mapping[str, int],
    *,
    unlabelled: bool,
    said: Mapping[int | None, int] = MappingProxyType({}),
) -> Layout:
    """The layout of a tree of folders.

    Folders that hold nothing but one folder with images are packaging. What is left at the top are
    splits, if their names say so, or else classes, if images lie in two of them or more; below the
    splits, the same. Where every image lies two folders deep and the inner ones are splits, the
    outer ones are classes. Images beside the class folders have no label.

    Args:
        counts: images directly in each folder, by its relative path (`""`: the top).
        unlabelled: folders are no classes.
        said: images by what `image_code` makes of their names.
    """
    trees = {PurePosixPath(name).parts: n for name, n in counts.items()}
    filled = {parts: n for parts, n in trees.items() if n}
    depth = 0
    while filled and len({parts[: depth + 1] for parts in filled}) == 1:
        if any(len(parts) <= depth + 1 for parts in filled):
            break
        depth += 1
    splits, is_class_first = _splits(filled, depth)
    by_name = {} if splits else codes_of_images(said)
    level = depth + (bool(splits) and not is_class_first)
    held: Counter[str] = Counter()
    for parts, n in trees.items():
        if len(parts) > level and (not splits or is_class_first or parts[depth] in splits):
            held[parts[level]] += n
    named = sorted(name for name, n in held.items() if n)
    is_labelled = len(named) >= 2 and not unlabelled
    classes = ordered(label_of(name) or name for name in named) if is_labelled else None
    return Layout(
        depth=depth,
        splits=splits,
        is_class_first=is_class_first,
        by_name=by_name,
        labels={name: classes.index(label_of(name) or name) for name in named} if classes else None,
        classes=classes,
        empty=tuple(sorted(name for name, n in held.items() if not n)) if is_labelled else (),
        n_images=sum(counts.values()),
        decided=(
            *_said_of_names(filled, depth, said, by_name, has_splits=bool(splits)),
            *_decided(filled, depth + is_class_first, splits, held, classes, unlabelled=unlabelled),
        ),
    )


def _said_of_names(
    filled: Mapping[tuple[str, ...], int],
    depth: int,
    said: Mapping[int | None, int],
    by_name: Mapping[int, int],
    *,
    has_splits: bool,
) -> tuple[str, ...]:
    """What to say of names that say splits, believed or not, where the folders bring none."""
    if has_splits:
        return ()
    if by_name:
        counts: Counter[int] = Counter()
        for code, n in said.items():
            counts[by_name[code or TRAIN]] += n
        return (said_of_splits("the names of images", counts),)
    n, n_without = sum(said.values()), said.get(None, 0)
    if n_without < n / 2 and codes_of_images({**said, None: 0}):
        return (f"splits: drawn, as {n_without} of {n} images are not named after one, as others",)
    return said_alone({name for parts in filled for name in parts[: depth + 1]})


def _splits(filled: Mapping[tuple[str, ...], int], depth: int) -> tuple[dict[str, int], bool]:
    """Codes by the names of the splits' folders, and whether these lie within the classes."""
    outer = split_codes({parts[depth] for parts in filled if len(parts) > depth})
    if outer or any(len(parts) < depth + 2 for parts in filled):
        return outer, False
    names = {parts[depth + 1] for parts in filled}
    inner = split_codes(names)
    return (inner, True) if inner and len(inner) == len(names) else ({}, False)


def _decided(
    filled: Mapping[tuple[str, ...], int],
    depth: int,
    splits: Mapping[str, int],
    held: Counter[str],
    classes: tuple[str, ...] | None,
    *,
    unlabelled: bool,
) -> tuple[str, ...]:
    lines = []
    if splits:
        by_code: Counter[int] = Counter()
        for parts, n in filled.items():
            if len(parts) > depth and parts[depth] in splits:
                by_code[splits[parts[depth]]] += n
        lines.append(said_of_splits("the names of folders", by_code))
    if classes is not None:
        lines.append(
            said_of_labels(
                "the names of folders",
                n_labelled=sum(held.values()),
                n_images=sum(filled.values()),
                n_classes=len(classes),
            )
        )
    elif not unlabelled:
        lines.append("labels: none, as there are no two folders of images side by side")
    return tuple(lines)


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
    """64 bits of a name, the same as long as this process lives."""
    return hash(name) & 0xFFFF_FFFF_FFFF_FFFF
