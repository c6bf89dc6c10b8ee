import subprocess
import sys

import numpy as np
import pytest

from igpt.errors import UserError
from igpt.probing.kmeans import KMeansConfig, KMeansFeatures
from igpt.probing.logistic import fit_logistic


@pytest.fixture(scope="module")
def edges():
    """Bars that lie or stand, at a random place and brightness: (200, 12, 12, 3) and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (200, 12, 12, 3)).astype(np.uint8)
    labels = np.arange(200) % 2
    for image, label in zip(images, labels, strict=True):
        view = image if label else image.transpose(1, 0, 2)
        start = rng.integers(1, 9)
        view[start : start + 2] += np.uint8(rng.integers(80, 190))
    return images, labels


def test_features_are_one_a_centre_and_quadrant_and_repeatable(edges):
    images, _ = edges
    config = KMeansConfig(n_centers=8, patch_px=5)
    found = [KMeansFeatures.fit(images, config).features(images[:70]) for _ in range(2)]
    assert found[0].shape == (70, 32)
    assert found[0].dtype == np.float32
    assert np.array_equal(*found)
    assert (found[0] >= 0).all()


def test_features_of_an_image_do_not_depend_on_the_others(edges):
    images, _ = edges
    extractor = KMeansFeatures.fit(images, KMeansConfig(n_centers=8, patch_px=5))
    together = extractor.features(images[:66])
    alone = extractor.features(images[65:66])
    np.testing.assert_allclose(together[65:], alone, rtol=1e-4, atol=1e-5)


def test_features_tell_what_pixels_cannot(edges):
    """Bars anywhere: hard for a linear map of pixels, easy for one of pooled patches."""
    images, labels = edges
    extractor = KMeansFeatures.fit(images[:100], KMeansConfig(n_centers=16, patch_px=5))
    features = extractor.features(images)
    fit = fit_logistic(features[:100], labels[:100], n_classes=2, strengths=[1.0])
    guessed = (features[100:] @ fit.weights[0].T + fit.biases[0]).argmax(1)
    assert (guessed == labels[100:]).mean() > 0.95


def test_a_quadrant_answers_to_what_lies_in_it(edges):
    images, _ = edges
    extractor = KMeansFeatures.fit(images, KMeansConfig(n_centers=6, patch_px=3))
    changed = images[:1].copy()
    changed[:, :3, :3] = 255 - changed[:, :3, :3]
    before, after = (extractor.features(x).reshape(6, 4) for x in (images[:1], changed))
    assert not np.allclose(before[:, 0], after[:, 0])
    np.testing.assert_array_equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_px": 13}, r"kmeans.patch_px is 13: these images have 12 pixels a side"),
        ({"n_centers": 10_000, "patch_px": 12}, "200 images have fewer patches than 10000"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(edges, config, message):
    with pytest.raises(UserError, match=message):
        KMeansFeatures.fit(edges[0], KMeansConfig(**config))


def test_settings_below_one_are_refused():
    with pytest.raises(UserError, match=r"kmeans.n_centers is 0: it must be at least 1"):
        KMeansConfig(n_centers=0)


def test_memory_does_not_grow_with_the_images():
    # In a process of its own, which keeps what is freed, as every command does.
    code = """
import resource
import numpy as np
from igpt import compute
from igpt.probing.kmeans import KMeansConfig, KMeansFeatures
compute.set_threads()
images = np.random.default_rng(0).integers(0, 256, (1280, 32, 32, 3)).astype(np.uint8)
held = KMeansFeatures.fit(images[:128], KMeansConfig(n_centers=100))
peaks = []
for n in (256, 1280):
    held.features(images[:n])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) < 60  # MB; 150 and more where results lie between large tensors
