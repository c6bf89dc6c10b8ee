"""Where labels and splits come from: one vocabulary and one way of numbering for every reader.

A label is what stands in a folder's name, a table's column, an archive's `.cls` or `.json`: a word
or a number, any number, or a list of one such. What is missing, empty, not a number or another of
`NO_LABEL` is "no label", and so is, after a word, what can be none (a list of two); the image is an
image all the same (pre-training takes it, probes leave it out and count it). Classes are numbered
from 0 in the order of their values (numbers by size, else words by alphabet), and the manifest
keeps the original of each as its name. Where a source brings names (the Hub's ClassLabel), its
numbers are places in that list. A file's own name is never taken for a label.

What the folders of a collection mean, splits, classes or nothing, is `layout_of`'s.
"""

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from igpt.errors import UserError
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

MAX_CLASSES = 100_000
"""More different labels are no classes."""
BAD_LABEL = "label is not one of the classes"
NO_LABEL = frozenset(
    (
        *("", "-1", "None", "nan", "-nan", "NaN", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A"),
        *("null", "NULL"),
    )
)
"""Words that tables write where there is nothing, as pandas knows them; and -1."""
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "cls", "target", "targets", "category"),
    *("class_name", "class_label", "label_name", "category_name", "fine_label", "coarse_label"),
    *("class_id", "label_id", "category_id", "class_idx", "label_idx", "classname", "y"),
)
"""Names of columns and keys that hold a label, the first that is there wins; in any case."""


def label_key(names: Iterable[str]) -> str | None:
    """Which of these columns or keys holds the label; none where no name is known."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.strip().lower(), name)
    return next((by_lower[known] for known in LABEL_NAMES if known in by_lower), None)


def label_in(fields: Mapping[str, Any]) -> str | None:
    """The label in a record such as an archive's `.json`; None: it has none."""
    key = label_key(fields)
    return None if key is None else label_of(fields[key])


def label_of(value: Any) -> str | None:
    """A label as text, whatever held it; None: there is none.

    Args:
        value: text, bytes, a number of any type, a day, a list of one of these, or None.

    Raises:
        UserError: it is none of these, such as a list of two; the message is the reason alone.
    """
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # numpy's numbers
        value = value.item()
    if isinstance(value, list | tuple) and len(value) == 1:
        return label_of(value[0])
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float | Decimal | date):
        what = f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else value
        raise UserError(f"label is {what}, not a word or a number")
    text = unicodedata.normalize("NFC", str(value).strip())
    if re.fullmatch(r"[-+]?\d+\.0*", text):  # a table of numbers writes 1 as 1.0
        text = str(int(text.partition(".")[0]))
    return None if text in NO_LABEL else text


def note_label(value: Any, labels: Counter[str | None], odd: Counter[str]) -> None:
    """Count one image's label; what is none, such as a list of two, by its reason too."""
    try:
        labels[label_of(value)] += 1
    except UserError as error:
        labels[None] += 1
        odd[str(error)] += 1


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes among labels, in the order of their numbers."""
    found = set(labels)
    if all(map(_is_whole, found)):
        return tuple(sorted(found, key=lambda text: (int(text), text)))
    return tuple(sorted(found))


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


class Numbering:
    """Numbers for labels.

    Args:
        classes: the name of every class, in the order of their numbers.
        are_places: whole numbers among the labels are places in `classes`, as in a ClassLabel.
    """

    def __init__(self, classes: Sequence[str], *, are_places: bool = False) -> None:
        self.classes = tuple(classes)
        self._number = {name: i for i, name in enumerate(self.classes)}
        self._are_places = are_places

    def number(self, value: Any) -> int:
        """The number of a label's class, -1 for no label and for what can be none.

        Raises:
            UserError: it is of no class; the message is the reason alone.
        """
        try:
            label = label_of(value)
        except UserError:  # said where the labels were counted
            return -1
        if label is None:
            return -1
        if label in self._number and not (self._are_places and _is_whole(label)):
            return self._number[label]
        if self._are_places and _is_whole(label) and 0 <= int(label) < len(self.classes):
            return int(label)
        raise UserError(BAD_LABEL)


def labels_in(held: np.ndarray, n: int, name: str) -> np.ndarray:
    """The labels of n images in an array: one each, or one-hot rows.

    Args:
        held: (n,) or (n, 1) numbers or words, or (n, C) with a single 1 in each row.
        n: images.
        name: of the array, for the error.

    Returns:
        (n,), of one-hot rows the place of the 1.

    Raises:
        UserError: it is neither.
    """
    if held.size == n and held.dtype.kind in "iufbUS":
        return held.reshape(n)
    if held.ndim == 2 and len(held) == n and held.dtype.kind in "iufb":
        # Some rows at a time: the array may be a file's.
        chunks = [held[start : start + 4096] for start in range(0, n, 4096)]
        if all(((rows != 0).sum(axis=1) == 1).all() for rows in chunks):
            return np.concatenate([rows.argmax(axis=1) for rows in chunks])
    raise UserError(
        f"{name} holds {held.shape} {held.dtype}: it needs a label an image ({n}), or one-hot "
        "rows; --unlabelled leaves labels out"
    )


def numbered(
    held: Sequence[np.ndarray], name: str, *, names: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The classes that arrays of labels share, and each array as their numbers.

    Args:
        held: (n,) each, as `labels_in` gives them.
        name: of the source, for the error.
        names: of the classes, where the labels are places among them.

    Returns:
        Names of the classes, and (n,) int64 each, -1 for no label.

    Raises:
        UserError: there are more labels than classes, or one is none of `names`.
    """
    found = [np.unique(labels, return_inverse=True) for labels in held]
    if sum(len(values) for values, _ in found) > len(found) * MAX_CLASSES:
        raise UserError(
            f"{name} has more than {MAX_CLASSES} different labels, so they are no classes: leave "
            "them out by --unlabelled"
        )
    words = [[label_of(value) for value in values] for values, _ in found]
    seen = ordered(word for some in words for word in some if word is not None)
    numbering = Numbering(names or seen, are_places=bool(names))
    try:
        numbers = [np.array([*map(numbering.number, some)], np.int64) for some in words]
    except UserError as error:
        raise UserError(f"{name}: a {error}") from error
    codes = [values[place] for values, (_, place) in zip(numbers, found, strict=True)]
    return numbering.classes, codes


def said_of_labels(where: str, *, n_labelled: int, n_images: int, n_classes: int) -> str:
    """The line that says where labels come from and how many images have none."""
    some = "" if n_labelled == n_images else f"; {n_images - n_labelled} of {n_images} have none"
    return f"labels: {n_classes} classes from {where}{some}"


def said_of_odd(where: str, odd: Counter[str]) -> list[str]:
    """What to say of values that can be no label."""
    return [f"labels: {n} in {where} are none: {reason}" for reason, n in odd.most_common(3)]


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
