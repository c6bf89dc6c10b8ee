import hashlib
import io
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from igpt.errors import UserError
from igpt.tokens import fit
from igpt.tokens.palette import Palette
from tests.oracles.nearest_color import nearest_color

RNG = np.random.default_rng(0)


@st.composite
def image_arrays(draw):
    side = draw(st.integers(1, 6))
    lead = draw(st.lists(st.integers(0, 3), max_size=2))
    return draw(hnp.arrays(np.uint8, (*lead, side, side, 3)))


@settings(deadline=None)
@given(images=image_arrays())
def test_encode_picks_nearest_colour(small_palette, images):
    tokens = small_palette.encode(images)
    side = images.shape[-2]
    assert tokens.shape == (*images.shape[:-3], side * side)
    assert tokens.dtype == np.int64
    expected = nearest_color(images.reshape(-1, 3), small_palette.colors)
    np.testing.assert_array_equal(tokens.reshape(-1), expected)


@settings(deadline=None)
@given(data=st.data(), side=st.integers(1, 7))
def test_decode_then_encode_is_the_identity(small_palette, data, side):
    tokens = data.draw(hnp.arrays(np.int64, (2, side * side), elements=st.integers(0, 10)))
    images = small_palette.decode(tokens)
    assert images.shape == (2, side, side, 3)
    np.testing.assert_array_equal(small_palette.encode(images), tokens)


def test_encode_reads_views_and_chunks_like_whole_arrays(small_palette):
    images = RNG.integers(0, 256, (5, 97, 97, 3), dtype=np.uint8)  # more than one chunk
    expected = nearest_color(images.reshape(-1, 3), small_palette.colors).reshape(5, -1)
    np.testing.assert_array_equal(small_palette.encode(images), expected)
    flipped = small_palette.encode(images[::-2, :, ::-1])
    unflipped = flipped.reshape(3, 97, 97)[:, :, ::-1].reshape(3, -1)
    np.testing.assert_array_equal(unflipped, expected[::-2])


def test_compact_tokens_are_the_same_tokens(small_palette):
    images = RNG.integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    compact = small_palette.encode_compact(images)
    assert compact.dtype == np.uint8
    np.testing.assert_array_equal(compact, small_palette.encode(images))


@pytest.mark.data
def test_cifar10_tokens_are_the_known_ones(authors_palette, cifar10):
    """The sha256 of the test images' tokens that was found with float64 brute force."""
    tokens = authors_palette.encode(cifar10.images("test")[:]).astype("<u2")
    assert hashlib.sha256(tokens.tobytes()).hexdigest() == (
        "6bf9ceaf6fdf8fbb2d324f2ec4c935c79a823be89e2a46c991455afdcbb688cb"
    )


@pytest.mark.data
def test_error_on_cifar10_is_the_known_one(authors_palette, cifar10):
    error = authors_palette.error(cifar10.images("test"))
    assert round(error.rms, 2) == 4.94
    assert round(error.entropy_nats, 3) == 6.009


@pytest.mark.data
@pytest.mark.slow
def test_every_colour_of_cifar10_gets_its_nearest(authors_palette, cifar10):
    pixels = np.unique(cifar10.images("test")[:].reshape(-1, 3), axis=0)
    tokens = authors_palette.encode(pixels[:, None, None])[:, 0]
    np.testing.assert_array_equal(tokens, nearest_color(pixels, authors_palette.colors))


def test_levels_are_rounded(small_palette):
    palette = Palette([[-1, 0, 1], [0.25, -0.5, 0.999]])
    np.testing.assert_array_equal(palette.levels(), [[0, 128, 255], [159, 64, 255]])


def test_colours_cannot_be_changed(small_palette):
    with pytest.raises(ValueError, match="read-only"):
        small_palette.colors[0] = 0


def test_digest_is_that_of_the_values(authors_palette):
    assert authors_palette.digest.startswith("017426d148bc9650")
    assert Palette(authors_palette.colors[::-1]).digest != authors_palette.digest


def test_authors_palette_survives_decode_and_encode(authors_palette):
    tokens = np.resize(np.arange(512), (1, 23 * 23))
    np.testing.assert_array_equal(authors_palette.encode(authors_palette.decode(tokens)), tokens)


def test_save_and_load_round_trip(small_palette, tmp_path):
    small_palette.save(tmp_path / "new" / "p.npy")
    assert Palette.load(tmp_path / "new" / "p.npy").digest == small_palette.digest
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "p.npy"), small_palette.colors)


def test_saved_file_is_the_authors_file(authors_palette, tmp_path):
    authors_palette.save(tmp_path / "p.npy")
    data = (tmp_path / "p.npy").read_bytes()
    assert len(data) == 6272
    assert hashlib.sha256(data).hexdigest().startswith("c614a3d27f02fd6c")


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


GOOD = np.zeros((4, 3), np.float32)
BAD_FILES = {
    "empty": (b"", "it must be a .npy file"),
    "text": (b"hello, this is not numpy", "it must be a .npy file"),
    "npz": (npz(GOOD), "it must be a .npy file"),
    "cut": (npy(GOOD)[:-1], "it must be a .npy file"),
    "cut in the header": (npy(GOOD)[:40], "it must be a .npy file"),
    "pickled": (npy(np.array([{}, []], object), allow_pickle=True), "it must be a .npy file"),
    "header of code": (
        npy(GOOD).replace(b"'descr'", b"f(x)==1"),
        "it must be a .npy file",
    ),
    "huge": (npy(GOOD).replace(b"(4, 3), }    ", b"(4" + b"0" * 10 + b"3,)}"), "it must be"),
    "float64": (npy(GOOD.astype(np.float64)), "holds float64, not float32"),
    "tokens": (npy(np.zeros((4, 3), np.int64)), "holds int64, not float32"),
    "flat": (npy(GOOD.reshape(-1)), r"shape \(K, 3\), not \(12,\)"),
    "rgba": (npy(np.zeros((3, 4), np.float32)), r"shape \(K, 3\), not \(3, 4\)"),
    "no colours": (npy(GOOD[:0]), "1 to 65536 colours, not 0"),
    "levels": (npy(GOOD + 255), r"lie in \[-1, 1\]"),
    "nan": (npy(GOOD * np.nan), r"lie in \[-1, 1\]"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_load_refuses(name, tmp_path):
    data, message = BAD_FILES[name]
    (tmp_path / "p.npy").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        Palette.load(tmp_path / "p.npy")
    assert "p.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"cannot read palette .*no\.npy: No such file"):
        Palette.load(tmp_path / "no.npy")
    with pytest.raises(UserError, match="Is a directory"):
        Palette.load(tmp_path)


def test_load_takes_fortran_order_and_other_byte_order(tmp_path, small_palette):
    for array in (np.asfortranarray(small_palette.colors), small_palette.colors.astype(">f4")):
        (tmp_path / "p.npy").write_bytes(npy(array))
        assert Palette.load(tmp_path / "p.npy").digest == small_palette.digest


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 3)), "images are float64, not uint8"),
        (np.zeros((4, 4), np.uint8), r"images have shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"images have shape \(4, 4, 4\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"images have shape \(2, 4, 5, 3\)"),
    ],
)
def test_encode_refuses(small_palette, images, message):
    with pytest.raises(UserError, match=message):
        small_palette.encode(images)
    with pytest.raises(UserError, match=message):
        small_palette.encode_compact(images)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 15), np.int64), "15 tokens make no square image"),
        (np.full((1, 16), 11), "must lie in 0 to 10"),
        (np.full((1, 16), -1), "must lie in 0 to 10"),
        (np.zeros((1, 16)), "tokens are float64"),
        (np.int64(3), r"tokens are int64 of shape \(\)"),
    ],
)
def test_decode_refuses(small_palette, tokens, message):
    with pytest.raises(UserError, match=message):
        small_palette.decode(tokens)


def test_table_is_kept_and_read_back(table_cache, monkeypatch):
    palette = Palette([[-1, -1, -1], [1, 1, 1], [0, 0.5, 0.5]])
    images = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    tokens = palette.encode(images)
    kept = table_cache / "tables" / f"{palette.digest}.bin"
    assert kept.stat().st_size == 2**24 + 32

    def fail(colors):
        raise AssertionError("made again")

    monkeypatch.setattr(fit, "nearest_table", fail)
    np.testing.assert_array_equal(Palette(palette.colors).encode(images), tokens)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_table_is_made_again(table_cache, damage):
    palette = Palette([[-1, -1, -1], [1, 1, 1]])
    images = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    tokens = palette.encode(images)
    kept = table_cache / "tables" / f"{palette.digest}.bin"
    whole = kept.read_bytes()
    broken = {"flip": b"\1" + whole[1:], "cut": whole[:-1], "empty": b""}[damage]
    kept.write_bytes(broken)
    np.testing.assert_array_equal(Palette(palette.colors).encode(images), tokens)
    assert kept.read_bytes() == whole


def test_oldest_tables_are_dropped_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(fit, "KEPT_TABLES", 2)
    palettes = [Palette([[-1, -1, -1], [1, 1, red]]) for red in (0, 0.5, 1)]
    for age, palette in enumerate(palettes):
        palette.encode(np.zeros((1, 1, 3), np.uint8))
        os.utime(tmp_path / "tables" / f"{palette.digest}.bin", (age, age))
    kept = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert kept == {palette.digest for palette in palettes[1:]}


def test_encode_works_where_the_cache_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "file"))
    tokens = Palette([[-1, -1, -1], [1, 1, 1]]).encode(np.full((2, 2, 3), 200, np.uint8))
    assert tokens.tolist() == [1, 1, 1, 1]
    assert os.listdir(tmp_path) == ["file"]


def test_memory_of_encoding_stays_small(authors_palette):
    images = RNG.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    palette = Palette(authors_palette.colors)
    tracemalloc.start()
    try:
        tokens = palette.encode_compact(images)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes - tokens.nbytes < 44 * 2**20  # the table's 32 MiB among them


def test_error_is_that_of_decoded_images(small_palette):
    images = RNG.integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    tokens = small_palette.encode(images)
    gap = small_palette.decode(tokens).astype(float) - images
    share = np.bincount(tokens.reshape(-1)) / tokens.size
    error = small_palette.error(images)
    np.testing.assert_allclose(error.rms_rgb, np.sqrt((gap**2).mean(axis=(0, 1, 2))))
    np.testing.assert_allclose(error.rms, np.sqrt((gap**2).mean()))
    np.testing.assert_allclose(error.psnr_db, 10 * np.log10(255**2 / (gap**2).mean()))
    share = share[share > 0]
    np.testing.assert_allclose(error.entropy_nats, -(share * np.log(share)).sum())


def test_error_of_palette_images_is_nothing(small_palette):
    error = small_palette.error(small_palette.decode(np.zeros((3, 16), np.int64)))
    assert (error.rms, error.psnr_db, error.entropy_nats) == (0, np.inf, 0)


def test_error_needs_images(small_palette):
    with pytest.raises(UserError, match="no images to measure"):
        small_palette.error(np.empty((0, 4, 4, 3), np.uint8))
