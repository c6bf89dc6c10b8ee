import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from igpt.errors import UserError
from igpt.generate.pictures import save_animation
from igpt.images import decode as decoding
from igpt.images import recognise
from igpt.images.decode import decode, open_image, read_image
from igpt.images.grid import to_png_bytes
from igpt.report.charts import Chart
from tests.images.pictures import chunk, encoded, noise, png_claiming, smooth


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


@pytest.mark.parametrize("turn", [0, 9, 60_000])
def test_an_orientation_out_of_range_is_upright(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = smooth(8, 12)
    with open_image(encoded(image, "PNG", exif=exif)) as file:
        decoded = decode(file)
    assert (decoded.height, decoded.width) == (8, 12)
    assert np.array_equal(decoded.pixels, image)


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),  # above Pillow's limit for a text
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"pHYs", b"\0"),
        chunk(b"tEXt", b"a\0" + bytes(100))[:-1] + b"?",  # a wrong checksum
    ],
    ids=["text", "international text", "profile", "resolution", "checksum"],
)
def test_odd_metadata_of_a_png_leaves_the_pixels(odd: bytes, place: str) -> None:
    image = smooth(6, 5)
    data = encoded(image)
    at = data.index(b"IDAT") - 4 if place == "before" else data.index(b"IEND") - 4
    assert np.array_equal(read_image(data[:at] + odd + data[at:]), image)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff\xff\xff",
        b"\xff\xe2\0\x10ICC_PROFILE\0\xff\x01",
        b"\xff\xed\0\x14Photoshop 3.0\08BIM\xff",
        b"\xff\xe2\0\x0aMPF\0MM\0*",
    ],
    ids=["exif", "profile", "photoshop", "several pictures"],
)
def test_odd_metadata_of_a_jpeg_leaves_the_pixels(segment: bytes) -> None:
    data = encoded(smooth(16, 16), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as by default: Pillow may say what it passes over
        assert np.array_equal(read_image(data[:2] + segment + data[2:]), read_image(data))


def test_reading_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_image, [encoded(smooth(8, 8), "JPEG")] * 50))
    assert warnings.filters == before


def test_a_large_photograph_is_read_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FULL_PIXELS", 1000)
    image = smooth(301, 403)
    for kind, scale in (("JPEG", 16), ("PNG", 12)):
        with open_image(encoded(image, kind)) as file:
            decoded = decode(file)
        assert (decoded.height, decoded.width, decoded.scale) == (301, 403, scale)
        assert decoded.pixels.shape == (-(-301 // scale), -(-403 // scale), 3)
        assert abs(decoded.pixels.mean() - image.mean()) < 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_read_at_a_fraction(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "FULL_PIXELS", 100)
    image = Image.fromarray(np.full((32, 48), 40_000, np.uint16))
    if mode != "I;16":
        image = Image.new("RGB", (48, 32), (200, 200, 200)).convert(mode)
    with open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG")) as file:
        decoded = decode(file)
    assert decoded.pixels.shape == (8, 12, 3)
    assert abs(int(decoded.pixels.mean()) - (156 if mode == "I;16" else 200)) < (
        60 if mode == "1" else 3
    )


def test_memory_is_what_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "MAX_MEMORY_BYTES", 100_000)
    assert read_image(encoded(smooth(150, 150), "PNG")).shape == (150, 150, 3)
    with pytest.raises(UserError, match=r"200 x 160 pixels take 0.0 GiB to decode"):
        read_image(encoded(smooth(160, 200), "PNG"))
    monkeypatch.setattr(decoding, "FULL_PIXELS", 1000)
    assert read_image(encoded(smooth(640, 800), "JPEG")).shape == (27, 34, 3)
    with pytest.raises(UserError, match="to decode"):
        read_image(encoded(smooth(640, 800), "JPEG", progressive=True))


def test_heic_is_read_or_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic" + bytes(400)
    with pytest.raises(UserError, match=r"damaged or cut off|HEIC is not read"):
        read_image(data)
    monkeypatch.setattr(recognise, "has_heif", lambda: False)
    monkeypatch.setattr(recognise, "_plugins", recognise._plugins.__wrapped__)
    with pytest.raises(UserError, match=r"HEIC is not read: pip install 'igpt\[heif\]'"):
        read_image(data)


def test_heic_pictures_are_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    file, image = io.BytesIO(), smooth(64, 96)
    heif.from_pillow(Image.fromarray(image)).save(file, quality=95)
    assert np.abs(read_image(file.getvalue()).astype(int) - image).mean() < 5


def test_a_picture_that_igpt_drew_can_be_told(tmp_path: Path) -> None:
    drawn = [to_png_bytes(smooth(4, 4)), Chart(series=(), x_label="x", y_label="y").png()]
    for name in ("a.gif", "a.WEBP"):
        save_animation(tmp_path / name, [smooth(8, 8), smooth(8, 8)[::-1]])
        drawn.append((tmp_path / name).read_bytes())
    for data in drawn:
        with open_image(data) as image, pytest.raises(UserError, match="drawn by igpt"):
            recognise.check_not_own(image)


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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image, or of a kind that is not read"),
        (b"hello", "not an image, or of a kind that is not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(smooth(64, 64), "JPEG")[:600], "damaged or cut off"),
        (encoded(smooth(64, 64), "PNG")[:-60], "damaged or cut off"),
        (png_claiming(60_000, 60_000), "60000 x 60000 pixels take 13.4 GiB to decode, more than 1"),
        (png_claiming(9_000, 9_000), "9000 x 9000 pixels cannot be in 74 bytes"),
        (png_claiming(500, 500), "damaged or cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "not an image but HTML"),
        (bytes(400), "only zeros"),
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
    with open_image(io.BytesIO(encoded(noise(4, 6)))) as file:
        assert decode(file).pixels.shape == (4, 6, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([1, 4, 12]),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.sampled_from([0, 1, 2]),
    st.integers(1, 8),
    st.booleans(),
)
def test_the_faster_decoder_gives_the_pixels_of_pillow(
    height: int, width: int, shorter: int, mode: str, sampling: int, turn: int, progressive: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.fromarray(smooth(height, width)).convert(mode)
    data = encoded(
        image, "JPEG", quality=87, subsampling=sampling, exif=exif, progressive=progressive
    )
    fast = decoding.decode_bytes(data, shorter_side=shorter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode_jpeg", lambda *_: None)
        slow = decoding.decode_bytes(data, shorter_side=shorter)
    assert np.array_equal(fast.pixels, slow.pixels)
    assert (fast.height, fast.width, fast.scale) == (slow.height, slow.width, slow.scale)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_cut_jpeg_is_judged_by_pillow(share: float) -> None:
    data = encoded(smooth(80, 80), "JPEG")
    with pytest.raises(UserError, match="damaged or cut off"):
        decoding.decode_bytes(data[: int(share * len(data))])
