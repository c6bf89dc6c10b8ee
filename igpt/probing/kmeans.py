"""Single-layer k-means features: the label-free rival of the size of a CPU (Coates et al. 2011).

Small patches, normalised and whitened, are clustered; a patch of a new image answers to each
centre by how much nearer than the average it is ("triangle"), and the answers are summed over the
four quadrants of the image. Nothing here is learned by gradients or from labels.

Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt import streams
from igpt.errors import UserError
from igpt.probing.features import cut
from igpt.tokens.tokenizer import ImageArray

# The paper's constants, for pixels from 0 to 255.
NORM_EPS = 10.0
WHITEN_EPS = 0.1
PATCHES_A_CENTER = 100
BATCH_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansConfig:
    """What the features are made of."""

    n_centers: int = 400
    """Clusters; each gives four features, one a quadrant."""
    patch_px: int = 6
    """Side of a patch, pixels."""
    seed: int = 0
    """Of the patches drawn and of the clustering."""

    def __post_init__(self) -> None:
        for name in ("n_centers", "patch_px"):
            if getattr(self, name) < 1:
                raise UserError(f"kmeans.{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, slots=True)
class KMeansFeatures:
    """Fitted centres; `features` turns images into numbers."""

    mean: Tensor
    """(P,) of normalised patches."""
    whiten: Tensor
    """(P, P)."""
    centers: Tensor
    """(n_centers, P) of whitened patches."""
    patch_px: int

    @classmethod
    def fit(cls, images: ImageArray, config: KMeansConfig) -> "KMeansFeatures":
        """Cluster random patches.

        Args:
            images: (N, S, S, 3) uint8, without labels.
            config: of the features.

        Raises:
            UserError: the images are smaller than a patch, or too few for so many clusters.
        """
        side, px = np.asarray(images[:1]).shape[1], config.patch_px
        if side < px:
            raise UserError(f"kmeans.patch_px is {px}: these images have {side} pixels a side")
        n_patches = PATCHES_A_CENTER * config.n_centers
        rng = streams.stream(config.seed, "kmeans-patches")
        a_image = (side - px + 1) ** 2
        if len(images) * a_image < config.n_centers:
            raise UserError(f"{len(images)} images have fewer patches than {config.n_centers}")
        chosen = np.sort(rng.choice(len(images), min(len(images), n_patches), replace=False))
        every = -(-n_patches // len(chosen))
        taken = torch.empty(len(chosen), min(every, a_image), 3 * px * px)
        for rows in cut(len(chosen), BATCH_IMAGES):
            at = torch.from_numpy(rng.permutation(a_image)[:every])
            taken[rows] = _normalised(patches_of(images[chosen[rows]], px))[:, at]
        patches = taken.flatten(0, 1)
        mean, whiten = whitening(patches, WHITEN_EPS)
        whitened = ((patches - mean) @ whiten).numpy()
        from sklearn.cluster import MiniBatchKMeans  # takes seconds

        clusters = MiniBatchKMeans(
            config.n_centers, random_state=config.seed, n_init=1, batch_size=2048, max_iter=20
        ).fit(whitened)
        centers = torch.from_numpy(clusters.cluster_centers_.astype(np.float32))
        return cls(mean, whiten, centers, px)

    def features(self, images: ImageArray) -> np.ndarray:
        """(N, S, S, 3) uint8 -> (N, 4 * n_centers) float32."""
        # Written into their place: results kept between large tensors that come and go would keep
        # the memory of those apart, 0.6 MB an image of 32 x 32.
        found = np.empty((len(images), 4 * len(self.centers)), np.float32)
        for rows in cut(len(images), BATCH_IMAGES):
            found[rows] = self._of_batch(images[rows]).numpy()
        return found

    def _of_batch(self, images: np.ndarray) -> Tensor:
        patches = (_normalised(patches_of(images, self.patch_px)) - self.mean) @ self.whiten
        B, T, _ = patches.shape
        distances = torch.cdist(patches, self.centers.expand(B, -1, -1))  # (B, T, n_centers)
        nearer = (distances.mean(2, keepdim=True) - distances).clamp(min=0)
        side = round(T**0.5)
        grid = nearer.transpose(1, 2).reshape(B, -1, side, side)
        return F.adaptive_avg_pool2d(grid, 2).flatten(1)


def whitening(patches: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of patches (N, P) the mean (P,), and what whitens them once it is taken off: (P, P)."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    return mean, vectors @ torch.diag((values.clamp(min=0) + eps).rsqrt()) @ vectors.T


def patches_of(images: np.ndarray, px: int) -> Tensor:
    """Every patch of each image: (B, S, S, 3) uint8 -> (B, T, 3 * px * px) float32."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return F.unfold(pixels, px).transpose(1, 2)


def _normalised(patches: Tensor) -> Tensor:
    """Each patch without its brightness and contrast."""
    centred = patches - patches.mean(2, keepdim=True)
    variance = centred.square().mean(2, keepdim=True)
    return centred * (variance + NORM_EPS).rsqrt()
