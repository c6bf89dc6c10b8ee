import io

import numpy as np
from PIL import Image

from igpt.images.grid import tile, to_png_bytes


def test_tile_puts_images_row_after_row_with_gaps() -> None:
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    picture = tile(images, 2, gap_px=1, background=(7, 7, 7))
    assert picture.shape == (7, 7, 3)
    assert picture[1, 1, 0] == 10
    assert picture[1, 4, 0] == 20
    assert picture[4, 1, 0] == 30
    assert picture[4, 4, 0] == picture[0, 0, 0] == picture[3, 1, 0] == 7


def test_enlarging_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    picture = tile(image, enlarge=3, gap_px=0)
    assert np.array_equal(picture[::3, ::3], image[0])
    assert np.array_equal(picture[2::3, 2::3], image[0])


def test_columns_default_to_a_square() -> None:
    assert tile(np.zeros((9, 4, 4, 3), np.uint8), gap_px=0).shape == (12, 12, 3)


def test_png_bytes_hold_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png_bytes(picture)))), picture)
