"""The label-free rivals of `records/`: what they compute, against the plainest way to say it."""

import numpy as np
import pytest
import torch

from igpt.probing.kmeans import patches_of
from records.contrast import ContrastConfig, as_pixels, contrast_loss, train_contrast, view
from records.patches import PatchesConfig, patch_features
from records.scattering import ScatteringConfig, morlet, scattering_features


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)


def test_each_view_must_find_the_other_one_among_all():
    found = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(found, dim=1).numpy().astype(float)
    losses = []
    for row in range(8):
        alike = {other: unit[row] @ unit[other] / 0.5 for other in range(8) if other != row}
        losses.append(np.log(sum(np.exp(list(alike.values())))) - alike[(row + 4) % 8])
    assert float(contrast_loss(found, 0.5)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_views_are_crops_of_the_image_and_differ(images):
    pixels = as_pixels(images)
    first, second = (view(pixels, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert first.shape == pixels.shape and not torch.equal(first, second)
    assert torch.equal(first, view(pixels, torch.Generator().manual_seed(0)))
    assert float(first.min()) >= -2.001 and float(first.max()) <= 2.001
    # An image of one colour shows nothing of where it was cut or mirrored: each view has one value.
    plain = view(torch.full((64, 3, 8, 8), 0.4), torch.Generator().manual_seed(0))
    assert float(plain.std(dim=(2, 3)).max()) < 1e-5


def test_a_network_learns_to_tell_images_apart(images):
    config = ContrastConfig(depth=10, widen=1, cpu_minutes=0.02, batch_size=16, width=8)
    features, n_seen = train_contrast(images, config)
    found = features(images)
    assert n_seen >= 16 and n_seen % 16 == 0
    assert found.shape == (48, 64) and np.isfinite(found).all() and found.std(axis=0).max() > 0
    np.testing.assert_allclose(features(images[5:6]), found[5:6], rtol=0.05, atol=0.05)


def test_patches_answer_where_they_are_near(images):
    config = PatchesConfig(n_patches=32, patch_px=3, n_for_whitening=40)
    extractor = patch_features(images, config)
    found = extractor(images)
    assert found.shape == (48, 4 * 32)
    assert found.mean() == pytest.approx(config.nearest, abs=0.05)
    np.testing.assert_allclose(extractor(images[20:21]), found[20:21], rtol=1e-6)
    # The upper left quadrant of one image, by hand: 6 x 6 patches, the first 3 x 3 of them.
    patches = (patches_of(images[:1], 3)[0] / 255 - extractor.mean) @ extractor.whiten
    likeness = (patches @ extractor.entries.T).numpy()
    least = likeness.mean(1) + 0.2533 * likeness.std(1, ddof=1)
    answers = (likeness >= least[:, None]).reshape(6, 6, 32)
    np.testing.assert_allclose(
        found[0].reshape(32, 2, 2)[:, 0, 0], answers[:3, :3].mean((0, 1)), rtol=1e-6
    )


def test_scattering_is_what_convolutions_in_space_give(images):
    config = ScatteringConfig(n_scales=2, n_angles=2, grid=2)
    found = scattering_features(images, config)
    assert found.shape == (48, 4 * 3 * (1 + 4 + 4))
    margin, side = 7, 22
    padded = np.pad(images[7] / 255, [(margin, margin), (margin, margin), (0, 0)], "reflect")

    def convolved(plane, scale, angle):
        wave = np.fft.ifft2(morlet(side, scale, angle, 2).numpy())
        at = np.arange(side)
        rolled = wave[(at[:, None] - at) % side][:, :, (at[:, None] - at) % side]
        return np.abs(np.einsum("yixj,ij->yx", rolled, plane))  # around the edges

    def quadrants(plane):
        inner = plane[margin:-margin, margin:-margin]
        return inner.reshape(2, 4, 2, 4).mean(axis=(1, 3)).ravel()

    for channel in range(3):
        plane = padded[..., channel]
        of_channel = found[7].reshape(-1, 4)
        np.testing.assert_allclose(of_channel[channel], quadrants(plane), atol=1e-6)
        for turn, angle in enumerate((0.0, np.pi / 2)):
            finer = convolved(plane, 0, angle)
            np.testing.assert_allclose(
                of_channel[3 + 2 * channel + turn], quadrants(finer), atol=1e-5
            )
            for other, second in enumerate((0.0, np.pi / 2)):
                np.testing.assert_allclose(
                    of_channel[9 + 4 * channel + 2 * turn + other],
                    quadrants(convolved(finer, 1, second)),
                    atol=1e-5,
                )
            np.testing.assert_allclose(
                of_channel[21 + 2 * channel + turn],
                quadrants(convolved(plane, 1, angle)),
                atol=1e-5,
            )


def test_a_wavelet_does_not_see_brightness_and_looks_one_way():
    wave = morlet(32, 0, 0.0, 8)
    assert abs(float(wave[0, 0])) < 1e-6
    y, x = np.unravel_index(int(wave.argmax()), wave.shape)
    assert y == 0 and 2 * np.pi * x / 32 == pytest.approx(3 * np.pi / 4, abs=0.2)
    turned = morlet(32, 0, np.pi / 2, 8)
    np.testing.assert_allclose(turned.numpy(), wave.numpy().T, atol=1e-6)
