import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igpt import manifest
from igpt.errors import UserError
from igpt.images.packed import read
from igpt.images.packed.format import is_packed
from igpt.images.packed.read import PackedSet
from igpt.images.packed.write import GrowingArray, PackWriter, check_target
from igpt.images.splits import SPLITS

FACTS = {
    "source": "test",
    "classes": ["a", "b"],
    "views": 0,
    "own_splits": [0],
    "seed": 0,
    "valid_fraction": 0.2,
}


def images_of(n: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def pack(folder: Path, n: int = 20, *, shard_images: int = 7, blocks: int = 3) -> np.ndarray:
    images = images_of(n)
    writer = PackWriter(folder, 4, settings={}, shard_bytes=48 * shard_images)
    for some in np.array_split(np.arange(n), blocks):
        writer.append(images[some], some % 2, np.zeros(len(some), np.uint8))
    writer.finish(FACTS)
    return images


def whole(packed: PackedSet) -> np.ndarray:
    return np.sort(
        np.concatenate([packed.images(s)[:] for s in ("train", "valid", "test")]), axis=0
    )


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    images = pack(tmp_path / "set")
    packed = PackedSet.open(tmp_path / "set")
    assert packed.image_size == 4
    assert packed.classes == ("a", "b")
    assert [packed.n(s) for s in ("train", "valid", "test")] == [13, 3, 4]
    assert len(packed.manifest["shards"]) == 3
    assert np.array_equal(whole(packed), np.sort(images, axis=0))


def test_at_most_so_many_images_are_drawn_from_each_split(tmp_path: Path) -> None:
    pack(tmp_path / "set", 60)
    packed = PackedSet.open(tmp_path / "set")
    some = packed.at_most(10)
    assert [some.n(s) for s in ("train", "valid", "test")] == [10, 10, 10]
    assert set(some.rows("train")) < set(packed.rows("train"))
    assert np.array_equal(some.rows("train"), packed.at_most(10).rows("train"))
    assert set(packed.at_most(20).rows("train")) > set(some.rows("train"))
    assert some.source == "test, at most 10 images of a split"
    assert some.digest != packed.digest
    assert packed.at_most(None).digest == packed.digest
    assert packed.at_most(1000).n("train") == packed.n("train")


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    images = pack(tmp_path / "set")
    packed = PackedSet.open(tmp_path / "set")
    labels = packed.labels("train")
    assert labels is not None and labels.dtype == np.int64
    for image, label in zip(packed.images("train")[:], labels, strict=True):
        (place,) = np.flatnonzero((images == image).all((1, 2, 3)))
        assert place % 2 == label


@pytest.mark.parametrize("shard_images", [3, 1000])
def test_images_are_indexed_like_an_array(tmp_path: Path, shard_images: int) -> None:
    pack(tmp_path / "set", shard_images=shard_images)
    held = PackedSet.open(tmp_path / "set").images("train")
    array = np.asarray(held)
    assert held.shape == array.shape == (len(held), 4, 4, 3)
    assert np.array_equal(held[3], array[3])
    assert np.array_equal(held[-1], array[-1])
    assert np.array_equal(held[2:9:2], array[2:9:2])
    assert np.array_equal(held[np.array([5, 0, 5])], array[[5, 0, 5]])
    assert held[np.array([], np.int64)].shape == (0, 4, 4, 3)


def test_another_split_is_drawn_without_packing_again(tmp_path: Path) -> None:
    pack(tmp_path / "set")
    first = PackedSet.open(tmp_path / "set")
    other = first.with_split(1, 0.5)
    assert other.n("test") == 10 and other.n("valid") == 5
    assert other.digest != first.digest
    assert first.with_split(0, 0.2).digest == first.digest


def test_the_digest_does_not_depend_on_shards(tmp_path: Path) -> None:
    pack(tmp_path / "a", blocks=1)
    pack(tmp_path / "b", blocks=5)
    assert PackedSet.open(tmp_path / "a").digest == PackedSet.open(tmp_path / "b").digest


def test_a_changed_byte_is_found_when_the_set_is_opened(tmp_path: Path) -> None:
    pack(tmp_path / "set")
    packed = PackedSet.open(tmp_path / "set")
    packed.verify()
    path = tmp_path / "set" / "images-00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"images-00001.npy does not match its checksum"):
        PackedSet.open(tmp_path / "set")
    data[-1] ^= 1
    path.write_bytes(data)
    PackedSet.open(tmp_path / "set")


@pytest.mark.parametrize("name", ["labels.npy", "splits.npy"])
def test_files_are_read_for_their_checksum_once_and_after_a_change(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "set")
    read: list[str] = []
    of = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda p: read.append(p.name) or of(p))
    PackedSet.open(tmp_path / "set")
    assert len(read) == 5
    PackedSet.open(tmp_path / "set")
    assert len(read) == 5
    path = tmp_path / "set" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync -t would
    with pytest.raises(UserError, match=f"{name} does not match its checksum: restore it"):
        PackedSet.open(tmp_path / "set")
    assert read[5:] == [name]


@pytest.mark.parametrize("name", ["images-00000.npy", "labels.npy", "splits.npy"])
def test_a_cut_or_missing_file_is_never_read(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "set")
    path = tmp_path / "set" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{name} is missing or cut"):
        PackedSet.open(tmp_path / "set")
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing or cut"):
        PackedSet.open(tmp_path / "set")


def test_an_unfinished_set_is_no_set(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "set", 4, settings={})
    writer.append(images_of(5), np.zeros(5), np.zeros(5))
    writer.commit()
    writer.abandon()
    assert not is_packed(tmp_path / "set")
    with pytest.raises(UserError, match="is not a packed set"):
        PackedSet.open(tmp_path / "set")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", [{"file": "../../x.npy", "n": 1, "sha256": ""}]),
        ("shards", []),
        ("shards", 3),
        ("image_size", "4"),
        ("views", -1),
        ("classes", [1]),
        ("own_splits", None),
        ("valid_fraction", 7),
        ("labels", {}),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, key: str, value: object) -> None:
    pack(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match="is damaged"):
        PackedSet.open(tmp_path / "set")


def test_a_set_of_another_version_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(UserError, match="of another igpt version"):
        PackedSet.open(tmp_path / "set")


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "set")
    with pytest.raises(UserError, match="no split dev: choose from train, valid, test"):
        PackedSet.open(tmp_path / "set").n("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("committed", [1, 6, 7, 12, 20])
def test_writing_goes_on_from_the_last_commit(tmp_path: Path, committed: int) -> None:
    images, labels, codes = images_of(20), np.arange(20) % 2, np.zeros(20, np.uint8)
    first = PackWriter(tmp_path / "set", 4, settings={"a": 1}, shard_bytes=48 * 7)
    first.append(images[:committed], labels[:committed], codes[:committed])
    first.reject("kept", "bad")
    first.commit()
    # Written but not committed: lost, as after a kill.
    first.append(images[:15], labels[:15], codes[:15])
    first.reject("lost", "bad")
    first.abandon()
    second = PackWriter(tmp_path / "set", 4, settings={"a": 1}, shard_bytes=48 * 7)
    assert second.n_rows == committed
    second.append(images[committed:], labels[committed:], codes[committed:])
    second.finish(FACTS)
    pack(tmp_path / "whole")
    resumed = PackedSet.open(tmp_path / "set")
    resumed.verify()
    assert resumed.digest == PackedSet.open(tmp_path / "whole").digest
    assert (tmp_path / "set" / "rejects.csv").read_text() == 'image,reason\n"kept",bad\n'
    assert resumed.manifest["rejects"] == {"bad": 1}


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "set", 4, settings={"image_size": 4})
    writer.commit()
    writer.abandon()
    with pytest.raises(UserError, match="unfinished preparation with another image_size"):
        PackWriter(tmp_path / "set", 4, settings={"image_size": 8})


def test_a_target_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "set")
    with pytest.raises(UserError, match="holds a finished set"):
        check_target(tmp_path / "set")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty: choose another folder"):
        check_target(tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        check_target(tmp_path / "full" / "thesis.tex")
    check_target(tmp_path / "new")


def test_a_growing_array_is_an_npy_file(tmp_path: Path) -> None:
    array = GrowingArray(tmp_path / "a.npy", (2, 3), "<i4")
    for start in range(0, 60, 6):
        array.append(np.arange(start, start + 6).reshape(1, 2, 3))
    entry = array.close()
    assert entry["n"] == 10
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.arange(60).reshape(10, 2, 3))


def test_rows_of_large_sets_are_mapped_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    pack(tmp_path / "set", 60)
    packed = PackedSet.open(tmp_path / "set")
    some = [packed.rows(split) for split in SPLITS], packed.at_most(5).rows("train")
    monkeypatch.setattr(read, "MAPPED_FROM", 10)
    for again in (PackedSet.open(tmp_path / "set"), PackedSet.open(tmp_path / "set")):
        mapped = [again.rows(split) for split in SPLITS]
        assert all(isinstance(rows, np.memmap) for rows in mapped)
        assert all(map(np.array_equal, mapped, some[0]))
        assert np.array_equal(again.at_most(5).rows("train"), some[1])
        assert "_codes" not in vars(again)
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 1
    assert not np.array_equal(packed.with_split(1, 0.2).rows("train"), mapped[0])


HELD = """
import sys
from pathlib import Path
import numpy as np
from igpt.config import DataConfig, RunConfig, TrainConfig
from igpt.images.packed.read import PackedSet
from igpt.tokens.tokenizer import RawTokens
from igpt.train.feeding import Ingredient, originals, training_stream
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
config = RunConfig(data=DataConfig(image_size=1), train=TrainConfig(batch_size=64))
small = Ingredient(packed=PackedSet.open(sys.argv[1]), augment="none")
with originals(config, [small], workers=1) as live:
    training_stream(config, [small], RawTokens(), live).at(0)
before = held()
web = Ingredient(packed=PackedSet.open(sys.argv[2]), augment="none", weight=4)
sets = [small, web]
with originals(config, sets, workers=1) as live:
    stream = training_stream(config, sets, RawTokens(), live)
    for step in (*range(20), 10**6):
        stream.at(step)
print(held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_of_a_mixture_holds_as_much_of_any_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed as the web's shards would be, one pixel a side; megabytes beyond the 10^5 images'."""
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    mega = {}
    for n in (10**5, 10**6, 10**7):
        writer = PackWriter(tmp_path / str(n), 1, settings={}, shard_bytes=3 * 10**6)
        for first in range(0, n, 10**5):
            block = np.full((10**5, 1, 1, 3), first % 251, np.uint8)
            writer.append(block, np.full(10**5, -1), np.zeros(10**5, np.uint8))
        writer.finish({**FACTS, "classes": None, "valid_fraction": 0.001})
        words = [sys.executable, "-c", HELD, str(tmp_path / str(10**5)), str(tmp_path / str(n))]
        for _ in range(2):  # the first process writes where the rows are
            found = subprocess.run(words, capture_output=True, text=True, check=True)
        mega[n] = float(found.stdout)
    print(mega)
    assert mega[10**7] < mega[10**5] + 20


def test_a_split_that_is_needed_and_empty_is_said_with_the_others(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "set", 4, settings={}, shard_bytes=1000)
    writer.append(images_of(5), np.zeros(5, np.int64), np.full(5, 2, np.uint8))
    writer.finish(FACTS | {"own_splits": [2]})
    packed = PackedSet.open(tmp_path / "set")
    packed.check_has("test")
    with pytest.raises(UserError, match=r"test has no train images \(test 5\): give data that has"):
        packed.check_has("train")
