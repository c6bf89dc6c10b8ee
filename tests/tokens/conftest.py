"""What the tests of this room share."""

import os
from pathlib import Path

import numpy as np
import pytest

from igpt import files
from igpt.images.prepare import open_data
from igpt.tokens.palette import Palette

_USERS_CACHE = os.environ.get("IGPT_CACHE")


@pytest.fixture(scope="session")
def table_cache(tmp_path_factory):
    """One cache folder for all tests, so that each table is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, table_cache):
    monkeypatch.setenv("IGPT_CACHE", str(table_cache))


@pytest.fixture
def cifar10(monkeypatch):
    """CIFAR-10 where it was fetched before."""
    if _USERS_CACHE is None:
        monkeypatch.delenv("IGPT_CACHE")
    else:
        monkeypatch.setenv("IGPT_CACHE", _USERS_CACHE)
    if not (files.cache_folder() / "packed" / "cifar10-32").exists():
        pytest.skip("CIFAR-10 was not fetched before: igpt pretrain cifar10, or igpt demo, does")
    return open_data("cifar10", image_size=32)


@pytest.fixture(scope="session")
def authors_palette():
    """The palette that the paper's authors published, where it was lent."""
    root = Path(__file__).parents[2]
    for path in (root.parent / "shared", root / "shared"):
        if (path / "data" / "kmeans_centers.npy").exists():
            return Palette.load(path / "data" / "kmeans_centers.npy")
    pytest.skip("the authors' kmeans_centers.npy is not here")


@pytest.fixture(scope="session")
def small_palette():
    """Eleven colours far apart, so that decoding and encoding again is the identity."""
    levels = np.random.default_rng(0).permutation(27)[:11]
    corners = np.stack([levels // 9, levels // 3 % 3, levels % 3], axis=1) - 1.0
    return Palette(0.9 * corners)
