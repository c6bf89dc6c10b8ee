import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.levels import image_of, images_of
from tests.images.pictures import noise

IMAGES = np.stack([noise(6, 6, i) for i in range(3)])
GREY = IMAGES[..., 0]
WIDE = IMAGES.astype(np.uint16) * 257


@pytest.mark.parametrize(
    "array",
    [
        *(IMAGES, np.moveaxis(IMAGES, -1, 1), IMAGES.reshape(3, -1), IMAGES.astype(np.int64)),
        *(
            IMAGES.astype(float),
            IMAGES / 255,
            IMAGES / 127.5 - 1,
            (IMAGES / 255).astype(np.float16),
        ),
        *(WIDE, WIDE.astype(">u2"), (IMAGES / 255).astype(">f4"), np.asfortranarray(IMAGES)),
        np.concatenate([IMAGES, np.full((3, 6, 6, 1), 255, np.uint8)], axis=3),
    ],
    ids=range(13),
)
def test_every_usual_form_gives_the_same_images(array: np.ndarray) -> None:
    got = images_of(array)
    assert got.shape == IMAGES.shape
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - IMAGES).max() <= (1 if array.dtype == np.float16 else 0)


@pytest.mark.parametrize(
    "array", [GREY, GREY[..., None], GREY[:, None], GREY.reshape(3, -1), GREY / 255, GREY > 127]
)
def test_grey_is_repeated(array: np.ndarray) -> None:
    wanted = np.where(GREY > 127, 255, 0) if array.dtype == bool else GREY
    assert np.array_equal(images_of(array), np.repeat(wanted[..., None], 3, 3))


def test_alpha_lies_over_white() -> None:
    clear = np.zeros((1, 2, 2, 4), np.uint8)
    assert (images_of(clear) == 255).all()


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros((2, 8, 8, 5)), np.zeros((2, 9)) - 2, np.zeros((2, 10)), np.zeros((2, 0, 4, 3))),
        *(np.full((2, 4, 4), np.nan), np.full((2, 4, 4), 256.0), np.full((2, 4, 4), 70_000)),
        *(np.zeros((2, 4, 4), complex), np.array(["a"]), np.zeros((1, 2, 2, 2, 3)), np.zeros(4)),
    ],
    ids=range(11),
)
def test_what_is_no_image_is_refused_by_what_was_seen(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"^\(.*\) .* are no images: give \(N, H, W\)") as caught:
        images_of(array)
    assert str(array.shape) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_image_may_have_its_channels_first_or_none() -> None:
    assert np.array_equal(image_of(np.moveaxis(IMAGES[0], -1, 0)), IMAGES[0])
    assert image_of(GREY[0]).shape == (6, 6, 3)
    with pytest.raises(UserError, match="is no image"):
        image_of(np.zeros(3))
