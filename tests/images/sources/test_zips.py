"""Zips, compressed tables and splits by images' names: read by the rules of the other readers."""

import bz2
import gzip
import io
import lzma
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from igpt.errors import UserError
from igpt.images.sources.archive import opened
from igpt.images.sources.find import open_source
from igpt.images.sources.source import Part, Span
from igpt.images.splits import TEST, TRAIN, VALID
from tests.images.pictures import class_files, encoded, noise, tar_bytes, write_tree
from tests.images.sources.reading import read

IMAGE = encoded(noise(9, 9))


def zip_at(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_is_read_as_a_tar_of_the_same_files(tmp_path: Path, packing: int) -> None:
    files = class_files() | {"__MACOSX/a/._0.png": b"x", "a/._0.png": b"x", "a/notes.txt": b"x"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    found = [
        open_source(str(path))
        for path in (tmp_path / "a.tar", zip_at(tmp_path / "a.zip", files, packing))
    ]
    contents = [read(source) for source in found]
    assert found[0].classes == found[1].classes == ("a", "b")
    assert contents[0].labels == contents[1].labels == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(contents[0].images, contents[1].images)
    assert found[0].decided == found[1].decided


def test_what_a_zip_stores_plainly_is_read_in_place(tmp_path: Path) -> None:
    path = zip_at(tmp_path / "a.zip", {"a.png": IMAGE, "b.png": IMAGE}, zipfile.ZIP_STORED)
    (block,) = open_source(str(path)).blocks(Part())
    span = block.images[1]
    assert isinstance(span, Span)
    assert path.read_bytes()[span.start : span.start + (span.size or 0)] == IMAGE


def test_labels_links_and_names_in_a_zip(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("2.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    mac = zipfile.ZipInfo("cafe\u0301.png".encode().decode("cp437"))  # UTF-8 that does not say so
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in {"0.png": IMAGE, "0.cls": b"7", "1.png": IMAGE, "1.cls": b"x"}.items():
            archive.writestr(name, data)
        archive.writestr(link, "0.png")
        archive.writestr(mac, IMAGE)
        archive.writestr("sub\\3.png", IMAGE)
    source = open_source(str(tmp_path / "a.zip"))
    assert source.classes == ("7", "x")
    assert len(read(source).images) == 5
    with opened(tmp_path / "a.zip") as held:
        assert {entry.name for entry in held} >= {"sub/3.png", "2.png"}


def test_one_bad_entry_of_a_zip_is_left_out_alone(tmp_path: Path) -> None:
    path = zip_at(tmp_path / "a.zip", {"a.png": IMAGE, "b.png": noise(40, 40).tobytes()})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"b.png", 0, data.index(b"PK\1\2")) + 40] ^= 255
    path.write_bytes(bytes(data))
    contents = read(open_source(str(path)))
    assert len(contents.images) == 1
    assert contents.rejects == {"a.zip/b.png": "damaged or cut off"}


def test_encrypted_entries_and_bombs_in_a_zip_are_named(tmp_path: Path) -> None:
    path = zip_at(tmp_path / "a.zip", {"a.png": IMAGE, "b.png": bytes(2**27)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1  # of a.png: "needs a password"
    path.write_bytes(bytes(data))
    reasons = read(open_source(str(path))).rejects
    assert "encrypted" in reasons["a.zip/a.png"] and "than it can hold" in reasons["a.zip/b.png"]


def test_a_cut_zip_is_one_line(tmp_path: Path) -> None:
    path = zip_at(tmp_path / "a.zip", {"a.png": IMAGE})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.zip: archive is cut off or damaged: fetch it again"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", zstandard.ZstdCompressor().compress),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_compressed_tables_are_tables(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], kind: str
) -> None:
    write_tree(tmp_path, class_files())
    text = {
        "csv": "path,label\na/0.png,x\nb/0.png,y\n",
        "tsv": "path\tlabel\na/0.png\tx\nb/0.png\ty\n",
        "jsonl": '{"path": "a/0.png", "label": "x"}\n{"path": "b/0.png", "label": "y"}\n',
    }[kind]
    path = tmp_path / f"t.{kind}.{ending}"
    path.write_bytes(pack(text.encode()))
    source = open_source(str(path))
    assert source.classes == ("x", "y") and read(source).labels == [0, 1]
    path.write_bytes(pack(text.encode() * 40)[:-6])
    with pytest.raises(UserError, match=f"t.{kind}.{ending}"):
        open_source(str(path))


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"[" * 2**25))
    with pytest.raises(UserError, match="a line has more than 16777216 characters"):
        open_source(str(tmp_path / "t.jsonl.gz"))


@pytest.mark.parametrize("wrap", ["folder", "tar", "zip"])
def test_images_named_after_splits_are_in_them(tmp_path: Path, wrap: str) -> None:
    names = [f"{word}_{i}.png" for word in ("train", "val", "test") for i in range(2)]
    files = dict.fromkeys(names, IMAGE)
    path = tmp_path / f"a.{wrap}"
    if wrap == "folder":
        write_tree(path, files)
    elif wrap == "tar":
        path.write_bytes(tar_bytes(files))
    else:
        zip_at(path, files)
    source = open_source(str(path))
    assert source.decided[0] == "splits: train 2, valid 2, test 2, by the names of images"
    assert sorted(read(source).codes) == [TRAIN] * 2 + [VALID] * 2 + [TEST] * 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train_1", "test_1", "sunset"), "splits: drawn, as 1 of 3 images are not named after"),
        (("train", "cat", "dog", "test"), "labels: none"),  # a photograph of a train
        (("train_1", "train_2"), "labels: none"),
        (("test/a", "test/b"), "splits: drawn, as test in the names divides nothing"),
    ],
)
def test_names_that_divide_nothing_are_not_believed(
    tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    source = open_source(str(write_tree(tmp_path, {f"{name}.png": IMAGE for name in names})))
    assert source.decided[0].startswith(said)
    assert source.own_splits == {TRAIN}


@pytest.mark.parametrize(
    ("names", "own"),
    [(("x_test",), {TEST}), (("x_val",), {VALID}), (("x_val", "x_test"), {VALID, TEST})],
)
def test_an_array_that_is_named_for_a_split_is_no_training_set(
    tmp_path: Path, names: tuple[str, ...], own: set[int]
) -> None:
    held = io.BytesIO()
    np.savez(held, **dict.fromkeys(names, noise(8, 8)[None]))
    (tmp_path / "a.npz").write_bytes(held.getvalue())
    source = open_source(str(tmp_path / "a.npz"))
    assert source.own_splits == own and set(read(source).codes) == own
    assert source.decided[0].startswith("splits:")
