"""Entries of archives: what `tarfile` and GNU tar write is read as they read it."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.images.sources.archive import Entry, opened
from tests.images.pictures import tar_bytes

PACKERS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.ZstdCompressor().compress,
}


def entries(path: Path) -> list[tuple[Entry, bytes]]:
    """Every entry, with the content of files."""
    with opened(path) as archive:
        return [(e, archive.content(e) if e.kind == "file" else b"") for e in archive]


def by_name(path: Path) -> dict[str, bytes]:
    return {e.name: data for e, data in entries(path) if e.kind == "file"}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_those_that_tarfile_finds(tmp_path: Path, kind: int, ending: str) -> None:
    long = "/".join(["directory" * 8] * 3)
    files = {"a/1.png": b"one", f"{long}.png"[-95:]: b"two" * 700, "c d/é.png": b""}
    if kind != tarfile.USTAR_FORMAT:
        files[f"{long}/{'name' * 40}.png"] = b"three"
    path = tmp_path / f"a.{ending}"
    path.write_bytes(PACKERS[ending](tar_bytes(files, kind=kind)))
    assert by_name(path) == files
    if ending == "tar":
        with tarfile.open(path) as tar:
            wanted = [(m.name, m.offset_data, m.size) for m in tar]
        assert [(e.name, e.start, e.size) for e, _ in entries(path)] == wanted


def with_holes(path: Path, n_pieces: int) -> bytes:
    """A file of so many pieces in holes, as the file system keeps it."""
    data = bytearray(n_pieces * 2**16 + 777)
    with path.open("wb") as file:
        for i in range(n_pieces):
            piece = bytes([i % 255 + 1]) * 5000
            data[i * 2**16 : i * 2**16 + 5000] = piece
            file.seek(i * 2**16)
            file.write(piece)
        file.truncate(len(data))
    return bytes(data)


@pytest.mark.parametrize("packed", ["tar", "tar.gz"])
@pytest.mark.parametrize("n_pieces", [1, 3, 30])  # a header holds the map of four
@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_files_with_holes_of_every_format(
    tmp_path: Path, form: str, n_pieces: int, packed: str
) -> None:
    data = with_holes(tmp_path / "h.png", n_pieces)
    (tmp_path / "after.png").write_bytes(b"after")
    how = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    command = ["tar", "-S", *how, "-cf", "a.tar", "h.png", "after.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if (tmp_path / "a.tar").stat().st_size > len(data):
        pytest.skip("this file system keeps no holes")
    (tmp_path / f"b.{packed}").write_bytes(PACKERS[packed]((tmp_path / "a.tar").read_bytes()))
    assert by_name(tmp_path / f"b.{packed}") == {"h.png": data, "after.png": b"after"}


@pytest.mark.parametrize("ending", PACKERS)
def test_archives_joined_by_cat_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    parts = [tar_bytes({f"{i}.png": b"x" * i}) for i in range(3)]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join(map(PACKERS[ending], parts)))
    found = entries(path)
    assert [(e.name, e.archive, data) for e, data in found] == [
        (f"{i}.png", i, b"x" * i) for i in range(3)
    ]


def test_what_follows_the_end_is_no_entry_unless_it_is_an_archive(tmp_path: Path) -> None:
    whole = tar_bytes({"a.png": b"1"})
    (tmp_path / "a.tar").write_bytes(whole + b"a signature".ljust(512, b"\0"))
    assert list(by_name(tmp_path / "a.tar")) == ["a.png"]
    damaged = bytearray(whole)
    damaged[3] ^= 1
    (tmp_path / "b.tar").write_bytes(whole + damaged)
    with pytest.raises(
        UserError, match=r"b.tar: archive is cut off or damaged: fetch it again \(a "
    ):
        entries(tmp_path / "b.tar")


def test_a_missing_end_mark_is_noticed(tmp_path: Path) -> None:
    whole = tar_bytes({"a.png": b"1"})
    for name, data, has_end in (("a", whole, True), ("b", whole[:1024], False)):
        (tmp_path / name).write_bytes(data)
        with opened(tmp_path / name) as archive:
            assert [entry.name for entry in archive] == ["a.png"]
            assert archive.has_end == has_end


def member(name: str, kind: bytes, target: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [0, 5])
def test_hard_links_have_no_content_unless_they_have(tmp_path: Path, size: int) -> None:
    file = member("a.png", b"0", size=5) + b"image".ljust(512, b"\0")
    link = member("b.png", b"1", "a.png", size)
    (tmp_path / "old.tar").write_bytes(file + link + file.replace(b"a.png", b"a.png") + bytes(1024))
    found = entries(tmp_path / "old.tar")
    assert [e.kind for e, _ in found] == ["file", "link", "file"]
    assert found[1][0].target == "a.png"
    content = b"other".ljust(512, b"\0")
    (tmp_path / "new.tar").write_bytes(file + link + (content if size else b"") + bytes(1024))
    assert by_name(tmp_path / "new.tar") == {"a.png": b"image"} | (
        {"b.png": b"other"} if size else {}
    )


def test_every_other_type_of_entry(tmp_path: Path) -> None:
    kinds = {b"2": "link", b"3": "other", b"4": "other", b"5": "folder", b"6": "other"}
    kinds |= {b"7": "file", b"D": "folder", b"M": "other", b"Z": "file", b"\0": "file"}
    data = b"".join(member(f"{kind.hex()}.png", kind, "x") for kind in kinds)
    label = member("a volume's label", b"V")
    (tmp_path / "a.tar").write_bytes(label + data + bytes(1024))
    assert {e.name[:2]: e.kind for e, _ in entries(tmp_path / "a.tar")} == {
        kind.hex(): meant for kind, meant in kinds.items()
    }


@pytest.mark.parametrize(
    ("name", "target", "meant"),
    [
        ("a/b.png", "c.png", "a/c.png"),
        ("a/b.png", "../c/d.png", "c/d.png"),
        ("b.png", "../c.png", ".."),
        ("a/b.png", "../../c.png", ".."),
        ("b.png", "/etc/passwd", ".."),
        ("b.png", "./x/../c.png", "c.png"),
    ],
)
def test_links_mean_names_in_the_archive(
    tmp_path: Path, name: str, target: str, meant: str
) -> None:
    (tmp_path / "a.tar").write_bytes(member(name, b"2", target) + bytes(1024))
    assert [e.target for e, _ in entries(tmp_path / "a.tar")] == [meant]


@pytest.mark.parametrize("ending", list(PACKERS)[1:])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_cut_stream_is_one_line(tmp_path: Path, ending: str, share: float) -> None:
    noise = np.random.default_rng(0).bytes(200_000)
    data = PACKERS[ending](tar_bytes({"a.png": noise}))
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="archive is cut off or damaged: fetch it again"):
        entries(path)


@pytest.mark.parametrize("ending", list(PACKERS)[1:])
def test_a_small_file_that_unpacks_to_much_is_refused(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("igpt.images.sources.archive.FREE_BYTES", 2**20)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(PACKERS[ending](member("a.bin", b"0", size=2**40) + bytes(2**23)))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        entries_only(path)


def entries_only(path: Path) -> None:
    with opened(path) as archive:
        for _ in archive:
            pass


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"a.tar: a Git LFS pointer, not the file itself"):
        entries(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"cut off or damaged: fetch it again \(it is not a tar\)"):
        entries(tmp_path / "a.tar")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab/.é", min_size=1, max_size=140), st.binary(max_size=600)), max_size=6
    )
)
def test_any_names_and_contents_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.tar"
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(held.getvalue())
    with tarfile.open(path) as tar:
        wanted = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    found = [(e.name.rstrip("/"), data) for e, data in entries(path) if e.kind == "file"]
    assert found == [(name.rstrip("/"), data) for name, data in wanted]
