import json
from pathlib import Path

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.images.sources.columns import open_columns
from igpt.images.sources.find import open_source
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import encoded, noise
from tests.images.sources.reading import read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [encoded(noise(9, 9, i)) for i in range(5)]


def table(labels: list[int | None] | None = None, *, names: list[str] | None = None) -> "pa.Table":
    """As `datasets` writes it: a struct of bytes and path, and what the label means."""
    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)]
    columns: dict[str, object] = {"image": pa.array(cells)}
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"_type": "ClassLabel", "names": names} if names else {"dtype": "int64"}
    note = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({b"huggingface": note.encode()})


def test_parquet_with_class_names(tmp_path: Path) -> None:
    pq.write_table(table([0, 1, 2, 1, 0], names=["a", "b", "c"]), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.classes == ("a", "b", "c")
    assert source.n_images == 5
    assert read(source).labels == [0, 1, 2, 1, 0]


def test_splits_by_file_name_in_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(table([0, 1, 2, 1, 0]), tmp_path / f"{split}-00000-of-00001.parquet")
    source = open_source(str(tmp_path))
    assert source.own_splits == {TRAIN, TEST}
    assert source.classes == ("0", "1", "2")
    assert source.decided == (
        "splits: train 5, test 5, by the names of files",
        "labels: 3 classes from the column label",
    )
    assert read(source).codes == [TRAIN] * 5 + [TEST] * 5


@pytest.mark.parametrize("opened", ["new_stream", "new_file"])
def test_arrow_files_of_both_kinds(tmp_path: Path, opened: str) -> None:
    held = table([0, 1, 0, 1, 0], names=["a", "b"])
    with getattr(pa.ipc, opened)(tmp_path / "x.arrow", held.schema) as writer:
        writer.write_table(held, max_chunksize=2)
    source = open_source(str(tmp_path / "x.arrow"))
    assert source.n_images == 5
    assert read(source).labels == [0, 1, 0, 1, 0]


def test_images_without_labels(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.classes is None
    assert read(source).labels == [-1] * 5


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    held = table([0, 7, None, 1, -1], names=["a", "b"])
    cells = held.column("image").to_pylist()
    cells[3]["bytes"] = None
    held = held.set_column(0, "image", pa.array(cells))
    pq.write_table(held, tmp_path / "x.parquet")
    assert read(open_source(str(tmp_path / "x.parquet"))).rejects == {
        "x.parquet/1": "label is not one of the classes",
        "x.parquet/3": "there is no such file",
    }


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        (["dog", "cat", None, "cat", "dog"], ("cat", "dog"), [1, 0, -1, 0, 1]),
        ([5410041, 4006381, -1, 4006381, -1], ("4006381", "5410041"), [1, 0, -1, 0, -1]),
        (pa.array(["b", "a", "b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0, 1]),
        ([1.0, 2.0, None, 1.0, float("nan")], ("1", "2"), [0, 1, -1, 0, -1]),
    ],
    ids=["words", "numbers", "category", "floats"],
)
def test_labels_of_any_kind_are_numbered(
    tmp_path: Path, values: object, classes: tuple[str, ...], labels: list[int]
) -> None:
    plain = pa.table({"thumb": [b"x"] * 5, "image": IMAGES, "Label": values})
    pq.write_table(plain, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.classes == classes
    assert read(source).labels == labels


def test_the_column_of_images_is_found_by_decoding(tmp_path: Path) -> None:
    held = pa.table({"mask": [b"none"] * 5, "scan": IMAGES})
    pq.write_table(held, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert len(read(source).images) == 5
    assert source.decided == ("labels: none, as no column of words or numbers is named like one",)


def test_rows_without_bytes_mean_their_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(IMAGES[0])
    cells = [{"bytes": None, "path": "a\\1.png"}, {"bytes": IMAGES[1], "path": "x"}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet")
    assert len(read(open_source(str(tmp_path / "x.parquet"))).images) == 2


def test_a_file_that_lacks_the_column_is_left_out_and_said(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "b.parquet")
    source = open_source(str(tmp_path))
    assert source.n_images == 5
    assert "b.parquet has no column of encoded images" in source.decided[-1]


def test_a_table_without_images_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no column of encoded images .* columns are text, n"):
        open_source(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"hello world" * 99])
def test_a_damaged_file_is_one_line(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"x{suffix}").write_bytes(data)
    with pytest.raises(UserError, match="is damaged") as caught:
        open_columns([tmp_path / f"x{suffix}"], name="x")
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file_is_one_line(tmp_path: Path) -> None:
    pq.write_table(table([0, 1, 2, 1, 0]), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "x.parquet").write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match="is damaged"):
            open_source(str(tmp_path / "x.parquet"))


def test_images_in_columns_of_every_type_are_found(tmp_path: Path) -> None:
    data = [encoded(noise(9, 9, i)) for i in range(3)]
    struct = [{"bytes": one, "path": None} for one in data]
    lists = pa.array([[one] for one in data], pa.large_list(pa.binary()))
    columns = {
        "dictionary": pa.array(data, pa.binary()).dictionary_encode(),
        "large": pa.array(data, pa.large_binary()),
        "list": lists,
        "structs": pa.array([[one] for one in struct]),
        "nested": pa.array([{"image": one, "cls": "x"} for one in struct]),
    }
    for name, column in columns.items():
        for ending in (".parquet", ".ARROW"):
            table = pa.table({"a": [b"no image"] * 3, "photo": column, "id": [1, 2, 3]})
            path = tmp_path / f"{name}{ending}"
            if ending == ".parquet":
                pq.write_table(table, path)
            else:
                with pa.ipc.new_file(path, table.schema) as writer:
                    writer.write_table(table)
            source = open_source(str(path))
            contents = read(source, size=9)
            assert np.array_equal(contents.images, [noise(9, 9, i) for i in range(3)])
            assert contents.rejects == {}
            assert source.classes == (("x",) if name == "nested" else None)


def test_several_images_in_a_row_share_its_label(tmp_path: Path) -> None:
    cells = [[encoded(noise(9, 9, 2 * i + j)) for j in range(2)] for i in range(2)]
    table = pa.table({"images": pa.array([*cells, [], None]), "label": ["b", "a", "a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    contents = read(open_source(str(tmp_path / "a.parquet")))
    assert contents.labels == [1, 1, 0, 0]
    assert contents.rejects == dict.fromkeys(("a.parquet/2", "a.parquet/3"), "no image in the row")


def test_offsets_that_lie_are_refused_before_pyarrow_follows_them(tmp_path: Path) -> None:
    """A damaged Arrow file once ended the process (found by the trials of `hostile`)."""
    held = np.array([0, 4, 8], "<i4").tobytes()
    for lies in ([0, 2**30, 2**30 + 4], [0, -(2**30), 4], [8, 4, 2**20]):
        for name, other in (("image", IMAGES[:2]), ("label", ["abcd", "efgh"])):
            columns = {"image": IMAGES[:2], name: [b"1234", b"5678"] if name == "image" else other}
            table = pa.table({"label": [0, 1], **columns})
            path = tmp_path / f"{name}.arrow"
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
            data = path.read_bytes()
            assert data.count(held) == 1
            path.write_bytes(data.replace(held, np.array(lies, "<i4").tobytes()))
            with pytest.raises(UserError, match=r"is damaged .*: fetch it again"):
                read(open_source(str(path)))


def test_a_column_of_splits_is_followed(tmp_path: Path) -> None:
    held = table([0, 1, 0, 1, 0]).append_column("Split", [["train", "Test", "train", None, "test"]])
    pq.write_table(held, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert "splits: train 3, test 2, by the column of splits" in source.decided
    assert read(source).codes == [TRAIN, TEST, TRAIN, TRAIN, TEST]


def test_a_column_that_says_no_split_is_none_and_a_mixed_one_is_refused(tmp_path: Path) -> None:
    for name, cells in (("x", list("abcde")), ("y", ["train", "test", "fold1", "fold2", "test"])):
        pq.write_table(table().append_column("set", [cells]), tmp_path / f"{name}.parquet")
    assert read(open_source(str(tmp_path / "x.parquet"))).codes == [TRAIN] * 5
    with pytest.raises(UserError, match=r"y.parquet: unknown split 'fold1'"):
        open_source(str(tmp_path / "y.parquet"))


@pytest.mark.parametrize(
    ("values", "labels", "said"),
    [
        ([[1], [0], [1], None, [0]], [1, 0, 1, -1, 0], "labels: 2 classes from the column label"),
        (
            [[1], [0, 1], [0], [1], [0]],
            [1, -1, 0, 1, 0],
            "labels: 1 in the column label are none: label is list of 2, not a word or a number",
        ),
        (
            [[1, 0]] * 5,
            [-1] * 5,
            "labels: 5 in the column label are none: label is list of 2, not a word or a number",
        ),
    ],
)
def test_lists_of_one_are_labels_and_others_are_said(
    tmp_path: Path, values: list[list[int]], labels: list[int], said: str
) -> None:
    held = table().append_column("label", pa.array(values))
    pq.write_table(held, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert read(source).labels == labels
    assert any(line.startswith(said) for line in source.decided), source.decided
