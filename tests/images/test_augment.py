"""The CIFAR augmentation against cutting by hand."""

import numpy as np

from igpt.images.augment import crop_and_flip, cropped, flipped
from igpt.streams import stream


def all_cuts(image: np.ndarray, margin: int) -> set[bytes]:
    """Every cut of the reflected image and of its mirror image."""
    side = len(image)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    found = set()
    for top in range(2 * margin + 1):
        for left in range(2 * margin + 1):
            cut = padded[top : top + side, left : left + side]
            found |= {cut.tobytes(), cut[:, ::-1].tobytes()}
    return found


def test_result_is_a_cut_of_the_reflected_image_or_its_mirror() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    made = crop_and_flip(images, stream(0, "test"))
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    for image, cut in zip(images, made, strict=True):
        assert cut.tobytes() in all_cuts(image, 2)


def test_draws_say_where_the_cut_begins_and_whether_it_is_mirrored() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    draws = np.array([[0, 0.99, 0.5], [0.99, 0, 0.5], [0.5, 0.2, 0.49]])
    up_right, down_left, mirrored = cropped(np.stack([image] * 3), draws)
    np.testing.assert_array_equal(up_right, padded[:16, 4:])
    np.testing.assert_array_equal(down_left, padded[4:, :16])
    np.testing.assert_array_equal(mirrored, padded[2:18, 1:17][:, ::-1])


def test_every_cut_comes_up() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    made = crop_and_flip(np.stack([image] * 1000), stream(0, "test"))
    assert {cut.tobytes() for cut in made} == all_cuts(image, 2)


def test_same_stream_gives_the_same_images_and_leaves_the_input() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    before = images.copy()
    one, other = (crop_and_flip(images, stream(3, "test")) for _ in range(2))
    assert np.array_equal(one, other)
    assert np.array_equal(images, before)


def test_tiny_images_are_only_mirrored() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    made = crop_and_flip(images, stream(0, "test"))
    for image, cut in zip(images, made, strict=True):
        assert np.array_equal(cut, image) or np.array_equal(cut, image[:, ::-1])


def test_each_image_depends_on_its_own_draws() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    draws = rng.random((12, 3))
    for change in (cropped, flipped):
        whole = change(images, draws)
        part = change(images[2:7], draws[2:7])
        np.testing.assert_array_equal(part, whole[2:7])
        np.testing.assert_array_equal(change(images[:0], draws[:0]), whole[:0])


def test_half_of_the_images_are_mirrored() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 5, 5, 3)).astype(np.uint8)
    draws = rng.random((12, 3))
    draws[0, 2] = 0.5
    before = images.copy()
    made = flipped(images, draws)
    np.testing.assert_array_equal(flipped(np.asfortranarray(images), draws), made)
    for i in range(12):
        expected = images[i, :, ::-1] if draws[i, 2] < 0.5 else images[i]
        np.testing.assert_array_equal(made[i], expected)
    np.testing.assert_array_equal(images, before)
