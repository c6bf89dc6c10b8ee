"""Where labels come from: one vocabulary and one way of numbering for every reader.

A label is what stands in a folder's name, a table's column, an archive's `.cls` or `.json`: a word
or a number, any number, or a list of one such. What is missing, empty, not a number or another of
`NO_LABEL` is "no label", and so is, after a word, what can be none (a list of two); the image is an
image all the same (pre-training takes it, probes leave it out and count it). Classes are numbered
from 0 in the order of their values (numbers by size, else words by alphabet), and the manifest
keeps the original of each as its name. Where a source brings names (the Hub's ClassLabel), its
numbers are places in that list. A file's own name is never taken for a label.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from igpt.errors import UserError

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
