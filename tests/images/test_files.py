import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from igpt.errors import UserError
from igpt.images.files import MAX_PIXELS, decode, open_image, read_image, unwarned
from tests.images.pictures import encoded, noise, smooth


def test_bytes_paths_and_pil_images_read_alike(tmp_path: Path) -> None:
    image = noise(5, 7)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), Image.fromarray(image)):
        assert np.array_equal(read_image(source), image)
    assert read_image(path).dtype == np.uint8


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise(4, 4)[..., 0]
    assert np.array_equal(read_image(Image.fromarray(grey)), np.repeat(grey[..., None], 3, 2))


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 255, 51  # clear, solid, a fifth; of black
    assert read_image(encoded(Image.fromarray(rgba)))[0, :, 0].tolist() == [255, 0, 204]


def test_grey_with_alpha_lies_over_white() -> None:
    image = Image.merge("LA", (Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 0)))
    assert read_image(encoded(image)).tolist() == [[[255, 255, 255]]]


def test_a_transparent_palette_colour_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert read_image(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_sixteen_bits_are_scaled_not_cut() -> None:
    wide = np.array([[0, 257, 65535, 32896]], np.uint16)
    assert read_image(encoded(Image.fromarray(wide)))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(encoded(image, "JPEG", quality=100)).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "LAB", "HSV"])
def test_every_mode_gives_three_channels(mode: str) -> None:
    image = Image.fromarray(smooth(6, 9)).convert(mode)
    assert read_image(image).shape == (6, 9, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG", "AVIF"])
def test_every_kind_of_file_is_read(kind: str) -> None:
    image = smooth(16, 24)
    assert np.abs(read_image(encoded(image, kind)).astype(int) - image).mean() < 12


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(turn: int) -> None:
    upright = noise(3, 5)
    back = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(np.ascontiguousarray(back), "PNG", exif=exif)
    assert np.array_equal(read_image(data), upright)


def test_damaged_exif_leaves_the_pixels() -> None:
    image = noise(4, 4)
    data = encoded(image, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert np.array_equal(read_image(data), image)


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(noise(3, 3), "PNG"))
    assert read_image(path).shape == (3, 3, 3)


def test_one_pixel_is_an_image() -> None:
    assert read_image(encoded(noise(1, 1))).shape == (1, 1, 3)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image, or of a kind that is not read"),
        (b"hello", "not an image, or of a kind that is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(smooth(64, 64), "JPEG")[:600], "damaged or cut off"),
        (encoded(smooth(64, 64), "PNG")[:-60], "damaged or cut off"),
        (png_claiming(60_000, 60_000), f"more than {MAX_PIXELS} pixels"),
        (png_claiming(9_000, 9_000), f"more than {MAX_PIXELS} pixels"),
        (png_claiming(8_000, 8_000), "damaged or cut off"),
    ],
)
def test_what_is_no_whole_image_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        read_image(data)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("cannot read the given image: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope.png: there is no such file"):
        read_image(tmp_path / "nope.png")
    with pytest.raises(UserError, match="this is a folder"):
        read_image(tmp_path)


def test_pixels_without_a_range_are_refused() -> None:
    with pytest.raises(UserError, match="float pixels"):
        read_image(Image.new("F", (2, 2)))
    with pytest.raises(UserError, match="32-bit"):
        read_image(Image.new("I", (2, 2), 70_000))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000),
)
def test_a_spoilt_file_is_an_image_or_one_line(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(encoded(smooth(20, 30), kind))
    for place, value in changes:
        data[place % len(data)] = value
    if cut % 3 == 0:
        del data[cut % len(data) :]
    try:
        assert read_image(bytes(data)).ndim == 3
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [(301, 403), (64, 80), (15, 15)])
@pytest.mark.parametrize("shorter_side", [0, 8, 30, 100])
def test_reduced_decoding_keeps_enough_pixels(size: tuple[int, int], shorter_side: int) -> None:
    image = smooth(*size)
    with open_image(encoded(image, "JPEG", quality=95)) as file:
        decoded = decode(file, shorter_side=shorter_side)
    height, width = size
    assert (decoded.height, decoded.width) == size
    assert decoded.pixels.shape[:2] == (-(-height // decoded.scale), -(-width // decoded.scale))
    assert decoded.scale == 1 or min(size) / decoded.scale >= shorter_side
    assert decoded.scale == 8 or min(size) / (2 * decoded.scale) < shorter_side or not shorter_side


def test_reduced_decoding_turns_as_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with open_image(encoded(smooth(64, 128), "JPEG", exif=exif)) as file:
        decoded = decode(file, shorter_side=16)
    assert (decoded.height, decoded.width, decoded.scale) == (128, 64, 4)
    assert decoded.pixels.shape == (32, 16, 3)


def test_an_open_stream_can_be_read() -> None:
    with unwarned(), open_image(io.BytesIO(encoded(noise(4, 6)))) as file:
        assert decode(file).pixels.shape == (4, 6, 3)
