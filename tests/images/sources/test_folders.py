import os
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.folders import open_folder, walk_images
from igpt.images.splits import TEST, TRAIN, VALID
from tests.images.pictures import class_files, encoded, noise, write_tree
from tests.images.sources.reading import read


def test_folders_at_the_top_are_classes_in_sorted_order(tmp_path: Path) -> None:
    source = open_folder(write_tree(tmp_path, class_files(2, classes="cab")))
    contents = read(source)
    assert source.classes == ("a", "b", "c")
    assert source.n_images == 6
    assert contents.labels == [0, 0, 1, 1, 2, 2]
    assert contents.images[:, 0, 0, 0].tolist() == [40, 41, 80, 81, 0, 1]


def test_packaging_folders_mean_nothing(tmp_path: Path) -> None:
    files = {f"photos/set/{name}": data for name, data in class_files().items()}
    assert open_folder(write_tree(tmp_path, files)).classes == ("a", "b")


def test_nested_folders_may_be_unlabelled(tmp_path: Path) -> None:
    files = {f"2019/may/{i}.png": encoded(noise(9, 9)) for i in range(3)}
    files |= {"2020/1.png": encoded(noise(9, 9))}
    source = open_folder(write_tree(tmp_path, files), unlabelled=True)
    assert source.classes is None
    assert read(source).labels == [-1] * 4


def test_images_in_one_folder_have_no_class(tmp_path: Path) -> None:
    source = open_folder(write_tree(tmp_path, {"a/1.png": encoded(noise(9, 9))}))
    assert source.classes is None


def test_an_image_beside_the_classes_has_no_label_and_that_is_said(tmp_path: Path) -> None:
    files = class_files() | {"stray.png": encoded(noise(9, 9))}
    source = open_folder(write_tree(tmp_path, files))
    contents = read(source)
    assert sorted(contents.labels) == [-1, 0, 0, 0, 1, 1, 1]
    assert contents.rejects == {}
    assert source.decided == ("labels: 2 classes from the names of folders; 1 of 7 have none",)


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    names = ["1.CR2", "2.cr2", "a.txt", "b.json", "c.json", "Thumbs.db", "._1.png", "x/.DS_Store"]
    source = open_folder(write_tree(tmp_path, class_files() | dict.fromkeys(names, b"x")))
    assert source.decided[1:] == (
        "2 .cr2 files are not read: convert them to JPEG or PNG",
        "files that are no images: 2 .json, 1 .txt",
    )


def test_folders_that_a_system_keeps_for_itself_do_not_hide_the_classes(tmp_path: Path) -> None:
    files = {f"photos/{name}": data for name, data in class_files().items()}
    files |= {f"__MACOSX/photos/a/._{i}.png": b"x" for i in range(3)} | {"docs/read.txt": b"x"}
    assert open_folder(write_tree(tmp_path, files)).classes == ("a", "b")


@pytest.mark.parametrize(
    "own",
    [
        ("config.json", "metrics.jsonl", "pictures/training/1.png"),
        ("search.json", "lr-0.1/config.json", "lr-0.1/x.png"),
        ("config.json", "model.safetensors", "preprocessor_config.json", "x.png"),
        ("manifest.json", "splits.npy", "labels.npy", "x.png"),
        ("unfinished.json", "rejects.csv", "x.png"),
    ],
)
def test_what_igpt_wrote_below_the_images_is_no_data(tmp_path: Path, own: tuple[str, ...]) -> None:
    files = class_files() | {f"a/own/{name}": b"{}" for name in own}
    source = open_folder(write_tree(tmp_path, files))
    assert source.n_images == 6
    assert source.decided[-1] == "left out, as igpt wrote it: a/own"


def test_the_cache_below_the_images_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "a" / "cache"))
    files = class_files() | {"a/cache/x.png": b"x"}
    assert open_folder(write_tree(tmp_path, files)).n_images == 6


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (("train", "val"), {TRAIN, TEST}),  # as the paper uses ImageNet
        (("train", "test"), {TRAIN, TEST}),
        (("train", "valid", "test"), {TRAIN, VALID, TEST}),
        (("Train", "Validation", "Test"), {TRAIN, VALID, TEST}),
    ],
)
def test_split_folders_are_splits(tmp_path: Path, names: tuple[str, ...], codes: set[int]) -> None:
    files = {f"{s}/{name}": data for s in names for name, data in class_files(2).items()}
    source = open_folder(write_tree(tmp_path, files))
    assert source.own_splits == codes
    assert source.classes == ("a", "b")
    assert set(read(source).codes) == codes


def test_splits_within_classes_are_splits(tmp_path: Path) -> None:
    files = {f"{c}/{s}/{i}.png": encoded(noise(9, 9, i)) for c in "ab" for s in ("Train", "test")
             for i in range(2)}  # fmt: skip
    source = open_folder(write_tree(tmp_path, files))
    contents = read(source)
    assert source.classes == ("a", "b")
    assert contents.codes == [TRAIN, TRAIN, TEST, TEST] * 2
    assert contents.labels == [0] * 4 + [1] * 4
    write_tree(tmp_path, {"a/other/1.png": encoded(noise(9, 9))})  # so they may be anything
    assert set(read(open_folder(tmp_path)).codes) == {TRAIN}


def test_a_class_named_test_alone_is_a_class(tmp_path: Path) -> None:
    files = {f"{name}/1.png": encoded(noise(9, 9)) for name in ("test", "other")}
    assert open_folder(write_tree(tmp_path, files)).classes == ("other", "test")


def test_imagenets_folders_keep_four_percent(tmp_path: Path) -> None:
    files = {f"n{i:08d}/1.jpg": b"x" for i in range(1000)}
    assert open_folder(write_tree(tmp_path, files)).valid_fraction == 0.04


def test_a_folder_without_images_says_which_endings_count(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a.txt": b"", "b/": b""})
    with pytest.raises(
        UserError, match=r"holds no images \(.*\.jpg.*\); .* 1 \.txt: check the path"
    ):
        open_folder(tmp_path)


def test_links_to_a_folder_above_do_not_loop(tmp_path: Path) -> None:
    write_tree(tmp_path, class_files(1))
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    assert len(list(walk_images(tmp_path))) == 4
    assert read(open_folder(tmp_path)).rejects == {
        "a/gone.png": "a link to nothing",
        "a/loop.png": "a link to itself",
    }


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    files = class_files(1) | {".cache/1.png": b"x", "a/._1.png": b"x"}
    assert open_folder(write_tree(tmp_path, files)).n_images == 2


def test_a_named_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    write_tree(tmp_path, class_files(1))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert read(open_folder(tmp_path)).rejects == {"a/pipe.png": "a pipe or a device, not a file"}
