import os
import unicodedata
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.names import Unread, counts, expanded, find_named, is_image_name, shown


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a}{}", ["{a}{}"]),
    ],
)
def test_braces_mean_what_they_mean_in_a_shell(name: str, meant: list[str]) -> None:
    assert expanded(name) == meant


def test_braces_that_mean_too_much_are_refused() -> None:
    with pytest.raises(UserError, match="means more than 1000000 names"):
        expanded("{0..999}{0..1000}")


@pytest.mark.parametrize("name", ["a.jpg", "A.JPG", "b/c d.TIFF", "./x.png", "ü.webp", "a.b.png"])
def test_a_name_that_ends_like_an_image_counts(name: str) -> None:
    assert is_image_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("._a.jpg", ".a.jpg", "__MACOSX/a.jpg", "x/__macosx/y/a.jpg", ".git/a.png"),
        *("a.txt", "jpg", "a.jpg.part", "$RECYCLE.BIN/a.jpg", "@eaDir/a.jpg"),
    ],
)
def test_hidden_companions_and_other_kinds_do_not(name: str) -> None:
    assert not is_image_name(name)


def test_system_files_are_passed_over_without_a_word() -> None:
    unread = Unread()
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/x.txt"):
        assert not counts(name)
        unread.note(name)
    assert unread.lines() == ()


def test_what_is_not_read_is_said_with_its_remedy() -> None:
    unread = Unread()
    for name in (*["a.HEIC"] * 2, "b.nef", "c.txt", "LICENSE"):
        unread.note(name)
    assert unread.lines() == (
        "2 .heic files are not read: pip install 'igpt[heif]'",
        "1 .nef files are not read: convert them to JPEG or PNG",
        "files that are no images: 1 .txt, 1 no ending",
    )


@pytest.mark.parametrize(
    "written",
    [
        *("a/é.png", "a\\é.png", "./a/é.png", "C:\\data\\set\\a\\é.png", "D:/set/a/é.png"),
        *("/home/me/set/a/é.png", "file:///home/me/a/é.png"),
    ],
)
@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_names_from_other_machines_are_found(
    tmp_path: Path, written: str, on_disk: str, in_table: str
) -> None:
    file = tmp_path / "a" / unicodedata.normalize(on_disk, "é.png")
    file.parent.mkdir()
    file.touch()
    assert find_named(tmp_path, unicodedata.normalize(in_table, written)) == file


def test_a_name_that_is_found_nowhere_is_read_as_it_stands(tmp_path: Path) -> None:
    assert find_named(tmp_path, "C:\\x.png") == tmp_path / "C:\\x.png"
    assert find_named(tmp_path, "") == tmp_path


def test_names_that_are_no_utf8_can_be_shown() -> None:
    assert shown(Path(os.fsdecode(b"a\xff.png"))) == "a\\xff.png"
