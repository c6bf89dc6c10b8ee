import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.images.crop import CROP_SIZE, center_crop, center_square, crop_resize, random_crop
from igpt.images.resize import area_resize
from tests.oracles.area import area_average


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_nearest(result: np.ndarray, exact: np.ndarray) -> bool:
    return bool(np.abs(result - exact).max() <= 0.5 + 1e-9)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 16), (32, 32, 24), (64, 64, 48), (37, 53, 32), (300, 200, 32), (8, 8, 32), (1, 1, 4)],
)
def test_area_resize_is_the_exact_mean_rounded_to_nearest(
    height: int, width: int, size: int
) -> None:
    image = noise(height, width)
    exact = area_average(image, (0, 0, height, width), size)
    assert is_nearest(area_resize(image, size), exact)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 5))
def test_area_resize_is_exact_for_any_ratio(height: int, width: int, size: int, seed: int) -> None:
    image = noise(height, width, seed)
    exact = area_average(image, (0, 0, height, width), size)
    assert is_nearest(area_resize(image, size), exact)


def test_area_resize_breaks_ties_to_even() -> None:
    image = np.array([[[0, 1, 2], [1, 2, 3]], [[0, 1, 2], [1, 2, 3]]], np.uint8)
    assert area_resize(image, 1).tolist() == [[[0, 2, 2]]]


def test_area_resize_takes_any_leading_axes() -> None:
    images = np.stack([noise(20, 20, seed) for seed in range(6)]).reshape(2, 3, 20, 20, 3)
    resized = area_resize(images, 7)
    assert resized.shape == (2, 3, 7, 7, 3)
    assert np.array_equal(resized[1, 2], area_resize(images[1, 2], 7))


def test_area_resize_of_many_images_equals_one_by_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(area_resize(images, 24)[-1], area_resize(images[-1], 24))


def test_area_resize_of_a_large_image_goes_by_bands() -> None:
    image = np.full((3000, 2000, 3), 77, np.uint8)
    image[:1500] = 33
    assert np.unique(area_resize(image, 2)[0]).tolist() == [33]
    assert np.unique(area_resize(image, 2)[1]).tolist() == [77]


def test_the_same_size_is_left_alone() -> None:
    image = noise(16, 16)
    assert area_resize(image, 16) is image


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (4, 4)])
def test_center_square_cuts_both_ends_alike(height: int, width: int) -> None:
    image = noise(height, width)
    square = center_square(image)
    assert square.shape == (min(height, width), min(height, width), 3)
    top, left = (height - len(square)) // 2, (width - len(square)) // 2
    assert np.array_equal(square, image[top : top + len(square), left : left + len(square)])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (448, 224), (225, 231)])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_centre_crop_is_shorter_side_224_then_the_middle(
    height: int, width: int, size: int
) -> None:
    image = noise(height, width)
    crop = center_crop(height, width)
    assert min(crop.resized) == crop.side == CROP_SIZE
    up, across = height / crop.resized[0], width / crop.resized[1]
    box = (
        crop.top * up,
        crop.left * across,
        (crop.top + CROP_SIZE) * up,
        (crop.left + CROP_SIZE) * across,
    )
    assert is_nearest(crop_resize(image, crop, size), area_average(image, box, size))


def test_an_image_below_224_keeps_its_whole_centre_square() -> None:
    image = noise(40, 64)
    crop = center_crop(40, 64)
    assert np.array_equal(crop_resize(image, crop, 32), area_resize(center_square(image), 32))


def test_averaging_twice_is_averaging_once_where_224_divides() -> None:
    image = noise(448, 448)
    through_224 = area_average(area_average(image, (0, 0, 448, 448), 224), (0, 0, 224, 224), 32)
    assert is_nearest(crop_resize(image, center_crop(448, 448), 32), through_224)


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 700), st.integers(20, 700), st.integers(0, 2**31))
def test_random_crops_lie_inside_the_resized_image(height: int, width: int, seed: int) -> None:
    crop = random_crop(height, width, np.random.default_rng(seed))
    assert 256 <= min(crop.resized) <= 384
    assert 0 <= crop.top <= crop.resized[0] - CROP_SIZE
    assert 0 <= crop.left <= crop.resized[1] - CROP_SIZE


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_reduced_image_is_laid_on_the_same_places(scale: int) -> None:
    small = noise(38, 51)
    full = small.repeat(scale, axis=0).repeat(scale, axis=1)[: 38 * scale - 1, : 51 * scale - 1]
    crop = center_crop(*full.shape[:2])
    assert np.array_equal(crop_resize(small, crop, 16, scale=scale), crop_resize(full, crop, 16))
