"""Files of vectors: whole, in order, and made a batch at a time."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from igpt.errors import UserError
from igpt.probing import vectors as vectors_module
from igpt.probing.features import LEFT_OUT
from igpt.probing.vectors import writing_vectors

N, D = 11, 3


def written(path: Path, values: np.ndarray, is_good: np.ndarray, *, batch: int) -> None:
    values = np.where(is_good[:, None], values, LEFT_OUT)
    names = [f"{i}.png" for i in range(N)]
    with writing_vectors(path, names, ["a"] * N, D) as target:
        for start in range(0, N, batch):
            rows = slice(start, min(start + batch, N))
            target[:, rows] = values[None, rows]


@pytest.mark.parametrize("bad", [[], [0], [3, 4, 10], list(range(N))])
@pytest.mark.parametrize("ending", ["npz", "parquet", "NPZ"])
def test_batches_become_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, bad: list[int]
) -> None:
    monkeypatch.setattr(vectors_module, "GROUP_ROWS", 5)
    values = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    path = tmp_path / f"v.{ending}"
    is_good = ~np.isin(np.arange(N), bad)
    written(path, values, is_good, batch=4)
    if ending != "parquet":
        held = np.load(path, allow_pickle=False)
        found, names = held["vector"], held["path"].tolist()
    else:
        table = pq.read_table(path)
        found, names = np.array(table["vector"].to_pylist()), table["path"].to_pylist()
        assert bad or pq.ParquetFile(path).num_row_groups == 2
    assert np.array_equal(found.reshape(-1, D), values[is_good])
    assert names == [f"{i}.png" for i in np.flatnonzero(is_good)]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_failure_leaves_no_file(tmp_path: Path, ending: str) -> None:
    with (
        pytest.raises(UserError, match="damaged"),
        writing_vectors(tmp_path / f"v.{ending}", ["a", "b"], ["", ""], D) as target,
    ):
        target[:, slice(0, 1)] = np.zeros((1, 1, D), np.float32)
        raise UserError("damaged image")
    assert list(tmp_path.iterdir()) == []
