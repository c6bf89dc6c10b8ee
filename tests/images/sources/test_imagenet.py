import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from igpt.errors import UserError
from igpt.images.sources.find import open_source
from igpt.images.splits import TEST, TRAIN
from tests.images.pictures import encoded, smooth, tar_bytes
from tests.images.sources.reading import read

WNIDS = ("n01440764", "n01443537", "n02084071", "n02119022")


def devkit(truth: list[int]) -> bytes:
    """The development kit: the id, WordNet id and children of every synset, and the truth."""
    # In the kit's own numbers, which are not the order of the WordNet ids; n02084071 is no leaf.
    rows = [(1, WNIDS[3], 0), (2, WNIDS[0], 0), (3, WNIDS[1], 0), (1001, WNIDS[2], 5)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    kinds += [("num_children", "O"), ("children", "O"), ("wordnet_height", "O")]
    synsets = np.zeros((len(rows), 1), np.dtype(kinds))
    for i, (number, wnid, n_children) in enumerate(rows):
        synsets[i, 0] = (number, wnid, "words", "gloss", n_children, np.zeros(1), 0)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for name, data in {
            "meta.mat": meta.getvalue(),
            "ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode(),
        }.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return held.getvalue()


def official(folder: Path) -> Path:
    """A little ImageNet in the official files."""
    train = {}
    for c, wnid in enumerate((WNIDS[1], WNIDS[0], WNIDS[3])):
        images = {
            f"{wnid}_{i}.JPEG": encoded(smooth(30, 40, 10 * c + i), "JPEG") for i in range(c + 1)
        }
        train[f"{wnid}.tar"] = tar_bytes(images)
    valid = {f"ILSVRC2012_val_{i:08d}.JPEG": encoded(smooth(30, 30, i), "JPEG") for i in (1, 2, 3)}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(valid))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit([2, 1, 3]))
    return folder


def test_the_official_tars_are_read_in_place(tmp_path: Path) -> None:
    source = open_source(str(official(tmp_path)))
    contents = read(source)
    assert source.classes == (WNIDS[0], WNIDS[1], WNIDS[3])
    assert source.valid_fraction == 0.04
    assert contents.codes == [TRAIN] * 6 + [TEST] * 3
    assert contents.labels == [0, 0, 1, 2, 2, 2, 0, 2, 1]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gz", ".tar", ".tar"]


def test_the_training_tar_may_stand_alone(tmp_path: Path) -> None:
    (official(tmp_path) / "ILSVRC2012_img_val.tar").unlink()
    assert open_source(str(tmp_path)).own_splits == {TRAIN}


def test_validation_images_need_the_development_kit(tmp_path: Path) -> None:
    (official(tmp_path) / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match=r"needs ILSVRC2012_devkit_t12.tar.gz beside it"):
        open_source(str(tmp_path))


def test_a_damaged_development_kit_is_one_line(tmp_path: Path) -> None:
    path = official(tmp_path) / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"devkit_t12.tar.gz is damaged"):
        open_source(str(tmp_path))


def test_a_cut_training_tar_is_one_line(tmp_path: Path) -> None:
    path = official(tmp_path) / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match="cut off or damaged"):
        open_source(str(tmp_path))
