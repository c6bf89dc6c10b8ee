import gzip
import io
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.images.sources.archive import read_files
from igpt.images.sources.source import Part
from igpt.images.sources.tar import LATER, open_tars
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import class_files, encoded, noise, tar_bytes
from tests.images.sources.reading import Contents, read

IMAGE = encoded(noise(9, 9))


def tar_at(path: Path, files: dict[str, bytes], **options: int) -> Path:
    path.write_bytes(tar_bytes(files, **options))
    return path


def contents(path: Path, files: dict[str, bytes]) -> Contents:
    return read(open_tars([tar_at(path / "a.tar", files)], name="a.tar"))


def test_class_folders_in_a_tar_are_classes(tmp_path: Path) -> None:
    source = open_tars([tar_at(tmp_path / "a.tar", class_files())], name="a.tar")
    assert source.classes == ("a", "b")
    assert read(source).labels == [0, 0, 0, 1, 1, 1]
    assert read(source).images[:, 0, 0, 0].tolist() == [0, 1, 2, 40, 41, 42]


def test_split_folders_in_a_tar_are_splits(tmp_path: Path) -> None:
    files = {f"{s}/{name}": data for s in ("train", "val") for name, data in class_files().items()}
    source = open_tars([tar_at(tmp_path / "a.tar", files)], name="a.tar")
    assert source.own_splits == {TRAIN, TEST}
    assert read(source).codes == [TRAIN] * 6 + [TEST] * 6


def shard(first: int, n: int = 4) -> dict[str, bytes]:
    files = {}
    for i in range(first, first + n):
        files |= {f"{i:06d}.png": IMAGE, f"{i:06d}.cls": str(i % 3).encode()}
        files |= {f"{i:06d}.json": b"{}"}
    return files


def test_webdataset_shards_have_numbered_classes(tmp_path: Path) -> None:
    paths = [tar_at(tmp_path / f"{i}.tar", shard(4 * i)) for i in range(3)]
    source = open_tars(paths, name="shards")
    assert source.classes == ("0", "1", "2")
    assert read(source).labels == [i % 3 for i in range(12)]
    assert source.n_images == 12


def test_parts_of_many_shards_read_their_own_alone(tmp_path: Path) -> None:
    paths = [tar_at(tmp_path / f"{i}.tar", shard(4 * i)) for i in range(5)]
    source = open_tars(paths, name="shards")
    counts = [len(read(source, part=Part(i, 2)).labels) for i in (1, 2)]
    assert counts == [12, 8]


def test_an_image_without_a_label_is_an_image_and_a_label_without_one_is_listed(
    tmp_path: Path,
) -> None:
    files = shard(0, 1) | {"1.png": IMAGE, "2.cls": b"1", "3.png": IMAGE, "3.cls": b"cat"}
    files |= {"4.png": IMAGE, "4.cls": b" -1\n"}
    source = open_tars([tar_at(tmp_path / "a.tar", files)], name="a.tar")
    assert source.classes == ("0", "1", "cat")
    assert any("2 of 4 have none" in line for line in source.decided)
    assert read(source).labels == [0, -1, 2, -1]
    assert read(source).rejects == {"a.tar/2.cls": "label without an image"}


def labelled(names: list[str], suffix: str = ".cls") -> dict[str, bytes]:
    """An image under each name, and the number of its place as a label."""
    files = {}
    for i, name in enumerate(names):
        label = str(i).encode() if suffix == ".cls" else f'{{"label": {i}}}'.encode()
        files |= {f"{name}.png": encoded(noise(9, 9, i)), f"{name}{suffix}": label}
    return files


@pytest.mark.parametrize("suffix", [".cls", ".json"])
@pytest.mark.parametrize(
    "names", [["a", "b"], ["scan.1", "scan.2"], ["x.y/1", "x.y/2"], ["v1.0/a.b", "v1.0/a.c"]]
)
def test_every_image_has_its_own_label_whatever_dots_are_in_its_name(
    tmp_path: Path, names: list[str], suffix: str
) -> None:
    files = labelled(names, suffix)
    path = tar_at(tmp_path / "a.tar", files)
    assert read(open_tars([path], name="a")).labels == [0, 1]
    by_suffix = dict(sorted(files.items(), key=lambda item: item[0][::-1]))  # labels apart
    path = tar_at(tmp_path / "b.tar", by_suffix)
    assert sorted(read(open_tars([path], name="b")).labels) == [0, 1]


def test_several_images_of_a_sample_are_all_taken_and_it_is_said(tmp_path: Path) -> None:
    files = {}
    for i in range(2):
        files |= {f"{i}.{part}.png": encoded(noise(9, 9, i)) for part in ("left", "right")}
        files |= {f"{i}.cls": str(i).encode()}
    source = open_tars([tar_at(tmp_path / "a.tar", files)], name="a")
    assert read(source).labels == [0, 0, 1, 1]
    assert any("2 samples hold several images: each is taken" in line for line in source.decided)


def test_archives_that_name_a_split_are_splits(tmp_path: Path) -> None:
    names = ("set-train-0.tar", "set-train-1.tar", "set-test-0.tar")
    paths = [tar_at(tmp_path / name, shard(4 * i)) for i, name in enumerate(names)]
    source = open_tars(paths, name="shards")
    assert source.own_splits == {TRAIN, TEST}
    assert read(source).codes == [TRAIN] * 8 + [TEST] * 4


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_hidden_files_count_nowhere(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    files = {"a/1.png": IMAGE, "a/._1.png": b"x", "__MACOSX/a/1.png": b"x", "b/.x/1.png": b"x"}
    (tmp_path / "a.tar").write_bytes(pack(tar_bytes(files | {"b/1.png": IMAGE})))
    found = read(open_tars([tmp_path / "a.tar"], name="a"))
    assert (found.labels, found.rejects) == ([0, 1], {})


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_links_are_the_images_that_they_mean(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        member = tarfile.TarInfo("blobs/x")
        member.size = len(IMAGE)
        tar.addfile(member, io.BytesIO(IMAGE))
        for kind, name, target in (
            (tarfile.LNKTYPE, "a/1.png", "blobs/x"),
            (tarfile.SYMTYPE, "a/2.png", "../blobs/x"),
            (tarfile.SYMTYPE, "b/3.png", "../a/1.png"),
            (tarfile.SYMTYPE, "b/4.png", "/etc/passwd"),
            (tarfile.SYMTYPE, "b/5.png", "5.png"),
            (tarfile.FIFOTYPE, "b/6.png", ""),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    (tmp_path / "a.tar").write_bytes(pack(held.getvalue()))
    found = read(open_tars([tmp_path / "a.tar"], name="a"))
    assert found.labels == [0, 0, 1]
    assert (found.images == found.images[0]).all()
    nothing = "a link to nothing" if pack is bytes else LATER
    assert found.rejects == {
        "a.tar/b/4.png": nothing,
        "a.tar/b/5.png": nothing,
        "a.tar/b/6.png": "a device, a pipe or a part of a file",
    }


def test_equal_names_in_joined_archives_are_other_images(tmp_path: Path) -> None:
    parts = [tar_bytes({"0.png": encoded(noise(9, 9, i)), "0.cls": b"%d" % i}) for i in range(2)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    found = read(open_tars([tmp_path / "a.tar"], name="a"))
    assert (found.labels, found.rejects) == ([0, 1], {})


def test_names_that_lead_out_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    files = class_files() | {"../evil.png": IMAGE, "/etc/evil.png": IMAGE, "a/../../e.png": IMAGE}
    rejects = contents(tmp_path, files).rejects
    assert sorted(rejects.values()) == ["name leads out of the archive"] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_the_second_of_two_equal_names_is_listed(tmp_path: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for value in (1, 2):
            for name in ("a/1.png", "b/1.png"):
                data = encoded(noise(9, 9, value))
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(held.getvalue())
    found = read(open_tars([tmp_path / "a.tar"], name="a"))
    assert len(found.images) == 2
    assert set(found.rejects.values()) == {"the same name as one before"}


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_cut_tar_is_refused(tmp_path: Path, share: float) -> None:
    data = tar_bytes(class_files(20))
    end = data.rindex(b"b/19.png")  # what follows the last member is padding
    (tmp_path / "a.tar").write_bytes(data[: int(share * end)])
    with pytest.raises(UserError, match="cut off or damaged: fetch it again"):
        open_tars([tmp_path / "a.tar"], name="a.tar")


def test_a_cut_shard_among_others_is_left_out_whole(tmp_path: Path) -> None:
    paths = [tar_at(tmp_path / f"{i}.tar", shard(4 * i)) for i in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:4000])
    found = read(open_tars(paths, name="shards"))
    assert len(found.images) == 8
    assert set(found.rejects.values()) == {"archive is cut off or damaged"}
    assert all(name.startswith("1.tar/") for name in found.rejects)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_spoilt_tar_is_read_or_one_line(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    data = bytearray(tar_bytes(class_files(2) | {"a/" + "x" * 150 + ".png": IMAGE}))
    for _ in range(changes):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(len(data) // 512) * 512 + 124])
        data[place] = rng.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        try:
            read(open_tars([path], name="a.tar"))
        except UserError as error:
            assert "\n" not in str(error)


def test_a_negative_size_does_not_loop(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"a/1.png": IMAGE}, tarfile.USTAR_FORMAT))
    data[124:136] = b"-0000001000\0"
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        list(read_files(tmp_path / "a.tar"))


def test_what_a_json_holds_in_place_of_a_label_is_said(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(noise(9, 9, i)) for i in range(5)}
    files |= {"0.json": b'{"label": [3]}', "1.json": b"4", "2.json": b'{"label": [3, 4]}'}
    files |= {"3.json": b"{oops", "4.json": b'{"label": {"a": 1}}'}
    source = open_tars([tar_at(tmp_path / "a.tar", files)], name="a.tar")
    assert source.classes == ("3", "4")
    assert read(source).labels == [0, 1, -1, -1, -1]
    said = [line for line in source.decided if "the .cls and .json files" in line]
    assert len(said) == 3
    assert any("label is list of 2, not a word or a number" in line for line in said)
