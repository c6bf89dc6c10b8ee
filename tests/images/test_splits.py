import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.errors import UserError
from igpt.images.splits import (
    TEST,
    TRAIN,
    UNUSED,
    VALID,
    codes_of_cells,
    codes_of_images,
    draw_splits,
    file_codes,
    image_code,
    said_alone,
    split_codes,
    stratified,
)

ALL = frozenset({TRAIN, VALID, TEST})


def drawn(labels: np.ndarray, **options: object) -> np.ndarray:
    settings: dict[str, object] = {
        "seed": 0,
        "valid_fraction": 0.1,
        "own": frozenset({TRAIN}),
        "views": 0,
        **options,
    }
    codes = settings.pop("codes", np.zeros(len(labels), np.uint8))
    return draw_splits(labels, codes, **settings)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=300),
    st.floats(0.01, 0.9),
    st.integers(0, 1000),
)
def test_stratified_takes_its_share_of_every_class(
    classes: list[int], fraction: float, seed: int
) -> None:
    labels = np.array(classes)
    chosen = stratified(labels, fraction, np.random.default_rng(seed))
    assert chosen.sum() == round(fraction * len(labels))
    for label in set(classes):
        assert abs(chosen[labels == label].sum() - fraction * (labels == label).sum()) < 1 + 1e-9


def test_cifar_sizes_are_the_papers() -> None:
    labels = np.repeat(np.arange(10), 5000)
    codes = drawn(labels, own=frozenset({TRAIN, TEST}))
    assert np.bincount(codes).tolist() == [45_000, 5_000]
    assert np.bincount(labels[codes == VALID]).tolist() == [500] * 10


def test_imagenet_sizes_are_the_papers() -> None:
    codes = drawn(np.full(1_281_167, -1), valid_fraction=0.04)
    assert np.bincount(codes).tolist() == [1_229_920, 51_247]


def test_the_seed_moves_validation_but_never_test() -> None:
    labels = np.repeat(np.arange(5), 100)
    a, b = drawn(labels, seed=0), drawn(labels, seed=1)
    assert not np.array_equal(a == VALID, b == VALID)
    assert np.array_equal(a == TEST, b == TEST)
    assert np.bincount(a).tolist() == np.bincount(b).tolist() == [405, 45, 50]


def test_unlabelled_images_give_no_test_split() -> None:
    assert set(drawn(np.full(100, -1))) == {TRAIN, VALID}
    assert set(drawn(np.zeros(100, np.int64))) == {TRAIN, VALID, TEST}  # one class is labelled


def test_a_sources_own_splits_stand() -> None:
    codes = np.array([TRAIN] * 8 + [VALID] * 3 + [TEST] * 4, np.uint8)
    assert np.array_equal(drawn(np.zeros(15, np.int64), codes=codes, own=ALL), codes)


def test_views_train_on_crops_and_validate_on_centres() -> None:
    labels = np.zeros(30 * 3 + 4, np.int64)  # 30 images of a centre and 2 crops, 4 of test
    base = np.array([TRAIN] * 90 + [TEST] * 4, np.uint8)
    codes = drawn(labels, codes=base, own=frozenset({TRAIN, TEST}), views=2)
    images = codes[:90].reshape(30, 3)
    valid = images[:, 0] == VALID
    assert valid.sum() == 3
    assert (images[valid] == [VALID, UNUSED, UNUSED]).all()
    assert (images[~valid] == [UNUSED, TRAIN, TRAIN]).all()
    assert (codes[90:] == TEST).all()


@pytest.mark.parametrize(
    "names",
    [
        *(("toy-train.arrow", "toy-test.arrow"), ("train-x.tar", "test-x.tar")),
        *(("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),),
        *(("default/train/0000.parquet", "default/test/0000.parquet"),),
        *(("TRAIN_01.csv", "eval_01.csv"), ("training.npz", "validation.npz"), ("train0", "dev0")),
    ],
)
def test_file_names_say_their_split_in_any_usual_place(names: tuple[str, str]) -> None:
    assert file_codes(names) == {names[0]: TRAIN, names[1]: TEST}


def test_with_a_test_split_validation_is_validation() -> None:
    codes = file_codes(["a-train", "a-dev", "a-test", "a-extra"])
    assert list(codes.values()) == [TRAIN, VALID, TEST, TRAIN]


@pytest.mark.parametrize(
    "names",
    [["train-0", "train-1"], ["test", "b"], ["trainer-1", "tests-2"], ["a-train-test", "b"]],
)
def test_names_that_divide_nothing_are_not_believed(names: list[str]) -> None:
    assert file_codes(names) == {}


def test_cells_of_a_column_are_all_splits_or_none_and_empty_ones_train() -> None:
    assert codes_of_cells(["Train", "test", ""], "set") == {"Train": TRAIN, "test": TEST}
    assert codes_of_cells(["cat", "dog", ""], "set") == {}
    assert codes_of_cells(["train", ""], "set") == {}
    with pytest.raises(UserError, match="set: unknown split 'odd': write train"):
        codes_of_cells(["train", "test", "odd"], "set")


def test_names_that_are_not_believed_are_told_where_they_name_more_than_training() -> None:
    for names in (["train", "test"], ["train"], ["train", "dogs"], ["dogs", "cats"]):
        assert said_alone(names) == ()
    (line,) = said_alone(["test", "val_2", "cats"])
    assert line.startswith("splits: drawn, as test, val in the names divides nothing: ")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("train_7.png", TRAIN), ("dog-test.jpg", TEST), ("0001.val.png", VALID)),
        *(("my_train_dog.png", None), ("train_test.png", None), ("dog.test", None)),
    ],
)
def test_an_images_name_says_a_split_at_its_ends(name: str, code: int | None) -> None:
    assert image_code(name) == code


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        ({TRAIN: 5, TEST: 1, None: 0}, {TRAIN: TRAIN, TEST: TEST}),
        ({TRAIN: 5, VALID: 1}, {TRAIN: TRAIN, VALID: TEST}),
        ({TRAIN: 5, TEST: 1, None: 1}, {}),
        ({TRAIN: 5, TEST: 0}, {}),
        ({VALID: 5, TEST: 1}, {}),
    ],
)
def test_images_names_are_believed_where_all_say_a_split(
    said: dict[int | None, int], codes: dict[int, int]
) -> None:
    assert codes_of_images(said) == codes


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (("train2017", "val2017", "test2017"), [TRAIN, VALID, TEST]),
        (("Training_Set", "Test_Set"), [TRAIN, TEST]),
        (("toy-train", "toy-test"), [TRAIN, TEST]),
        (("trainA", "trainB", "testA"), [TRAIN, TRAIN, TEST]),
        (("PublicTest", "Training"), [TEST, TRAIN]),
        (("bullet_train", "crash_test", "dog"), []),
        (("train", "test", "train_masks"), [TRAIN, TEST]),
    ],
)
def test_folders_and_cells_say_a_split_at_their_ends_where_all_do(
    names: tuple[str, ...], codes: list[int]
) -> None:
    assert list(split_codes(names).values()) == codes
