import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from igpt.errors import UserError
from igpt.images import taking
from igpt.images.packed.rows import Packing, pack_block
from igpt.images.sources.source import Block, Span
from igpt.images.taking import as_squares, warn_of_sizes
from tests.images.pictures import encoded, noise, smooth

SIDE = 8
IMAGE = noise(SIDE, SIDE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(encoded(IMAGE))
    return tmp_path / "a.png"


def planar(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(IMAGE).permute(2, 0, 1).to(dtype)


def test_one_image_of_any_kind_is_taken(path: Path) -> None:
    with path.open("rb") as file:
        for image in (
            *(path, str(path), np.str_(path), path.read_bytes(), bytearray(path.read_bytes())),
            *(file, io.BytesIO(path.read_bytes()), Image.fromarray(IMAGE), IMAGE, IMAGE / 255),
            *(planar(torch.uint8), planar(torch.float32) / 255, planar(torch.bfloat16)),
            np.array(str(path), dtype=object),
        ):
            assert np.array_equal(as_squares(image, SIDE)[0], IMAGE), type(image)


def test_many_images_of_any_kind_are_taken(path: Path) -> None:
    import pandas as pd

    both = [path, path]
    for images in (
        *(both, tuple(both), iter(both), np.array(both, object), np.array([str(path)] * 2)),
        *(np.array(both, object)[:, None], np.stack([IMAGE] * 2), [IMAGE, planar(torch.uint8)]),
        *(torch.stack([planar(torch.uint8)] * 2), pd.Series([str(path)] * 2), [path, IMAGE]),
        pd.DataFrame({"path": [str(path)] * 2}),
    ):
        assert np.array_equal(as_squares(images, SIDE), np.stack([IMAGE] * 2)), type(images)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([], "there are no images"),
        (3, "int is no image: pass paths"),
        ([None], "NoneType is no image"),
        ({"a": 1}, "dict is no image"),
        ([object], "type is no image"),
        (io.StringIO("x"), "cannot read the given image: it is open as text"),
        (np.zeros((3, 8, 8), np.uint8), "may be 3 grey images or one of 3 channels"),
        (np.zeros((2, 8, 8, 7)), r"\(2, 8, 8, 7\) float64 .* are no images"),
        (np.array([["a", "b"]], object), "a table of 2 columns"),
        (b"hello", "cannot read the given image: not an image"),
    ],
)
def test_what_is_no_image_is_refused_by_its_true_name(images: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        as_squares(images, SIDE)


@pytest.mark.parametrize(
    ("kind", "size"), [("JPEG", (301, 403)), ("JPEG", (900, 1200)), ("PNG", (300, 230))]
)
def test_a_file_gives_the_same_pixels_as_when_it_is_prepared(
    tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(encoded(smooth(*size), kind))
    packed = pack_block(Block(images=[Span(path)], keys=["x"]), Packing(image_size=16))
    assert np.array_equal(as_squares(path, 16), packed.images)


def test_photographs_are_far_only_from_models_of_small_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "_said", set())
    warn_of_sizes([3000], 32, source_px=0)
    warn_of_sizes([3000], 32, source_px=2000)
    warn_of_sizes([200], 32, source_px=32)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        warn_of_sizes([3000, 32], 32, source_px=32)
    assert capsys.readouterr().err.count("of 2 images 1 differ much in size") == 1
    warn_of_sizes([9], 32, source_px=0)
    assert "(9 pixels on" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_shown(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"\\xff.png: not an image"):
        as_squares(path, SIDE)
