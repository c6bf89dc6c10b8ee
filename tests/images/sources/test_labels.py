from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.sources.labels import Numbering, label_in, label_key, label_of, ordered


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((3, "3"), (np.int64(3), "3"), (np.uint8(3), "3"), (3.0, "3"), (" cat ", "cat")),
        *((b"7\n", "7"), (4006381, "4006381"), (2**60, str(2**60)), (-2, "-2"), (True, "True")),
        *((0, "0"), ("01", "01"), ("e\u0301", "\u00e9")),
    ],
)
def test_words_and_numbers_are_labels(value: object, label: str) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize("value", [None, "", " ", -1, "-1", float("nan"), np.float32("nan"), b""])
def test_what_is_missing_is_no_label(value: object) -> None:
    assert label_of(value) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *(([3], "3"), (("cat",), "cat"), (np.array([2]), "2"), ([["dog"]], "dog")),
        *((Decimal("3.00"), "3"), (date(2020, 5, 1), "2020-05-01")),
    ],
)
def test_a_list_of_one_is_what_it_holds_and_days_are_words(value: object, label: str) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize("value", [[1, 2], [], {"a": 1}, np.zeros(3)])
def test_lists_are_no_labels(value: object) -> None:
    with pytest.raises(UserError, match="not a word or a number"):
        label_of(value)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        *((["image", "Label"], "Label"), (["cls", "target"], "cls"), (["path", "y"], "y")),
        *((["coarse_label", "fine_label"], "fine_label"), (["url", "caption"], None)),
    ],
)
def test_one_vocabulary_names_the_label(names: list[str], key: str | None) -> None:
    assert label_key(names) == key


def test_a_record_has_its_label_under_any_of_the_names() -> None:
    assert label_in({"caption": "x", "class": 5}) == "5"
    assert label_in({"caption": "x"}) is None


def test_classes_are_numbered_by_value_and_keep_their_names() -> None:
    assert ordered(["10", "9", "9", "-3"]) == ("-3", "9", "10")
    assert ordered(["10", "9", "cat"]) == ("10", "9", "cat")
    numbering = Numbering(ordered(["4006381", "5410041"]))
    assert [numbering.number(v) for v in (5410041, "4006381", None, -1)] == [1, 0, -1, -1]
    with pytest.raises(UserError, match="not one of the classes"):
        numbering.number(7)


def test_numbers_of_a_declared_list_are_places_in_it() -> None:
    numbering = Numbering(("7", "cat"), are_places=True)
    assert [numbering.number(v) for v in (0, 1, "cat", -1)] == [0, 1, 1, -1]
    with pytest.raises(UserError):
        numbering.number(2)
