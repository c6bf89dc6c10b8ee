"""Scattering: a cascade of fixed wavelets; nothing is learned, neither from images nor labels.

The modulus of an image's wavelet coefficients, and the modulus of those of that at coarser scales,
are averaged over the parts of a grid. Each channel of colour is treated alone; no order is rescaled
but by the classifier's own standardisation. Here the average over a part stands for the Gaussian
of the originals, so that widths can be made equal to others'.

Bruna and Mallat, "Invariant Scattering Convolution Networks", 2013; the constants of the Morlet
wavelets are those of Andreux et al., "Kymatio", 2020.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.probing.features import cut

BATCH_IMAGES = 1  # what stays in the cache of a core is done first
# Of the wavelet of the finest scale; both halve, or double, with each coarser one.
SIGMA = 0.8
FREQUENCY = 3 * math.pi / 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatteringConfig:
    """What the features are made of."""

    n_scales: int = 2
    n_angles: int = 8
    grid: int = 4
    """Coefficients are averaged over so many by so many parts of the image."""


def morlet(side: int, scale: int, angle: float, n_angles: int) -> Tensor:
    """One wavelet in the frequency domain: (side, side) float32, 0 at frequency 0.

    Args:
        side: of the images, pixels.
        scale: 0 is the finest.
        angle: of its waves, radians.
        n_angles: wavelets of a scale; the more, the narrower each.
    """
    sigma, frequency, slant = SIGMA * 2**scale, FREQUENCY / 2**scale, 4 / n_angles
    at = 2 * math.pi * torch.fft.fftfreq(side, dtype=torch.float64)
    found = torch.zeros(2, side, side, dtype=torch.float64)
    around = 2 * math.pi * torch.arange(-2, 3)  # frequencies are periodic in 2 pi
    for down in around:
        for right in around:
            y, x = at[:, None] + down, at[None] + right
            along, across = (
                x * math.cos(angle) + y * math.sin(angle),
                y * math.cos(angle) - x * math.sin(angle),
            )
            for row, centre in enumerate((frequency, 0.0)):
                bell = sigma**2 * ((along - centre) ** 2 + (across / slant) ** 2) / 2
                found[row] += torch.exp(-bell)
    wave, mean = found[0], found[1]
    return (wave - wave[0, 0] / mean[0, 0] * mean).float()


def scattering_features(images: np.ndarray, config: ScatteringConfig) -> np.ndarray:
    """(N, S, S, 3) uint8 -> (N, grid² * 3 * coefficients) float32.

    Coefficients of a channel: the channel itself, L of each of J scales, and L² of each pair of
    different scales.
    """
    side = images[:1].shape[1]
    margin = min(side - 1, 2 * 2**config.n_scales)  # two widths of the coarsest average
    angles = [math.pi * turn / config.n_angles for turn in range(config.n_angles)]
    waves = torch.stack(
        [
            torch.stack([morlet(side + 2 * margin, j, angle, config.n_angles) for angle in angles])
            for j in range(config.n_scales)
        ]
    )  # (J, L, S', S')
    n_maps = sum((config.n_angles**order) * math.comb(config.n_scales, order) for order in range(3))
    found = np.empty((len(images), config.grid**2 * 3 * n_maps), np.float32)
    for rows in cut(len(images), BATCH_IMAGES):
        pixels = torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)
        padded = F.pad(pixels.float() / 255, [margin] * 4, mode="reflect")
        found[rows] = _cascade(padded, waves, margin, config.grid).numpy()
    return found


@torch.inference_mode()
def _cascade(images: Tensor, waves: Tensor, margin: int, grid: int) -> Tensor:
    """(B, 3, S', S') -> (B, features); S' counts the margin."""

    def averaged(maps: Tensor) -> Tensor:
        inner = maps[..., margin:-margin, margin:-margin].flatten(1, -3)
        return F.adaptive_avg_pool2d(inner, grid).flatten(1)

    parts = [averaged(images)]
    seen = torch.fft.fft2(images)[:, :, None]
    for j, finer in enumerate(waves):
        first = torch.fft.ifft2(seen * finer).abs()  # (B, 3, L, S', S')
        parts.append(averaged(first))
        again = torch.fft.fft2(first)[:, :, :, None]
        for coarser in waves[j + 1 :]:
            parts.append(averaged(torch.fft.ifft2(again * coarser).abs()))
    return torch.cat(parts, dim=1)
