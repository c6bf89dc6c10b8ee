from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.live import Draw, crop_spans, open_live
from igpt.images.packed import PackedSet
from igpt.images.prepare import open_data
from igpt.images.sources.source import Span
from tests.images.pictures import encoded, smooth, tar_bytes, write_tree


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    files = {
        f"{i:02d}.jpg": encoded(smooth(230 + i, 260, i), "JPEG", quality=95) for i in range(12)
    }
    return write_tree(tmp_path / "in", files | {"05.jpg": b"no image"})


def draws(n: int, step: int = 0) -> list[Draw]:
    return [Draw(0, "train", step, slot) for slot in range(n)]


def test_crops_do_not_depend_on_the_number_of_processes(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    ids = np.array([3, 0, 3, 7])
    with open_live(str(photos), packed, workers=1) as one:
        with open_live(str(photos), packed, workers=3) as three:
            assert np.array_equal(one.crops(ids, draws(4)), three.crops(ids, draws(4)))
        again, other = one.crops(ids, draws(4)), one.crops(ids, draws(4, step=1))
    assert again.shape == (4, 16, 16, 3)
    assert not np.array_equal(again, other)
    assert not np.array_equal(again[0], again[2])  # one image twice, cropped differently


def test_image_i_is_image_i_of_the_packed_training_split(photos: Path) -> None:
    packed = open_data(str(photos), image_size=16)
    with open_live(str(photos), packed, workers=1) as live:
        assert len(live) == packed.n("train") == 10
        crops = live.crops(np.arange(10), draws(10)).mean((1, 2))
    stored = packed.images("train")[:].mean((1, 2))
    nearest = np.abs(crops[:, None] - stored).sum(-1).argmin(1)
    assert (nearest == np.arange(10)).mean() > 0.6  # a crop looks like its own image


def test_images_inside_a_tar_are_cropped_too(tmp_path: Path) -> None:
    image = encoded(smooth(300, 280), "JPEG")
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": image}))
    (tmp_path / "1.jpg").write_bytes(image)
    spans = [Span(tmp_path / "a.tar", 512, len(image)), Span(tmp_path / "1.jpg")]
    a, b = crop_spans(spans, [Draw(0, "t", 5, 1)] * 2, 16)
    assert np.array_equal(a, b)


def test_arrays_have_no_files_to_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no image files to crop anew"):
        open_live("digits", open_data("digits", image_size=8))


def test_files_that_changed_are_noticed(photos: Path) -> None:
    packed: PackedSet = open_data(str(photos), image_size=16)
    with open_live(str(photos), packed, workers=1) as live:
        (photos / "00.jpg").write_bytes(b"gone")
        with pytest.raises(UserError, match=r"00.jpg: not an image.* changed since"):
            live.crops(np.arange(len(live)), draws(len(live)))
    (photos / "00.jpg").unlink()
    with pytest.raises(UserError, match=r"changed since .* was prepared"):
        open_live(str(photos), packed)
