import numpy as np
import pytest

from igpt.errors import UserError
from igpt.tokens import fit
from igpt.tokens.palette import Palette

RNG = np.random.default_rng(0)


def clustered_images(n, side, n_clusters=8):
    """Images whose colours lie around a few centres; the centres too."""
    centers = np.stack(np.meshgrid([40, 215], [40, 215], [40, 215]), axis=-1).reshape(-1, 3)
    which = RNG.integers(0, n_clusters, (n, side, side))
    noise = RNG.normal(0, 6, (n, side, side, 3))
    return np.clip(np.rint(centers[which] + noise), 0, 255).astype(np.uint8), centers[:n_clusters]


def test_fit_finds_the_clusters():
    images, centers = clustered_images(20, 16)
    palette = Palette.fit(images, n_colors=8)
    levels = 127.5 * (palette.colors + 1)
    distance = np.abs(levels[:, None] - centers[None]).max(axis=2)
    assert (distance.min(axis=1) < 1.5).all()
    assert sorted(distance.argmin(axis=1)) == list(range(8))


def test_centres_are_means_of_their_pixels():
    images, _ = clustered_images(20, 16)
    palette = Palette.fit(images, n_colors=8)
    tokens = palette.encode(images).reshape(-1)
    for k in range(8):
        mean = images.reshape(-1, 3)[tokens == k].mean(axis=0) / 127.5 - 1
        np.testing.assert_allclose(palette.colors[k], mean, atol=1e-3)


def test_fit_is_the_same_for_the_same_seed_and_for_any_order():
    images, _ = clustered_images(8, 16)
    first = Palette.fit(images, n_colors=20, seed=3)
    assert Palette.fit(images, n_colors=20, seed=3).digest == first.digest
    assert Palette.fit(images[::-1, ::-1], n_colors=20, seed=3).digest == first.digest
    assert Palette.fit(images, n_colors=20, seed=4).digest != first.digest


def test_many_distinct_colours_are_merged_into_cells(monkeypatch):
    images = RNG.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    exact = Palette.fit(images, n_colors=64)
    monkeypatch.setattr(fit, "_MOST_POINTS", 1000)
    merged = Palette.fit(images, n_colors=64)
    assert merged.digest != exact.digest
    assert merged.error(images).rms < 1.03 * exact.error(images).rms


def test_cells_are_not_merged_below_the_number_of_colours(monkeypatch):
    monkeypatch.setattr(fit, "_MOST_POINTS", 100)
    images = RNG.integers(0, 10, (4, 16, 16, 3), dtype=np.uint8)  # 27 cells
    palette = Palette.fit(images, n_colors=200)
    assert palette.n_colors == 200
    assert palette.error(images).rms < 1


def test_fewer_colours_than_asked_for_give_those_exactly():
    images = np.repeat(np.arange(0, 256, 15, np.uint8), 3).reshape(2, 3, 3, 3)
    with pytest.warns(
        UserWarning, match="hold 18 distinct colours: the palette has these, not 512"
    ):
        palette = Palette.fit(images)
    assert palette.n_colors == 18
    np.testing.assert_array_equal(palette.decode(palette.encode(images)), images)


def test_as_many_colours_as_asked_for_are_taken_as_they_are():
    images = np.repeat(np.arange(0, 256, 15, np.uint8), 3).reshape(2, 3, 3, 3)
    assert Palette.fit(images, n_colors=18).error(images).rms == 0


@pytest.mark.parametrize("n_colors", [1, 0, -3, 65537])
def test_number_of_colours_is_checked(n_colors):
    with pytest.raises(UserError, match="choose from 2 to 65536"):
        Palette.fit(np.zeros((1, 2, 2, 3), np.uint8), n_colors=n_colors)


def test_fit_needs_images_of_the_right_kind():
    with pytest.raises(UserError, match="no images to fit"):
        Palette.fit(np.zeros((0, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="float64, not uint8"):
        Palette.fit(np.zeros((1, 2, 2, 3)))


def test_counts_are_exact_over_chunks():
    images = RNG.integers(0, 4, (1500, 8, 8, 3), dtype=np.uint8)
    counts = fit.count_colors(images)
    index = images.reshape(-1, 3).astype(np.int64) @ [1, 256, 65536]
    np.testing.assert_array_equal(counts, np.bincount(index, minlength=2**24))


@pytest.mark.parametrize(("n_colors", "found", "worst"), [(16, 16, 15), (512, 256, 0)])
@pytest.mark.filterwarnings("ignore:the images hold 256 distinct")
def test_a_palette_of_grey_images_is_a_tokeniser_of_grey_levels(n_colors, found, worst):
    levels = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    images = np.repeat(levels, 3, axis=-1)
    palette = Palette.fit(images, n_colors=n_colors)
    assert palette.n_colors == found and not np.ptp(palette.colors, axis=1).any()
    tokens = palette.encode(images)
    assert tokens.shape == (100, 256)
    assert np.abs(palette.decode(tokens).astype(int) - images).max() <= worst
