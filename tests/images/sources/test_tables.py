import json
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.find import open_source
from igpt.images.sources.source import Source
from igpt.images.sources.tables import open_tables
from igpt.images.splits import TEST, TRAIN, VALID
from tests.images.pictures import class_files, encoded, noise, write_tree
from tests.images.sources.reading import read


def open_table(path: Path, *, unlabelled: bool = False) -> Source:
    return open_tables([path], name=str(path), unlabelled=unlabelled)


def table(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    write_tree(tmp_path, class_files())
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_paths_and_labels_are_found_by_the_header(tmp_path: Path) -> None:
    path = table(tmp_path, "label,path\ncat,a/0.png\ndog,b/1.png\ncat,b/0.png\n")
    source = open_table(path)
    contents = read(source)
    assert source.classes == ("cat", "dog")
    assert contents.labels == [0, 1, 0]
    assert contents.images[:, 0, 0, 0].tolist() == [0, 41, 40]


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na/0.png,10\na/1.png,9\n")
    assert open_table(path).classes == ("9", "10")


def test_tabs_separate_a_tsv(tmp_path: Path) -> None:
    path = table(tmp_path, "file\tclass\na/0.png\tx\n", "labels.tsv")
    assert read(open_table(path)).labels == [0]


def test_a_split_column_is_followed(tmp_path: Path) -> None:
    text = "path,label,split\na/0.png,x,train\na/1.png,x,valid\na/2.png,y,test\n"
    source = open_table(table(tmp_path, text))
    assert source.own_splits == {TRAIN, VALID, TEST}
    assert read(source).codes == [TRAIN, VALID, TEST]


def test_what_does_not_match_is_listed(tmp_path: Path) -> None:
    text = "path,label\na/0.png,x\na/nope.png,x\na/1.png,\n,x\na/0.png,y\n./a/0.png,y\n"
    path = table(tmp_path, text)
    write_tree(tmp_path, {"a/extra.png": encoded(noise(9, 9))})
    assert read(open_table(path)).rejects == {
        "a/nope.png": "there is no such file",
        "": "no path",
        "a/0.png": "the same name as one before",
        "./a/0.png": "the same name as one before",
        "a/2.png": "beside the images of the table but not in it",
        "a/extra.png": "beside the images of the table but not in it",
    }


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na/0.png,x\na/1.png,\n")
    source = open_table(path, unlabelled=True)
    assert source.classes is None
    assert read(source).labels == [-1, -1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its first line must name the columns"),
        ("a/0.png,x\n", "its first line is an image already"),
        ("path,label\n", "has no rows"),
        ("path,label,split\na/0.png,x,dev\n", "unknown split 'dev'"),
        ("path,label,split\na/0.png,x,fold1\na/1.png,x,train\n", "unknown split 'fold1'"),
        ('path,label\n"a/0.png,x\n', "save it as CSV in UTF-8"),
        ("path,label\n" + "x" * 200_000 + ",y\n", "save it as CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_table(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("path,label\nä.png,x\n".encode("latin-1"))
    with pytest.raises(UserError, match="save it as CSV in UTF-8"):
        open_table(path)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/0.png,x\nb/1.png,y\n",
        "path;label\na/0.png;x\nb/1.png;y\n",
        "path|label\na/0.png|x\nb/1.png|y\n",
        "sep=;\npath;label\na/0.png;x\nb/1.png;y\n",
        '"path","label"\n"a/0.png","x"\n"b/1.png","y"\n',
        "\ufeffLabel,File_Name\r\nx,a/0.png\r\ny,b/1.png\r\n",
        "Filename,cls\na\\0.png,x\nb\\1.png,y\n",
        "image,class_name\nC:\\data\\a\\0.png,x\nC:\\data\\b\\1.png,y\n",
        "img_path,target\n/home/me/data/a/0.png,x\n/home/me/data/b/1.png,y\n",
        "image,file,y\n17,a/0.png,x\n18,b/1.png,y\n",
        "photo of,label\na/0.png,x\nb/1.png,y\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_from_elsewhere_give_the_same(tmp_path: Path, text: str, encoding: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    source = open_table(path)
    contents = read(source)
    assert source.classes == ("x", "y")
    assert contents.labels == [0, 1]
    assert contents.images[:, 0, 0, 0].tolist() == [0, 41]


def test_json_lines_and_the_tables_of_the_hub(tmp_path: Path) -> None:
    write_tree(
        tmp_path, {f"{s}/{n}": d for s in ("train", "test") for n, d in class_files().items()}
    )
    for split in ("train", "test"):
        lines = [{"file_name": f"{c}/{i}.png", "label": 7 * i} for c in "ab" for i in range(3)]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / split / "metadata.jsonl").write_text(text)
    source = open_source(str(tmp_path))
    contents = read(source)
    assert source.classes == ("0", "7", "14")
    assert contents.codes == [TEST] * 6 + [TRAIN] * 6
    assert contents.labels == [0, 1, 2] * 4
    assert contents.rejects == {}


def test_a_table_without_labels_leaves_the_folders_theirs(tmp_path: Path) -> None:
    path = table(tmp_path, "file_name,text\na/0.png,hello\n", "metadata.csv")
    source = open_source(str(path.parent))
    assert source.classes == ("a", "b")
    assert "1 .csv files are not read: pass one as DATA" in source.decided[-1]


def test_several_tables_say_splits_by_their_names(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na/0.png,x\na/1.png,y\n", "train.csv")
    table(tmp_path, "path,label\nb/0.png,x\nb/1.png,-1\n", "test.csv")
    contents = read(open_source(str(tmp_path / "t*.csv")))
    assert contents.codes == [TEST, TEST, TRAIN, TRAIN]
    assert contents.labels == [0, -1, 0, 1]
    assert set(contents.rejects) == {"a/2.png", "b/2.png"}


def test_an_address_in_a_table_is_named_as_such(tmp_path: Path) -> None:
    path = table(tmp_path, "path\nhttps://example.org/a.png\na/0.png\n")
    assert "network" in read(open_table(path)).rejects["https://example.org/a.png"]


def test_numbers_that_a_table_writes_with_a_point_are_whole(tmp_path: Path) -> None:
    path = table(tmp_path, ",path,label\n0,a/0.png,10.0\n1,a/1.png,9\n2,b/0.png,-1.0\n")
    source = open_table(path)
    assert source.classes == ("9", "10")
    assert read(source).labels == [1, 0, -1]


@pytest.mark.parametrize("name", ["train/metadata.parquet", "list.parquet", "list.FEATHER"])
def test_columns_of_paths_are_a_table(tmp_path: Path, name: str) -> None:
    pa = pytest.importorskip("pyarrow")
    top = write_tree(tmp_path, {f"train/{name}": data for name, data in class_files().items()})
    above = "" if name.startswith("train") else "train/"
    paths = [f"{above}{c}/{i}.png" for c in "ab" for i in range(3)]
    columns = pa.table({"id": range(6), "file_name": paths, "label": ["x", "y", None] * 2})
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow.parquet").write_table(columns, top / name)
    else:
        pytest.importorskip("pyarrow.feather").write_feather(columns, str(top / name))
    source = open_source(str(top if name.startswith("train") else top / name))
    assert source.classes == ("x", "y")
    assert read(source).labels == [0, 1, -1] * 2


def test_what_tables_write_for_nothing_is_no_label(tmp_path: Path) -> None:
    words = ["NA", "N/A", "null", "NULL", "<NA>", "None", "nan", "-1", "none"]
    (tmp_path / "im").mkdir()
    for i in range(len(words)):
        (tmp_path / "im" / f"{i}.png").write_bytes(encoded(noise(9, 9)))
    rows = "".join(f"im/{i}.png,{word}\n" for i, word in enumerate(words))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    source = open_table(tmp_path / "t.csv")
    assert source.classes == ("none",)  # a word like others
    assert read(source).labels == [-1] * 8 + [0]


def test_a_table_may_leave_out_the_endings_of_its_files(tmp_path: Path) -> None:
    source = open_table(table(tmp_path, "id,label\na/0,x\nb/1,y\n"))
    assert source.classes == ("x", "y") and read(source).images[:, 0, 0, 0].tolist() == [0, 41]


def test_a_table_without_a_line_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first line is an image already: write the names"):
        open_table(table(tmp_path, "a/0.png,x\na/1.png,y\n"))


def test_a_list_of_two_is_no_label_and_is_said(tmp_path: Path) -> None:
    rows = [{"path": "a/0.png", "label": ["x"]}, {"path": "a/1.png", "label": ["x", "y"]}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    source = open_table(table(tmp_path, text, "labels.jsonl"))
    assert read(source).labels == [0, -1]
    odd = [line for line in source.decided if "the column of labels are none" in line]
    assert odd == [
        "labels: 1 in the column of labels are none: label is list of 2, not a word or a number"
    ]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,label\na/0.png,x,y\n")
    with pytest.raises(UserError, match="2 columns are called label: rename all but one"):
        open_table(path)


def test_a_folder_whose_name_holds_a_zero_byte_is_none(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na/0.png,x\nb\0c/1.png,y\n")
    contents = read(open_table(path))
    assert contents.labels == [0]
    assert contents.rejects["b\0c/1.png"] == "there is no such file"
