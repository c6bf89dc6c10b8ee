import io
import random
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.images.sources.source import Part
from igpt.images.sources.tar import open_tars, read_members
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import class_files, encoded, noise, tar_bytes
from tests.images.sources.reading import Contents, read

IMAGE = encoded(noise(9, 9))


def tar_at(path: Path, files: dict[str, bytes], **options: int) -> Path:
    path.write_bytes(tar_bytes(files, **options))
    return path


def contents(path: Path, files: dict[str, bytes]) -> Contents:
    return read(open_tars([tar_at(path / "a.tar", files)], name="a.tar"))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, kind: int) -> None:
    long = "/".join(["directory" * 8] * 3)
    files = {"a/1.png": b"one", f"{long}.png"[-95:]: b"two" * 700, "c d/é.png": b""}
    if kind != tarfile.USTAR_FORMAT:
        files[f"{long}/{'name' * 40}.png"] = b"three"
    path = tar_at(tmp_path / "a.tar", files, kind=kind)
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.start, m.size) for m in read_members(path)] == wanted


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
    assert source.classes == ()
    assert read(source).labels == [i % 3 for i in range(12)]
    assert source.n_images == 12


def test_parts_of_many_shards_read_their_own_alone(tmp_path: Path) -> None:
    paths = [tar_at(tmp_path / f"{i}.tar", shard(4 * i)) for i in range(5)]
    source = open_tars(paths, name="shards")
    counts = [len(read(source, part=Part(i, 2)).labels) for i in (1, 2)]
    assert counts == [12, 8]


def test_a_sample_without_its_label_or_image_is_listed(tmp_path: Path) -> None:
    files = shard(0, 1) | {"1.png": IMAGE, "2.cls": b"1", "3.png": IMAGE, "3.cls": b"cat"}
    files |= {"4.png": IMAGE, "4.cls": b"99999999999"}
    assert contents(tmp_path, files).rejects == {
        "a.tar/1.png": "no label",
        "a.tar/2.cls": "label without an image",
        "a.tar/3.png": "label is not a number from 0 to 99999",
        "a.tar/4.png": "label is not a number from 0 to 99999",
    }


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


def test_links_and_devices_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"a/{int(kind)}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(UserError, match="holds no images"):
        open_tars([tmp_path / "a.tar"], name="a.tar")


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
        list(read_members(tmp_path / "a.tar"))
