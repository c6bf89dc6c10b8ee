"""The authors' token files: the images they stand for, and every way in which they can be wrong."""

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.sources.find import open_source
from igpt.images.splits import TEST, TRAIN, VALID
from igpt.tokens.palette import Palette
from tests.images.sources.reading import read

K, SIDE = 20, 4
SIZES = {"tr": 300, "va": 5, "te": 7}


@pytest.fixture
def folder(tmp_path):
    """Three splits of random tokens with one-hot labels, and a palette."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "kmeans_centers.npy", rng.uniform(-1, 1, (K, 3)).astype(np.float32))
    for split, n in SIZES.items():
        np.save(tmp_path / f"cifar10_{split}X.npy", rng.integers(0, K, (n, SIDE**2)))
        labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, n)]
        np.save(tmp_path / f"cifar10_{split}Y.npy", labels)
    return tmp_path


def held(folder, kind):
    parts = [np.load(folder / f"cifar10_{split}{kind}.npy") for split in SIZES]
    return np.concatenate(parts)


@pytest.mark.parametrize("named", [".", "cifar10_teX.npy", "cifar10_trY.npy"])
def test_images_become_the_same_tokens_again(folder, named):
    source = open_source(str(folder / named))
    contents = read(source, size=SIDE)
    palette = Palette.load(folder / "kmeans_centers.npy")
    assert np.array_equal(palette.encode(contents.images), held(folder, "X"))
    assert contents.labels == held(folder, "Y").argmax(1).tolist()
    assert contents.codes == [TRAIN] * 300 + [VALID] * 5 + [TEST] * 7
    assert source.own_splits == {TRAIN, VALID, TEST}
    assert source.n_images == 312


def test_keys_are_the_rows_of_each_file(folder):
    blocks = open_source(str(folder)).blocks
    from igpt.images.sources.source import WHOLE

    keys = [key for block in blocks(WHOLE) for key in block.keys]
    assert len(set(keys)) == 312
    assert keys[299:301] == ["cifar10_trX/299", "cifar10_vaX/0"]


def test_test_images_alone_and_plain_numbers_will_do(folder):
    for name in ("trX", "trY", "vaX", "vaY"):
        (folder / f"cifar10_{name}.npy").unlink()
    np.save(folder / "cifar10_teY.npy", np.arange(7, dtype=np.int64))
    source = open_source(str(folder / "cifar10_teX.npy"))
    assert source.own_splits == {TEST}
    assert read(source, size=SIDE).labels == list(range(7))
    (folder / "cifar10_teY.npy").unlink()
    assert open_source(str(folder)).classes is None


def test_a_missing_palette_and_several_sets_are_named(folder):
    np.save(folder / "imagenet_teX.npy", np.zeros((1, 16), int))
    with pytest.raises(UserError, match=r"several sets of tokens \(cifar10, imagenet\)"):
        open_source(str(folder))
    (folder / "kmeans_centers.npy").unlink()
    with pytest.raises(UserError, match=r"kmeans_centers.npy is missing: put the authors' palette"):
        open_source(str(folder / "cifar10_teX.npy"))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("cifar10_teX", np.zeros((7, 16)), r"teX.npy holds \(7, 16\) float64: tokens are"),
        ("cifar10_teX", np.zeros((7, 4, 4), int), r"teX.npy holds \(7, 4, 4\) int64"),
        ("cifar10_teX", np.zeros((7, 15), int), r"teX.npy: 15 tokens make no square image"),
        ("cifar10_vaX", np.full((5, 16), K), r"vaX.npy has tokens outside 0 to 19"),
        ("cifar10_vaX", np.full((5, 16), -1), r"vaX.npy has tokens outside 0 to 19"),
        ("cifar10_vaY", np.zeros((4, 10)), r"vaY.npy holds \(4, 10\) float64: it needs a label"),
        ("cifar10_vaY", np.ones((5, 10)), r"vaY.npy holds .* or one-hot rows"),
        ("kmeans_centers", np.zeros((K, 3), int), r"centers.npy holds \(20, 3\) int64"),
        ("kmeans_centers", np.full((K, 3), 2.0), r"centers.npy has colours outside \[-1, 1\]"),
        ("kmeans_centers", np.zeros((K, 3)), r"centers.npy has two colours that are the same"),
        ("cifar10_teX", None, r"cifar10_teX.npy is damaged"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, name, array, message):
    path = folder / f"{name}.npy"
    if array is None:
        path.write_bytes(path.read_bytes()[:-40])
    else:
        np.save(path, array)
    with pytest.raises(UserError, match=message) as error:
        open_source(str(folder))
    assert "\n" not in str(error.value)
