from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.images.sources.find import files_of, open_source
from tests.images.pictures import class_files, encoded, noise, tar_bytes


def test_a_star_takes_several_files(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"shard-{i}.tar").write_bytes(tar_bytes(class_files()))
    assert len(files_of(tmp_path / "shard-*.tar")) == 3
    assert open_source(str(tmp_path / "shard-*.tar")).n_images == 18
    assert open_source(str(tmp_path)).n_images == 18


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.zip", "is compressed: unpack it first"),
        ("a.tar.gz", "is compressed: unpack it first"),
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
