import numpy as np
import pytest
from PIL import Image

from igpt.bench import data, measure
from igpt.errors import UserError
from igpt.images.crop import center_crop
from igpt.tokens.palette import Palette
from tests.images.pictures import encoded, noise, tar_bytes
from tests.oracles.area import area_average


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch):
    """Collecting it between works takes longer than these works do."""
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "N_COLORS", 16)
    monkeypatch.setattr(data, "PEER_CALL", 4)
    return data.packed_images(tmp_path / "packed", 60)


def test_the_processor_is_the_peer(packed):
    (row,) = data.bench_tokens(packed, ["transformers"], n=40, at_most_s=0)
    assert row.peer == "transformers"
    assert row.peer_s is not None and row.ratio == pytest.approx(row.peer_s / row.ours_s)
    assert row.share_of_limit is not None and row.share_of_limit > 0
    assert "images/s on one core" in row.note


def test_a_peer_with_other_tokens_is_refused(packed, monkeypatch):
    monkeypatch.setattr(data, "transformers_processor", lambda palette: lambda few: np.zeros(1))
    with pytest.raises(UserError, match="tokens differ from ours"):
        data.bench_tokens(packed, ["transformers"], n=8)


def test_every_kind_of_loading_has_a_row(packed, monkeypatch):
    monkeypatch.setattr(data, "BATCH_SIZE", 16)
    rows = data.bench_loader(packed, at_most_s=0)
    assert [row.row.split(", ")[1] for row in rows] == [
        "on the fly", "on the fly", "on the fly", "pre-tokenised"
    ]  # fmt: skip
    assert all(row.peer == "" and row.peer_s is None for row in rows)


def test_waiting_is_a_share_of_the_steps(packed, monkeypatch):
    monkeypatch.setattr(data, "training_step", lambda palette: lambda tokens: None)
    (row,) = data.bench_waiting(packed, n_steps=4)
    assert 0 < row.ours_s < 10
    assert "of 4 steps" in row.note


def test_preparing_has_a_row_for_each_way_and_tells_the_errors(tmp_path):
    tar = data.made_photos(tmp_path / "a.tar", 6)
    full, reduced = data.bench_prepare(tar, [data.PILLOW], tmp_path, at_most_s=0)
    assert (full.peer, reduced.peer) == (data.PILLOW, data.PILLOW)
    errors = [float(row.note.split("mean error ")[1].split()[0]) for row in (full, reduced)]
    assert errors[0] <= 0.26  # rounding alone
    assert errors[0] <= errors[1] <= 1
    assert measure.table([full, reduced]).count("\n") == 3


def test_a_tar_without_jpegs_is_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.png": encoded(noise(9, 9))}))
    with pytest.raises(UserError, match=r"a.tar holds no JPEGs: name a tar of them"):
        data.jpegs_of(tmp_path / "a.tar")


def test_the_reference_is_the_exact_mean():
    image = noise(40, 61)
    crop = center_crop(40, 61)
    box = (crop.top, crop.left, crop.top + 40, crop.left + 40)
    exact = area_average(image, box, data.IMAGE_SIZE)
    np.testing.assert_allclose(data.reference(encoded(image)), exact, atol=1e-9)


def test_the_loop_is_a_centre_square_on_images_like_the_result():
    image = noise(32, 40)
    np.testing.assert_array_equal(data.plain(encoded(Image.fromarray(image))), image[:, 4:36])


def test_colours_of_the_palette_are_the_images(packed):
    palette = data.some_palette(packed)
    assert isinstance(palette, Palette)
    assert palette.n_colors == data.N_COLORS
    assert palette.error(packed.images("train")).rms < 60
