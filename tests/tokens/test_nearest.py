import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from igpt.tokens.fit import nearest_table, rgb_index
from tests.oracles.nearest_color import nearest_color


def palettes():
    rng = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * 3), axis=-1).reshape(-1, 3)
    spread = rng.uniform(-1, 1, (512, 3))
    return {
        "one": [[0.1, 0.2, 0.3]],
        "two at opposite corners": [[-1, -1, -1], [1, 1, 1]],
        "greys": np.repeat(np.linspace(-1, 1, 17), 3).reshape(-1, 3),
        "lattice with many ties": rng.permutation(lattice),
        "each colour twice": np.concatenate([spread[:100], spread[:100]]),
        "levels themselves": rng.integers(0, 256, (256, 3)) / 127.5 - 1,
        "one more than a byte holds": rng.uniform(-1, 1, (257, 3)),
        "close together": np.clip(rng.normal(0, 0.02, (512, 3)), -1, 1),
        "many": rng.uniform(-1, 1, (3000, 3)),
    }


def some_pixels(colors):
    """Random ones, the corners, and those at and around each colour."""
    rng = np.random.default_rng(1)
    corners = np.stack(np.meshgrid([0, 255], [0, 255], [0, 255]), axis=-1).reshape(-1, 3)
    near = np.rint(127.5 * (colors[:500] + 1))[:, None] + rng.integers(-4, 5, (1, 4, 3))
    between = np.rint(127.5 * ((colors[:500] + colors[-500:][::-1]) / 2 + 1))
    parts = [rng.integers(0, 256, (4000, 3)), corners, near.reshape(-1, 3), between]
    return np.clip(np.concatenate(parts), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", palettes())
def test_table_equals_brute_force(name):
    colors = np.array(palettes()[name], np.float32)
    pixels = some_pixels(colors)
    table = nearest_table(colors)
    assert table.dtype == (np.uint8 if len(colors) <= 256 else np.uint16)
    index = pixels.astype(np.int64) @ [1, 256, 65536]
    np.testing.assert_array_equal(table[index], nearest_color(pixels, colors))


def test_equal_colours_go_to_the_lower_index():
    table = nearest_table(np.zeros((5, 3), np.float32))
    assert not table.any()


@pytest.mark.slow
def test_table_equals_brute_force_on_a_million_colours(authors_palette):
    table = nearest_table(authors_palette.colors)
    index = np.arange(7, 2**24, 17)
    pixels = np.stack([index & 255, index >> 8 & 255, index >> 16], axis=1).astype(np.uint8)
    np.testing.assert_array_equal(table[index], nearest_color(pixels, authors_palette.colors))


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 40), st.just(3))))
def test_rgb_index_is_red_plus_256_green_plus_65536_blue(pixels):
    index = np.empty(len(pixels), np.intp)
    rgb_index(pixels.reshape(-1), index)
    np.testing.assert_array_equal(index, pixels.astype(np.intp) @ [1, 256, 65536])
