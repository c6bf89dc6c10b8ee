import gzip
from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.find import files_of, open_source
from tests.images.pictures import class_files, encoded, noise, tar_bytes
from tests.images.sources.reading import read


def test_a_star_takes_several_files(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"shard-{i}.tar").write_bytes(tar_bytes(class_files()))
    assert len(files_of(tmp_path / "shard-*.tar")) == 3
    assert open_source(str(tmp_path / "shard-*.tar")).n_images == 18
    assert open_source(str(tmp_path)).n_images == 18


def test_braces_take_several_files_and_say_which_lacks(tmp_path: Path) -> None:
    for i in range(9, 12):
        (tmp_path / f"{i:03}.tar").write_bytes(tar_bytes(class_files()))
    assert open_source(f"{tmp_path}/{{009..011}}.tar").n_images == 18
    assert [p.name for p in files_of(tmp_path / "{010,009}.tar")] == ["010.tar", "009.tar"]
    with pytest.raises(UserError, match=r"1 of the 4 files of .*008..011}.tar lack: .*008.tar"):
        open_source(f"{tmp_path}/{{008..011}}.tar")
    with pytest.raises(UserError, match=r"no data at .*1,2}.tar"):
        open_source(f"{tmp_path}/{{1,2}}.tar")
    (tmp_path / "{1,2}.tar").write_bytes(tar_bytes(class_files()))
    assert open_source(f"{tmp_path}/{{1,2}}.tar").n_images == 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.7z", "is compressed: unpack it first"),
        ("a.tar.gz", "a.tar.gz: archive is cut off or damaged: fetch it again"),
        ("a.png", "is a single image: pass the folder"),
        ("a.xyz", "is of a kind that is not read: pass a folder of images"),
    ],
)
def test_other_files_say_what_to_do(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(encoded(noise(3, 3)))
    with pytest.raises(UserError, match=reason):
        open_source(str(tmp_path / name))


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="no data at digit: did you mean digits"):
        open_source("digit")


def test_tables_of_addresses_beside_images_mean_nothing(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for shard in ("0", "1"):
        (tmp_path / shard).mkdir()
        (tmp_path / shard / "a.png").write_bytes(encoded(noise(9, 9)))
        pq.write_table(
            pa.table({"url": ["https://example.org/a.png"]}), f"{tmp_path}/{shard}.parquet"
        )
    assert len(read(open_source(str(tmp_path), unlabelled=True)).images) == 2


def test_tables_of_images_below_are_found_and_what_lies_beside_is_said(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    rows = [{"bytes": encoded(noise(9, 9, i)), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": rows}), f"{tmp_path}/data/train.parquet")
    (tmp_path / "README.md").write_text("# toy")
    (tmp_path / "preview.png").write_bytes(encoded(noise(9, 9)))
    source = open_source(str(tmp_path))
    assert len(read(source).images) == 4
    assert any("1 images beside them are not read" in line for line in source.decided)


def test_archives_below_are_found(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar.gz").write_bytes(gzip.compress(tar_bytes(class_files())))
    assert len(read(open_source(str(tmp_path))).images) == 6
