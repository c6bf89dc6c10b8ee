from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.live import Draw, LiveImages, Spans, crop_spans, open_live
from igpt.images.packed.read import PackedSet
from igpt.images.prepare import open_data
from igpt.images.sources.source import Span
from tests.images.pictures import class_files, encoded, smooth, tar_bytes, write_tree


def painted(number: int) -> bytes:
    """A JPEG nearly all of one colour, which stands for its number wherever it is cropped."""
    image = smooth(230 + number, 260, number) // 20 + np.uint8(18 * number)
    return encoded(image, "JPEG", quality=95)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    files = {f"{i:02d}.jpg": painted(i) for i in range(12)}
    return write_tree(tmp_path / "in", files | {"05.jpg": b"no image"})


def opened(data: Path, packed: PackedSet, workers: int = 1) -> LiveImages:
    return open_live(str(data), packed, packed.rows("train"), workers=workers)


def crops(live: LiveImages, ids: list[int], step: int = 0) -> np.ndarray:
    slots = np.arange(len(ids))
    return live.crops(np.array(ids), seed=0, name="train", step=step, slots=slots)


def test_crops_do_not_depend_on_the_number_of_processes(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with opened(photos, packed) as one:
        with opened(photos, packed, workers=2) as two:
            assert np.array_equal(crops(one, [3, 0, 3]), crops(two, [3, 0, 3]))
        again, other = crops(one, [3, 0, 3]), crops(one, [3, 0, 3], step=1)
    assert again.shape == (3, 16, 16, 3)
    assert not np.array_equal(again, other)
    assert not np.array_equal(again[0], again[2])  # one image twice, cropped differently


def test_image_i_is_image_i_of_the_packed_training_split(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with opened(photos, packed) as live:
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
    with opened(tmp_path / "list.csv", packed) as live:
        assert len(live) == packed.n("train") == 10


def test_images_inside_a_tar_are_cropped_too(tmp_path: Path) -> None:
    image = encoded(smooth(300, 280), "JPEG")
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": image}))
    (tmp_path / "1.jpg").write_bytes(image)
    spans = [Span(tmp_path / "a.tar", 512, len(image)), Span(tmp_path / "1.jpg")]
    a, b = crop_spans(spans, [Draw(0, "t", 5, 1)] * 2, 16)
    assert np.array_equal(a, b)


def test_spans_come_back_from_their_columns(tmp_path: Path) -> None:
    given = [Span(tmp_path / "a.tar", 512, 7), Span(tmp_path / "b"), Span(tmp_path / "a.tar", 9, 1)]
    spans = Spans()
    for span in given:
        spans.append(span)
    assert [spans.at(i) for i in range(len(spans))] == given


def test_arrays_have_no_files_to_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    packed = open_data("digits", image_size=8)
    with pytest.raises(UserError, match="no image files to crop anew"):
        open_live("digits", packed, packed.rows("train"))


def test_stored_crops_are_not_cropped_again(tmp_path: Path) -> None:
    from tests.images.test_prepare import prepared

    folder = write_tree(tmp_path / "in", class_files())
    packed = prepared(folder, tmp_path / "out", packing={"views": 1})
    with pytest.raises(UserError, match=r"holds random crops already: set data.augment to none"):
        opened(folder, packed)


def test_files_that_changed_are_noticed(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with opened(photos, packed) as live:
        (photos / "00.jpg").write_bytes(b"gone")
        with pytest.raises(UserError, match=r"00.jpg: not an image.* changed since"):
            crops(live, list(range(len(live))))
    (photos / "00.jpg").unlink()
    with pytest.raises(UserError, match=r"changed since .* was prepared"):
        opened(photos, packed)
