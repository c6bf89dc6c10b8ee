import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt.errors import Interrupted, UserError
from igpt.images import prepare
from igpt.images.crop import center_square
from igpt.images.packed import write
from igpt.images.packed.format import is_packed
from igpt.images.packed.merge import missing_parts, part_folder
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import Packing, pack_block
from igpt.images.resize import area_resize
from igpt.images.sources.find import open_source
from igpt.images.sources.source import Block, Part, Source
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import class_files, encoded, noise, smooth, write_tree


def prepared(folder: Path, out: Path, **options: object) -> PackedSet:
    size = options.pop("image_size", 8)
    packing_ = Packing(image_size=size, **options.pop("packing", {}))  # type: ignore[arg-type]
    return prepare.prepare(open_source(str(folder)), out, packing=packing_, workers=1, **options)  # type: ignore[arg-type]


def test_a_folder_of_classes_is_packed(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", class_files(10, classes="abc"))
    packed = prepared(folder, tmp_path / "out")
    assert packed.classes == ("a", "b", "c")
    assert [packed.n(s) for s in ("train", "valid", "test")] == [24, 3, 3]
    labels, images = packed.labels("train"), packed.images("train")[:]
    assert labels is not None
    assert (images // 40 == labels[:, None, None, None]).all()  # class c is painted 40 c + i


def test_images_are_squared_and_averaged(tmp_path: Path) -> None:
    wide = noise(20, 30)
    folder = write_tree(tmp_path / "in", {f"{i}.png": encoded(wide) for i in range(10)})
    packed = prepared(folder, tmp_path / "out")
    assert packed.classes is None and packed.labels("train") is None and packed.n("test") == 0
    assert np.array_equal(packed.images("train")[0], area_resize(center_square(wide), 8))


def test_rejects_are_listed_with_reasons(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(noise(16, 16)) for i in range(20)}
    files |= {
        "cut.png": encoded(noise(16, 16))[:200],
        "empty.jpg": b"",
        "small.png": encoded(noise(4, 40)),
        "text.jpeg": b"hello",
        "notes.txt": b"no image by its name",
    }
    folder = write_tree(tmp_path / "in", files)
    packed = prepared(folder, tmp_path / "out", max_bad=0.5)
    assert packed.manifest["n_read"] == 24
    assert (tmp_path / "out" / "rejects.csv").read_text().splitlines() == [
        "image,reason",
        '"cut.png",damaged or cut off',
        '"empty.jpg",the file is empty',
        '"small.png",smaller than 8 x 8',
        '"text.jpeg","not an image, or of a kind that is not read"',
    ]


def test_too_many_rejects_stop_and_a_higher_share_goes_on(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(noise(16, 16)) for i in range(6)} | {"x.png": b"?", "y.png": b""}
    folder = write_tree(tmp_path / "in", files)
    for _ in range(2):  # a second time there is nothing left to read
        with pytest.raises(
            UserError, match=r"2 of 8 images cannot be used \(1 not an image.*max-bad 0.1"
        ):
            prepared(folder, tmp_path / "out")
        assert not is_packed(tmp_path / "out")
    assert prepared(folder, tmp_path / "out", max_bad=0.25).manifest["n_images"] == 6


def test_no_usable_image_is_said(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", {"x.png": b"?"})
    with pytest.raises(UserError, match="gave no usable image: 1 not an image"):
        prepared(folder, tmp_path / "out", max_bad=1)


def test_small_images_are_enlarged_when_asked(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", {f"{i}.png": encoded(noise(1, 1)) for i in range(4)})
    packed = prepared(folder, tmp_path / "out", packing={"upsample": True})
    assert packed.images("train")[:].shape == (4, 8, 8, 3) or packed.n("train") >= 3


def test_an_empty_class_is_listed_but_counts_for_nothing(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", class_files() | {"empty/": b""})
    packed = prepared(folder, tmp_path / "out", max_bad=0)
    assert packed.classes == ("a", "b")
    assert '"empty",class folder without images' in (tmp_path / "out" / "rejects.csv").read_text()


def test_processes_give_the_same_set_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "FEW_IMAGES", 0)
    folder = write_tree(tmp_path / "in", class_files(200))
    source = open_source(str(folder))
    one, two = (
        prepare.prepare(source, tmp_path / str(n), packing=Packing(image_size=8), workers=n)
        for n in (1, 2)
    )
    assert one.digest == two.digest


def test_parts_merge_into_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.images.sources.source.BLOCK_IMAGES", 4)
    folder = write_tree(tmp_path / "in", class_files(10, classes="abc") | {"a/bad.png": b"?"})
    whole = prepared(folder, tmp_path / "whole")
    for index in (2, 3, 1):
        assert not is_packed(tmp_path / "out")
        packed = prepared(folder, tmp_path / "out", part=Part(index, 3))
    assert packed.folder == tmp_path / "out"
    assert not part_folder(tmp_path / "out", Part(1, 3)).exists()
    packed.verify()
    assert packed.manifest["n_images"] == whole.manifest["n_images"] == 30
    assert packed.manifest["rejects"] == whole.manifest["rejects"]
    assert {i.tobytes() for i in packed.images("train")[:]} <= {
        i.tobytes() for s in ("train", "valid", "test") for i in whole.images(s)[:]
    }
    assert missing_parts(tmp_path / "out", 3) == [1, 2, 3]  # they are gone


def test_a_finished_part_is_not_done_twice(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", class_files(5))
    first = prepared(folder, tmp_path / "out", part=Part(1, 2))
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    again = prepared(folder, tmp_path / "out", part=Part(1, 2))
    assert (again.folder / "manifest.json").stat().st_mtime_ns == before


def test_parts_prepared_differently_are_not_merged(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", class_files(300))
    prepared(folder, tmp_path / "out", part=Part(1, 2))
    with pytest.raises(UserError, match="with another valid_fraction"):
        prepared(folder, tmp_path / "out", part=Part(2, 2), valid_fraction=0.3)


def test_a_part_is_written_as_a_fraction() -> None:
    assert Part.parse("3/16") == Part(3, 16)
    for text in ("0/3", "4/3", "3", "a/b", "1/2/3", "-1/3"):
        with pytest.raises(UserError, match="is not a part: write it as 3/16"):
            Part.parse(text)


def test_views_store_random_crops_behind_the_centre(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(smooth(300, 260, i)) for i in range(10)}
    folder = write_tree(tmp_path / "in", files)
    plain = prepared(folder, tmp_path / "plain", image_size=16)
    packed = prepared(folder, tmp_path / "out", image_size=16, packing={"views": 3})
    assert packed.n("train") == 27 and packed.n("valid") == 1
    assert np.array_equal(packed.images("valid")[:], plain.images("valid")[:])
    train = packed.images("train")[:].reshape(9, 3, -1)
    assert all(len(np.unique(views, axis=0)) == 3 for views in train)
    again = prepared(folder, tmp_path / "again", image_size=16, packing={"views": 3})
    assert again.digest == packed.digest


def test_reduced_decoding_stays_within_one_level() -> None:
    photos = [encoded(smooth(240 + 9 * i, 300 - i, i), "JPEG", quality=90) for i in range(12)]
    block = Block(images=photos, keys=[str(i) for i in range(12)])
    full = pack_block(block, Packing(image_size=32, reduced=False)).images.astype(int)
    reduced = pack_block(block, Packing(image_size=32)).images
    assert 0 < np.abs(reduced - full).mean() <= 1


def test_neighbours_of_one_size_are_reduced_as_if_alone() -> None:
    sizes = [(20, 20), (20, 20), (30, 20), (20, 20), (8, 8)]
    images = [noise(*size, seed=i) for i, size in enumerate(sizes)]
    files = [encoded(image) for image in images]
    files[1] = b"?"
    packed = pack_block(Block(images=files, keys=list("abcde")), Packing(image_size=8))
    wanted = [area_resize(center_square(images[i]), 8) for i in (0, 2, 3, 4)]
    assert np.array_equal(packed.images, wanted)
    assert packed.rejects == [("b", "not an image, or of a kind that is not read")]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "in", class_files(10))

    def fails(self: write.GrowingArray, rows: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(write.GrowingArray, "append", fails)
        with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
            prepared(folder, tmp_path / "out")
    assert not is_packed(tmp_path / "out")
    assert prepared(folder, tmp_path / "out").manifest["n_images"] == 20


def test_ctrl_c_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igpt.images.sources.source.BLOCK_IMAGES", 4)
    folder = write_tree(tmp_path / "in", class_files(10))
    source = open_source(str(folder))
    whole = prepare.prepare(source, tmp_path / "whole", packing=Packing(image_size=8), workers=1)
    done = []

    def stops(block: Block, packing_: Packing) -> object:
        done.append(block)
        if len(done) == 3:
            raise KeyboardInterrupt
        return pack_block(block, packing_)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "pack_block", stops)
        with pytest.raises(Interrupted, match="stopped after 8 images: the same command goes on"):
            prepared(folder, tmp_path / "out")
    assert prepared(folder, tmp_path / "out").digest == whole.digest


@pytest.mark.parametrize("change", ["came", "went", "moved"])
def test_a_preparation_does_not_go_on_over_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = write_tree(tmp_path / "in", class_files(300))

    def stops(block: Block, packing_: Packing) -> object:
        if block.keys[0].startswith("b"):
            raise KeyboardInterrupt
        return pack_block(block, packing_)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "pack_block", stops)
        with pytest.raises(Interrupted):
            prepared(folder, tmp_path / "out")
    begun = (tmp_path / "out" / write.STATE).read_bytes()
    one = folder / "a" / "0.png"
    if change == "came":
        write_tree(folder, {"a/00.png": encoded(noise(16, 16))})
    elif change == "went":
        one.unlink()
    else:
        one.rename(folder / "b" / "x.png")
    with pytest.raises(UserError, match=r"in has changed since .*out was begun: images, labels"):
        prepared(folder, tmp_path / "out")
    assert (tmp_path / "out" / write.STATE).read_bytes() == begun


@pytest.mark.slow
def test_a_killed_preparation_ends_with_the_same_set(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "in", class_files(1500, side=64))
    whole = prepared(folder, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from igpt.images import prepare;"
        "from igpt.images.packed.rows import Packing;"
        "from igpt.images.sources.find import open_source;"
        "prepare.COMMIT_EVERY_S = 0.05;"
        "source, out = open_source(sys.argv[1]), Path(sys.argv[2]);"
        "prepare.prepare(source, out, packing=Packing(image_size=8))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    kills = 0
    while not is_packed(tmp_path / "out"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 0.4 + 0.2 * kills
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 1
    assert PackedSet.open(tmp_path / "out").digest == whole.digest


def test_open_data_prepares_once_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    folder = write_tree(tmp_path / "in", class_files(10))
    first = prepare.open_data(str(folder), image_size=8)
    monkeypatch.setattr(prepare, "pack_block", None)  # a second preparation would fail
    assert prepare.open_data(str(folder), image_size=8).digest == first.digest
    other = prepare.open_data(str(folder), image_size=8, seed=5, valid_fraction=0.3)
    assert (other.seed, other.valid_fraction) == (5, 0.3)


def test_open_data_sees_that_files_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    folder = write_tree(tmp_path / "in", class_files(10))
    first = prepare.open_data(str(folder), image_size=8)
    write_tree(folder, {"a/new.png": encoded(noise(16, 16))})
    assert prepare.open_data(str(folder), image_size=8).manifest["n_images"] == 21
    assert first.manifest["n_images"] == 20


def test_a_packed_set_opens_as_it_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    folder = write_tree(tmp_path / "in", class_files(10))
    packed = prepared(folder, tmp_path / "out", valid_fraction=0.3)
    opened = prepare.open_data(str(tmp_path / "out"), image_size=8, seed=9, valid_fraction=0.1)
    assert opened.digest == packed.digest
    smaller = prepare.open_data(str(tmp_path / "out"), image_size=4)
    assert smaller.image_size == 4 and smaller.n("test") == packed.n("test")
    with pytest.raises(UserError, match=r"packed at 8 pixels, too small for data.image_size 16"):
        prepare.open_data(str(tmp_path / "out"), image_size=16)


def test_digits_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    packed = prepare.open_data("digits", image_size=16)
    assert [packed.n(s) for s in ("train", "valid", "test")] == [1350, 150, 297]
    assert packed.classes == tuple("0123456789")


def test_unknown_data_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no data at cifar01: did you mean cifar10"):
        prepare.open_data("cifar01", image_size=8)
    with pytest.raises(UserError, match="no data at /nowhere: names: cifar10"):
        prepare.open_data("/nowhere", image_size=8)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("size", "views"), [(0, 0), (257, 0), (8, -1)])
def test_impossible_packing_is_refused(size: int, views: int) -> None:
    with pytest.raises(UserError, match="is not possible: choose"):
        Packing(image_size=size, views=views)


def test_a_sources_own_splits_stand(tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in class_files(10).items()}
    files |= {f"val/{name}": data for name, data in class_files(2).items()}
    packed = prepared(write_tree(tmp_path / "in", files), tmp_path / "out")
    assert packed.manifest["own_splits"] == [TRAIN, TEST]
    assert [packed.n(s) for s in ("train", "valid", "test")] == [18, 2, 4]


def test_an_array_source_is_cropped_too(tmp_path: Path) -> None:
    images = np.stack([smooth(256, 300, i) for i in range(6)])
    source = Source(
        name="arrays", blocks=lambda part: part.share([Block(images=images, keys=list("abcdef"))])
    )
    packed = prepare.prepare(source, tmp_path / "out", packing=Packing(image_size=32), workers=1)
    files = {f"{i}.png": encoded(Image.fromarray(image)) for i, image in enumerate(images)}
    same = prepared(write_tree(tmp_path / "in", files), tmp_path / "same", image_size=32)
    assert np.array_equal(packed.images("train")[:], same.images("train")[:])


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    packed = prepared(write_tree(tmp_path / "in", class_files(5)), tmp_path / "out")
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["n_images"] == 10 and manifest["rejects"] == {}
