import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.live import Draw, LiveImages, crop_originals, open_live
from igpt.images.packed.originals import digest_of
from igpt.images.packed.read import PackedSet
from igpt.images.packed.rows import Packing
from igpt.images.prepare import open_data, prepare
from igpt.images.sources.find import open_source
from igpt.images.sources.source import Original, Part, Span
from tests.images.pictures import encoded, smooth, tar_bytes, write_tree


def painted(number: int) -> bytes:
    """A JPEG nearly all of one colour, which stands for its number wherever it is cropped."""
    image = smooth(230 + number, 260, number) // 20 + np.uint8(18 * number)
    return encoded(image, "JPEG", quality=95)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    files = {f"{i:02d}.jpg": painted(i) for i in range(12)}
    return write_tree(tmp_path / "in", files | {"05.jpg": b"no image"})


def opened(packed: PackedSet, workers: int = 1) -> LiveImages:
    return open_live(packed, packed.rows("train"), workers=workers)


def crops(live: LiveImages, ids: list[int], step: int = 0) -> np.ndarray:
    slots = np.arange(len(ids))
    return live.crops(np.array(ids), seed=0, name="train", step=step, slots=slots)


def test_crops_do_not_depend_on_the_number_of_processes(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with opened(packed) as one:
        with opened(packed, workers=2) as two:
            assert np.array_equal(crops(one, [3, 0, 3]), crops(two, [3, 0, 3]))
        again, other = crops(one, [3, 0, 3]), crops(one, [3, 0, 3], step=1)
    assert again.shape == (3, 16, 16, 3)
    assert not np.array_equal(again, other)
    assert not np.array_equal(again[0], again[2])  # one image twice, cropped differently


def test_image_i_is_image_i_of_the_packed_training_split(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with opened(packed) as live:
        assert len(live) == packed.n("train") == 10
        seen = crops(live, list(range(10))).mean((1, 2, 3))
    stored = packed.images("train")[:].mean((1, 2, 3))
    assert np.array_equal(np.abs(seen[:, None] - stored).argmin(1), np.arange(10))


def test_a_name_that_comes_twice_is_cropped_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    twice = "".join(f"{i:02d}.jpg\n" for i in (*range(11), 3))
    write_tree(tmp_path, {f"{i:02d}.jpg": painted(i) for i in range(11)})
    (tmp_path / "list.csv").write_text("path\n" + twice)
    packed = open_data(str(tmp_path / "list.csv"), image_size=8)
    assert packed.manifest["rejects"] == {"the same name as one before": 1}
    with opened(packed) as live:
        assert len(live) == packed.n("train") == 10


def test_images_inside_a_tar_are_cropped_too(tmp_path: Path) -> None:
    image = encoded(smooth(300, 280), "JPEG")
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": image}))
    (tmp_path / "1.jpg").write_bytes(image)
    digest = digest_of(image)
    originals = [
        Original(Span(tmp_path / "a.tar", 512, len(image)), digest),
        Original(Span(tmp_path / "1.jpg"), digest),
    ]
    a, b = crop_originals(originals, [Draw(0, "t", 5, 1)] * 2, 16)
    assert np.array_equal(a, b)


def test_arrays_have_no_files_to_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    packed = open_data("digits", image_size=8)
    with pytest.raises(UserError, match="no image files to crop anew"):
        opened(packed)


def live_crops(packed: PackedSet) -> np.ndarray:
    with opened(packed) as live:
        return crops(live, list(range(len(live))))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_set_prepared_in_parts_is_cropped_from_its_originals(
    photos: Path, tmp_path: Path, parts: int
) -> None:
    write_tree(photos, {f"more/{i:03d}.jpg": painted(i % 12) for i in range(80)})
    for i in range(parts):
        prepare(
            open_source(str(photos)),
            tmp_path / "out",
            packing=Packing(image_size=16),
            part=Part(i + 1, parts),
        )
    packed = PackedSet.open(tmp_path / "out")
    assert packed.n("train") > 64
    seen = live_crops(packed).mean((1, 2, 3))
    stored = packed.images("train")[:].mean((1, 2, 3))
    near = np.abs(seen - stored) < 12  # the crop moves the mean a little, another image by 18
    assert near.all()


def test_a_smaller_set_made_of_a_packed_one_is_cropped_from_the_same_originals(
    photos: Path, tmp_path: Path
) -> None:
    large = prepared_at(photos, tmp_path / "large", 32)
    small = open_data(str(large.folder), image_size=16)
    assert small.image_size == 16
    seen = live_crops(small).mean((1, 2, 3))
    assert np.abs(seen - small.images("train")[:].mean((1, 2, 3))).max() < 12


def prepared_at(data: Path, out: Path, side: int, **packing: int) -> PackedSet:
    return prepare(open_source(str(data)), out, packing=Packing(image_size=side, **packing))


def test_kept_copies_need_no_originals(photos: Path, tmp_path: Path) -> None:
    packed = prepared_at(photos, tmp_path / "out", 16, keep_side=128)
    whole = live_crops(open_data(str(photos), image_size=16)).astype(int)
    shutil.rmtree(photos)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert [file.name for file in moved.glob("kept-*")] == ["kept-00000.tar"]
    with tarfile.open(moved / "kept-00000.tar") as tar:
        assert len(tar.getnames()) == packed.manifest["n_images"]
    seen = live_crops(PackedSet.open(moved)).astype(int)
    assert np.abs(seen - whole).mean() < 2


def test_originals_that_moved_with_the_set_are_found(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    photos = photos.rename(tmp_path / "a" / "in")
    prepared_at(photos, tmp_path / "a" / "out", 16)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(live_crops(PackedSet.open(tmp_path / "b" / "out"))) == 10


def test_originals_that_are_gone_or_changed_are_named(photos: Path, tmp_path: Path) -> None:
    packed = prepared_at(photos, tmp_path / "out", 16)
    with opened(packed) as live:
        (photos / "00.jpg").write_bytes(painted(3))
        with pytest.raises(UserError, match=r"00.jpg anew: .*\(blake2b \w{16}, then \w{16}\)"):
            crops(live, list(range(len(live))))
    for file in photos.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"jpg, an original of .*out, there is no such file"):
        opened(packed)


def test_a_set_of_igpt_0_1_says_how_to_go_on(photos: Path, tmp_path: Path) -> None:
    packed = prepared_at(photos, tmp_path / "out", 16)
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    del manifest["originals"]
    (packed.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"prepared by igpt 0\.1"):
        opened(PackedSet.open(packed.folder))


@pytest.mark.parametrize("side", [-1, 8, 5000])
def test_a_side_to_keep_that_makes_no_sense_is_refused(side: int) -> None:
    with pytest.raises(UserError, match=r"--keep-side .* is not possible"):
        Packing(image_size=16, keep_side=side)
