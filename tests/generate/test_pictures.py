import numpy as np
import pytest
from PIL import Image

from igpt.errors import UserError
from igpt.generate.complete import rows_kept
from igpt.generate.pictures import (
    GREYS,
    TITLE_PX,
    framed,
    heat_map,
    hide,
    look,
    save_animation,
    save_tokens,
    sheet,
    some,
)
from igpt.generate.sample import Progress, sampling
from tests.networks import network

RNG = np.random.default_rng(0)


def picture(*shape) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_hidden_pixels_are_grey_and_the_others_as_they_were():
    images = picture(2, 5, 5)
    visible = RNG.random((2, 5, 5)) < 0.5
    found = hide(images, visible)
    np.testing.assert_array_equal(found[visible], images[visible])
    assert set(np.unique(found[~visible])) <= set(GREYS)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_look_shows_what_is_drawn(channels):
    drawn = np.zeros((1, 4 * channels), bool)
    drawn[0, : 2 * channels] = True
    tokens = np.full(drawn.shape, 7)
    found = look(
        Progress(tokens=tokens, drawn=drawn), lambda t: np.full((len(t), 2, 2, 3), 9, np.uint8)
    )
    assert (found[0, 0] == 9).all() and (found[0, 1] != 9).all()


def test_some_steps_are_evenly_spread_and_end_with_the_last():
    fractions = [p.fraction for p in some(sampling(network(seq_len=100), 3), count=10)]
    assert fractions[-1] == 1
    np.testing.assert_allclose(np.diff(fractions), 0.1, atol=0.011)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_an_animation_holds_every_picture_and_rests_on_the_last(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    pictures = [np.full((8, 6, 3), level, np.uint8) for level in (0, 90, 250)]
    save_animation(path, pictures)
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.size == (6, 8)
        shown = []
        for i in range(3):
            image.seek(i)
            image.load()
            shown.append((int(np.asarray(image.convert("RGB")).mean()), image.info["duration"]))
    assert [level for level, _ in shown] == pytest.approx([0, 90, 250], abs=1)
    assert shown[2][1] > 10 * shown[0][1]


def test_an_animation_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.gif or \.webp"):
        save_animation(tmp_path / "a.mp4", [picture(2, 2)])


def test_tokens_can_be_read_back_by_numpy(tmp_path):
    tokens = RNG.integers(0, 512, (2, 16))
    save_tokens(tmp_path / "t.npz", tokens=tokens)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npz")["tokens"], tokens)


def test_a_heat_map_grows_brighter_with_surprise():
    nats = np.linspace(0, 6, 16).reshape(4, 4)
    brightness = heat_map(nats, highest=6.0).astype(int).sum(-1).reshape(-1)
    assert (np.diff(brightness) > 0).all()
    assert heat_map(np.zeros((2, 3, 3))).shape == (2, 3, 3, 3)


def test_one_surprising_pixel_does_not_dim_a_heat_map():
    nats = np.ones((32, 32))
    nats[3, 3] = 1000.0
    assert heat_map(nats)[0, 0].sum() > 500


def test_a_sheet_shows_the_original_what_was_given_and_the_completions():
    inputs, completions = picture(2, 4, 4), picture(2, 3, 4, 4)
    keep = rows_kept(4, 0.5)
    originals = [framed(picture(30, 90), 4), framed(picture(10, 10), 4)]
    titled = sheet(originals, inputs, keep, completions)
    assert (titled[:TITLE_PX] < 128).any()
    found = titled[TITLE_PX:]
    cell, gap = 192, 4
    assert found.shape[0] == 2 * (cell + gap) + gap
    right = found[:, -(4 * (cell + gap) + gap) :]
    row = right[gap + cell + gap : -gap].reshape(cell, -1, 3)
    small = row[24::48, gap + 24 :: 1]
    np.testing.assert_array_equal(small[:2, 0], inputs[1, :2, 0])
    second = row[24::48, gap + cell + gap + 24 :][:, :cell:48]
    np.testing.assert_array_equal(second, completions[1, 0])


@pytest.mark.parametrize(("height", "width"), [(10, 10), (500, 20), (20, 500), (1, 4000)])
def test_an_original_keeps_its_shape_and_is_bounded(height, width):
    found = framed(picture(height, width), 64)
    assert found.shape[0] == 192 and found.shape[1] <= 384
    ink = (found != 255).any(-1)
    rows, columns = ink.any(1).sum(), ink.any(0).sum()
    assert rows / columns == pytest.approx(height / width, rel=0.3) or min(rows, columns) <= 2
