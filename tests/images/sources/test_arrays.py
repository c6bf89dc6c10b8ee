import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.levels import parsed_channels
from igpt.images.sources.find import open_source
from igpt.images.sources.named import SYSTEM_FASHION, find_idx, find_stl10
from igpt.images.splits import TEST, TRAIN, VALID
from tests.images.sources.reading import read


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("x_train", "y_train"), ("arr_0", "arr_1")]
)
def test_npz_under_known_names(tmp_path: Path, save: object, images: str, labels: str) -> None:
    held = pixels(600, 8, 8, 3)
    save(tmp_path / "a.npz", **{images: held, labels: np.arange(600) % 7})  # type: ignore[operator]
    source = open_source(str(tmp_path / "a.npz"))
    contents = read(source)
    assert source.n_images == 600
    assert np.array_equal(contents.images, held)
    assert contents.labels == [i % 7 for i in range(600)]


def test_npz_with_three_splits_of_grey_images(tmp_path: Path) -> None:
    arrays = {}
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = pixels(n, 8, 8)
        arrays[f"{split}_labels"] = np.zeros((n, 1), np.uint8)  # as MedMNIST has them
    np.savez(tmp_path / "a.npz", **arrays)
    source = open_source(str(tmp_path / "a.npz"))
    contents = read(source)
    assert source.own_splits == {TRAIN, VALID, TEST}
    assert contents.codes == [TRAIN] * 4 + [VALID] * 2 + [TEST] * 3
    assert np.array_equal(contents.images[:4, ..., 2], arrays["train_images"])


def test_npy_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(5, 8, 8, 1))
    source = open_source(str(tmp_path / "a.npy"))
    assert source.classes is None
    assert read(source).images.shape == (5, 8, 8, 3)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.full((3, 8, 8, 3), 300.0)}, r"\(3, 8, 8, 3\) float64 from .* are no images"),
        ({"images": np.full((3, 8, 8), np.nan)}, "float64 from nan to nan are no images"),
        ({"images": pixels(3, 8, 8, 5)}, r"\(3, 8, 8, 5\) uint8 are no images: give"),
        ({"images": pixels(64, 64, 3)}, r"\(64, 64, 3\) uint8 are no images: give"),
        ({"images": pixels(3, 50)}, r"\(3, 50\) uint8 are no images: give"),
        ({"images": np.array(["a.png", "b.png"])}, "list paths of files in a .csv"),
        ({"a": pixels(3, 8, 8, 3), "b": pixels(3, 8, 8, 3)}, "no array named images"),
        ({"images": pixels(3, 8, 8, 3), "labels": np.arange(2)}, r"a label an image \(3\)"),
        ({"images": pixels(3, 8, 8, 3), "labels": np.ones((3, 2))}, "or one-hot rows"),
        ({"images": np.asfortranarray(pixels(3, 8, 8, 3))}, "column order"),
        ({"images": np.array([{}, {}, {}])}, "object: images are"),
        (
            {"images": pixels(3, 8, 8), "labels": np.array([{}, {}, {}])},
            "object: these are no labels",
        ),
    ],
)
def test_other_arrays_are_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], reason: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=reason):
        open_source(str(tmp_path / "a.npz"))


def test_a_cut_npz_is_one_line(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=pixels(90, 8, 8, 3))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is damaged"):
        open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "shape",
    [(64, -32, 32, 3), (-64, 32, 32, 3), (0, 8, 8, 3), (10**9, 8, 8, 3), (3, 10**6, 10**6, 3)],
)
def test_a_header_that_claims_too_much_takes_no_memory(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
    with pytest.raises(
        UserError,
        match=r"images (claims|holds) \(.*\) uint8(, but holds 1000 bytes|: there are no images)",
    ):
        read(open_source(str(tmp_path / "a.npz")))


def idx(array: np.ndarray) -> bytes:
    magic = 2051 if array.ndim == 3 else 2049
    return np.array([magic, *array.shape], ">u4").tobytes() + array.tobytes()


def idx_files(folder: Path, *, compressed: bool) -> dict[str, np.ndarray]:
    arrays = {
        "train-images-idx3-ubyte": pixels(300, 8, 8),
        "train-labels-idx1-ubyte": pixels(300) % 10,
        "t10k-images-idx3-ubyte": pixels(20, 8, 8, seed=1),
        "t10k-labels-idx1-ubyte": pixels(20, seed=1) % 10,
    }
    for name, array in arrays.items():
        data = idx(array)
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(data) if compressed else data)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_read(tmp_path: Path, compressed: bool) -> None:
    arrays = idx_files(tmp_path, compressed=compressed)
    source = open_source(str(tmp_path))
    contents = read(source)
    assert source.own_splits == {TRAIN, TEST}
    assert np.array_equal(contents.images[:300, ..., 1], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(contents.images[300:, ..., 0], arrays["t10k-images-idx3-ubyte"])
    assert contents.labels[:300] == arrays["train-labels-idx1-ubyte"].tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_idx_files_are_one_line(tmp_path: Path, compressed: bool) -> None:
    idx_files(tmp_path, compressed=compressed)
    for stem in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        path = tmp_path / (f"{stem}.gz" if compressed else stem)
        whole = path.read_bytes()
        for keep in (0, 3, 9, len(whole) - 30):
            path.write_bytes(whole[:keep])
            with pytest.raises(UserError, match="is damaged"):
                read(open_source(str(tmp_path)))
        path.write_bytes(whole)


def test_idx_images_without_labels_are_images(tmp_path: Path) -> None:
    idx_files(tmp_path, compressed=False)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    source = find_idx(tmp_path)
    assert source is not None and "300 of 320 have none" in source.decided[-1]
    assert read(source).labels[:300] == [-1] * 300
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    source = find_idx(tmp_path)
    assert source is not None and source.classes is None


HELD = pixels(6, 8, 8, 3)
GREY = HELD[..., 0]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY[..., None], GREY),
        (HELD.transpose(0, 3, 1, 2), HELD),
        (GREY[:, None], GREY),
        (HELD.reshape(6, -1), HELD),
        (GREY.reshape(6, -1), GREY),
        (HELD.astype(np.int64), HELD),
        (HELD.astype(">f4"), HELD),
        (HELD / 255, HELD),
        ((HELD / 127.5 - 1).astype(np.float32), HELD),
        (GREY.astype(">u2") * 257, GREY),
        (GREY > 127, np.where(GREY > 127, 255, 0)),
        (np.concatenate([HELD, np.full((6, 8, 8, 1), 255, np.uint8)], 3), HELD),
    ],
)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_every_form_of_array_gives_the_same_images(
    tmp_path: Path, array: np.ndarray, expected: np.ndarray, name: str
) -> None:
    if name == "a.npz":
        np.savez(tmp_path / name, images=array)
    else:
        np.save(tmp_path / name, array)
    images = read(open_source(str(tmp_path / name))).images
    for channel in range(3):
        assert np.array_equal(
            images[..., channel], expected if expected.ndim == 3 else expected[..., channel]
        )


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (np.array([7, 3, -1]), ("3", "7"), [1, 0, -1]),
        (np.array([1.0, np.nan, 0.0]), ("0", "1"), [1, -1, 0]),
        (np.array(["dog", "cat", ""]), ("cat", "dog"), [1, 0, -1]),
        (np.eye(4)[[2, 0, 3]], ("0", "2", "3"), [1, 0, 2]),
        (np.array([[5], [5], [6]], ">i8"), ("5", "6"), [0, 0, 1]),
        (np.array([-1, -1, -1]), None, [-1, -1, -1]),
    ],
)
def test_labels_in_arrays_follow_the_one_rule(
    tmp_path: Path, labels: np.ndarray, classes: tuple[str, ...] | None, numbers: list[int]
) -> None:
    np.savez(tmp_path / "a.npz", images=HELD[:3], labels=labels)
    source = open_source(str(tmp_path / "a.npz"))
    assert source.classes == classes
    assert read(source).labels == numbers
    assert open_source(str(tmp_path / "a.npz"), unlabelled=True).classes is None


@pytest.mark.parametrize(
    "names",
    [
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train-data", "train-labels", "val-data", "val-labels"),
        ("imgs_train", "target_train", "imgs_dev", "target_dev"),
    ],
)
def test_arrays_are_known_by_the_words_of_their_names(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    held = (HELD, np.arange(6), HELD[:2], np.arange(2))
    np.savez(tmp_path / "a.npz", **dict(zip(names, held, strict=True)))
    contents = read(open_source(str(tmp_path / "a.npz")))
    assert contents.codes == [TRAIN] * 6 + [TEST] * 2
    assert contents.labels == [0, 1, 2, 3, 4, 5, 0, 1]


def test_the_only_array_of_images_is_taken_and_the_rest_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", faces=HELD, ages=np.arange(6), note=np.array("x"))
    source = open_source(str(tmp_path / "a.npz"))
    assert np.array_equal(read(source).images, HELD)
    assert source.decided == ("arrays that are not read: ages, note",)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.csv", "a.parquet", "a.ARROW", "a.tar"])
def test_a_pointer_in_the_place_of_a_set_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"Git LFS pointer.*git lfs pull"):
        open_source(str(tmp_path / name))


@pytest.mark.data
@pytest.mark.skipif(not SYSTEM_FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_systems_fashion_mnist_has_its_class_names() -> None:
    source = open_source("fashion-mnist")
    assert source.classes is not None and source.classes[9] == "Ankle boot"


def stl10_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    # The official order: image, channel, column, row; labels from 1.
    (folder / "train_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    (folder / "train_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())


def test_stl10_is_stored_channel_after_channel_column_after_column(tmp_path: Path) -> None:
    images, labels = pixels(40, 96, 96, 3), np.arange(40) % 10
    stl10_files(tmp_path, images, labels)
    source = open_source(str(tmp_path))
    contents = read(source, size=96)
    assert source.classes is not None and source.classes[0] == "airplane"
    assert np.array_equal(contents.images, images)
    assert contents.labels == labels.tolist()


def test_a_cut_stl10_file_is_one_line(tmp_path: Path) -> None:
    stl10_files(tmp_path, pixels(3, 96, 96, 3), np.arange(3))
    data = (tmp_path / "train_X.bin").read_bytes()
    (tmp_path / "train_X.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train_X.bin does not hold 3 images"):
        find_stl10(tmp_path)


@pytest.mark.parametrize("first", [False, True])
def test_channels_that_are_chosen_become_the_colours(tmp_path: Path, first: bool) -> None:
    bands = pixels(4, 8, 8, 6)
    np.save(tmp_path / "a.npy", np.moveaxis(bands, 3, 1) if first else bands)
    chosen = open_source(str(tmp_path / "a.npy"), channels=(4, 0, 2))
    assert np.array_equal(read(chosen).images, bands[..., [4, 0, 2]])
    assert "channels: 4, 0, 2 as red, green and blue" in chosen.decided[-1]
    grey = read(open_source(str(tmp_path / "a.npy"), channels=(5,))).images
    assert np.array_equal(grey, np.repeat(bands[..., 5:], 3, -1))
    with pytest.raises(UserError, match=r"uint8 of which --channels takes 6 are no images"):
        open_source(str(tmp_path / "a.npy"), channels=(6,))
    with pytest.raises(UserError, match=r"\(4, .*\) uint8 are no images.*--channels"):
        open_source(str(tmp_path / "a.npy"))


def test_channels_are_of_arrays_and_written_as_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--channels 0 is of arrays"):
        open_source(str(tmp_path), channels=(0,))
    for text in ("", "1,2", "a", "1,2,-3", "1,2,3,4"):
        with pytest.raises(UserError, match=f"--channels {text}: write the numbers"):
            parsed_channels(text)
    assert parsed_channels("3, 2,1") == (3, 2, 1)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (), (4, 8, 0, 3)])
def test_an_array_of_nothing_is_named_as_such(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"a holds \(.*\) uint8: there are no images"):
        open_source(str(tmp_path / "a.npy"))
