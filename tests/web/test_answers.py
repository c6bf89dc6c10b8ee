import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from igpt.errors import UserError
from igpt.web import answers
from igpt.web.answers import Canvas
from tests.networks import pixel_model


@pytest.fixture(scope="module")
def model():
    return pixel_model()


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.linear_gradient("L").resize((60, 40)).save(path)
    return str(path)


def pictures_in(page):
    """The pictures that a piece of a page carries, (N, S, S, 3)."""
    found = re.findall(r"base64,([^\"]+)", page)
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found])


def test_completions_grow_and_keep_what_was_kept(model, photograph):
    text = answers.opened(model, photograph, 3)
    pages = list(answers.completions(model, text, 2, 1.0, 0))
    pictures = pictures_in(pages[-1])
    assert pictures.shape == (3, 8, 8, 3)  # the original comes last
    given = model.decode(model.encode(photograph))[0]
    np.testing.assert_array_equal(pictures[2], given)
    for picture in pictures:
        np.testing.assert_array_equal(picture[:3], given[:3])
    expected = model.complete(photograph, keep_rows=3 / 8, n=2, seed=0)[0]
    np.testing.assert_array_equal(pictures[:2], expected)


def test_painted_pixels_are_drawn_anew(model, photograph):
    pixels = model.pixels(photograph)[0]
    keep = np.ones((8, 8), bool)
    keep[2:5, 3:6] = False
    *_, last = answers.completions(model, Canvas(pixels, keep).dump(), 1, 1.0, 3)
    changed = (pictures_in(last)[0] != model.decode(model.encode(pixels))[0]).any(-1)
    assert changed.any() and not changed[keep].any()


def test_changing_the_rows_hides_others(model, photograph):
    text = answers.opened(model, photograph, 3)
    assert Canvas.parse(answers.rows_hidden(model, text, 6), 8).keep.sum() == 48
    assert answers.rows_hidden(model, "", 6) == answers.opened(model, None, 3) == ""


def test_samples_are_those_of_the_seed(model):
    *_, last = answers.samples(model, 3, 1.0, 5)
    np.testing.assert_array_equal(pictures_in(last), model.sample(3, seed=5))


def test_the_surprise_map_stands_beside_the_picture(model, photograph):
    page = answers.surprise_map(model, photograph)
    assert pictures_in(page).shape == (2, 8, 8, 3)
    assert f"mean {model.nats(photograph)[0]:.2f} nats" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, 0), "0 completions are asked for: choose from 1 to 8"),
        ((float("nan"), 1.0, 0), "nan completions"),
        ((10**9, 1.0, 0), "1000000000 completions"),
        ((1, -1.0, 0), "temperature is -1.0: choose from 0 to 3"),
        ((1, float("nan"), 0), "temperature is nan"),
        ((1, None, 0), "temperature is None: choose from 0 to 3"),
        (("many", 1.0, 0), "many completions are asked for: choose from 1 to 8"),
        ((True, 1.0, 0), "True completions are asked for"),
        ((1, 1.0, float("nan")), "the seed is nan: choose a whole number of at most 15 digits"),
        ((1, 1.0, float("inf")), "the seed is inf"),
        ((1, 1.0, "x"), "the seed is x"),
    ],
)
def test_numbers_out_of_bounds_are_refused(model, photograph, arguments, message):
    text = answers.opened(model, photograph, 4)
    with pytest.raises(UserError, match=re.escape(message)):
        list(answers.completions(model, text, *arguments))


@pytest.mark.parametrize("kept", [True, False])
def test_a_mask_of_everything_or_nothing_is_refused(model, kept):
    text = Canvas(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), kept)).dump()
    with pytest.raises(UserError, match="the mask keeps"):
        list(answers.completions(model, text, 1, 1.0, 0))


def test_uploads_that_are_no_images_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("not an image")
    with pytest.raises(UserError, match="the picture cannot be read: not an image"):
        answers.read_upload(str(path))
    with pytest.raises(UserError, match="upload one or pick an example"):
        answers.read_upload(None)


def test_huge_uploads_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (6000, 6000)).save(path)
    with pytest.raises(UserError, match="36 million pixels: choose one of at most 34 million"):
        answers.read_upload(str(path))


def test_transparent_and_animated_uploads_are_read(model, tmp_path):
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (answers.read_upload(str(tmp_path / "clear.png")) == 255).all()
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert answers.opened(model, str(tmp_path / "a.gif"), 4)


def test_the_likeliest_classes_are_named_with_their_shares(model, photograph):
    weights = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    own = pixel_model()
    own.take_class_head(weights, [f"class <{i}>" for i in range(7)], protocol="none")
    named = answers.likeliest(own, own.pixels(photograph)[0])
    assert len(named) == 5 and named[0][0] == own.classify(photograph)[0]
    shares = [share for _, share in named]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    page = answers.class_of(own, photograph)
    assert "class &lt;" in page and f"{shares[0]:.1%}" in page
    assert pictures_in(page).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("rows", [0, 9, None, "all", float("nan")])
def test_rows_that_are_not_there_are_refused(model, photograph, rows):
    with pytest.raises(UserError, match="rows are asked for: choose from 1 to 8"):
        answers.opened(model, photograph, rows)


def test_captions_are_text_not_markup():
    page = answers.figures(np.zeros((1, 2, 2, 3), np.uint8), ["<script>"])
    assert "<script>" not in page and "&lt;script&gt;" in page
